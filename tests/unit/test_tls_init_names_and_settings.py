"""`llamesh tls init` takes names that clients can match, drops others, and gives the mesh files that exist."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from llamesh import certificates
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.mesh import host_names
from llamesh.cli.mesh.authority import AUTHORITY_DAYS, Files, _signed, issue
from llamesh.cli.mesh.settings import read_settings

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("LLAMESH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("socket.gethostname", lambda: "machine")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    monkeypatch.setattr(host_names, "outward_addresses", list)
    return tmp_path / "home"


def names(home: Path) -> list[str]:
    return list(certificates.names(Files(home).certificate))


USUAL = ["localhost", "machine", "machine.local", "127.0.0.1", "::1"]


@pytest.mark.parametrize("days", [20, 89, 91])
def test_an_authority_that_ends_soon_is_said_with_the_remedy(home: Path, capsys: Capture, days: int) -> None:
    files = Files(home)
    issue(files, ["localhost"], datetime.now(UTC) - timedelta(days=AUTHORITY_DAYS - days, seconds=-60))
    assert run(["tls", "init"]) == Exit.OK
    said = capsys.readouterr().err
    assert (f"authority: {files.authority} ends in {days} days" in said) is (days < 90)
    assert (f"rm {files.authority} {files.authority_key}; llamesh tls init --renew" in said) is (days < 90)


WRONG = {
    "http://a.lan": "scheme",
    "a.lan:8080": "port",
    "a.lan/": "path",
    "u@a.lan": "user",
    "10.0.0.0/8": "path",
    "a b": "letters, digits and hyphens",
    "": "letters, digits and hyphens",
    ".": "letters, digits and hyphens",
    "a..lan": "letters, digits and hyphens",
    ".lan": "letters, digits and hyphens",
    "a.-b.lan": "without a hyphen",
    "a-.lan": "without a hyphen",
    "a!.lan": "letters, digits and hyphens",
    "a\n.lan": "letters, digits and hyphens",
    f"{'a' * 64}.lan": "too long",
    f"{'a.' * 130}lan": "too long",
    "b\u00fc" * 30 + ".lan": "cannot be written in ASCII",
    "256.1.1.1": "it is no address",
    "10.0.0": "it is no address",
    "1.2.3.4.5": "it is no address",
    "0.0.0.0": "no single machine",
    "::": "no single machine",
    "224.0.0.1": "no single machine",
    "255.255.255.255": "no single machine",
    "fe80::1%eth0": "zone",
    "*": "whole first part only",
    "*.lan": "two parts or more",
    "a.*.lan": "whole first part only",
    "a*.example.com": "whole first part only",
    "*.*.example.com": "whole first part only",
    "*.1.2.3": "it is no address",
    "[a.lan]": "letters, digits and hyphens",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_no_client_matches_is_named_and_leaves_nothing(home: Path, capsys: Capture, name: str) -> None:
    assert run(["tls", "init", "--name", "good.lan", "--name", name]) == Exit.USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"error: {name!r} is no host name or address")
    assert WRONG[name] in said
    assert "\nhint: write " in said
    assert not Files(home).authority.exists()


def test_names_that_clients_match_are_taken_in_one_form(home: Path) -> None:
    words = [
        "A.Lan.",
        "*.Example.com",
        "my_service",
        "10.0.0.7",
        "[2001:DB8::7]",
        "b\u00fccher.lan",
        "3com.example",
        "x" * 63,
    ]
    assert run(["tls", "init", *(part for word in words for part in ("--name", word))]) == Exit.OK
    hosts = ["a.lan", "*.example.com", "my_service", "xn--bcher-kva.lan", "3com.example", "x" * 63]
    assert sorted(names(home)) == sorted([*USUAL, *hosts, "10.0.0.7", "2001:db8::7"])


def test_names_of_this_machine_that_no_certificate_may_hold_are_left_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "ada's laptop")
    monkeypatch.setattr(host_names, "outward_addresses", lambda: ["fe80::1%2", "192.0.2.7"])
    assert run(["tls", "init"]) == Exit.OK
    assert names(home) == ["localhost", "127.0.0.1", "::1", "192.0.2.7"]


def test_a_name_that_the_certificate_lacks_is_not_dropped_silently(home: Path, capsys: Capture) -> None:
    assert run(["tls", "init", "--drop", "old.lan"]) == Exit.USAGE
    assert "--drop old.lan: there is no certificate" in capsys.readouterr().err
    assert not Files(home).authority.exists()
    assert run(["tls", "init", "--name", "old.lan"]) == Exit.OK
    assert run(["tls", "init", "--drop", "odl.lan"]) == Exit.OK
    assert "the certificate had no name odl.lan" in capsys.readouterr().err


def test_a_name_is_dropped_and_stays_away(home: Path, capsys: Capture) -> None:
    assert run(["tls", "init", "--name", "old.lan", "--name", "new.lan"]) == Exit.OK
    capsys.readouterr()
    for words in (["--drop", "OLD.lan."], [], ["--renew"], ["--drop", "old.lan"]):
        before = Files(home).certificate.read_bytes()
        assert run(["tls", "init", *words]) == Exit.OK
        assert ("no longer for old.lan" in capsys.readouterr().err) == (words == ["--drop", "OLD.lan."])
        assert names(home) == [*USUAL[:3], "new.lan", *USUAL[3:]]
        assert (before == Files(home).certificate.read_bytes()) == (words in ([], ["--drop", "old.lan"]))
    assert run(["tls", "init", "--name", "a.lan", "--drop", "a.lan"]) == Exit.USAGE
    assert "--name and --drop both name a.lan" in capsys.readouterr().err


def test_wrong_names_of_an_earlier_certificate_go(home: Path) -> None:
    files, now = Files(home), datetime.now(UTC)
    issue(files, USUAL, now)
    signer = x509.load_pem_x509_certificate(files.authority.read_bytes())
    signing = load_pem_private_key(files.authority_key.read_bytes(), None)
    certificate, key = _signed((*USUAL, "a..lan", "good.lan"), signer, signing, now)
    files.certificate.write_bytes(certificate)
    files.key.write_bytes(key)
    assert run(["tls", "init"]) == Exit.OK
    assert sorted(names(home)) == sorted([*USUAL, "good.lan"])


def settings() -> tuple[str, str]:
    found = read_settings(os.environ)
    return found.tls_certificate, found.tls_key


@pytest.mark.parametrize("gone", ["certificate", "key", "both"])
def test_settings_that_name_missing_files_are_replaced(home: Path, tmp_path: Path, capsys: Capture, gone: str) -> None:
    home.mkdir()
    paths = {"certificate": tmp_path / "a.pem", "key": tmp_path / "a.key"}
    for name, path in paths.items():
        if gone not in {name, "both"}:
            path.touch()
    before = f"# words\nllamesh_tls_certificate={paths['certificate']}\nexport LLAMESH_TLS_KEY='{paths['key']}'\nMAX_REPLICAS=3\n"
    (home / "config.env").write_text(before)
    assert run(["tls", "init"]) == Exit.OK
    said = capsys.readouterr().err
    assert all((str(path) in said) == (not path.exists()) for path in paths.values())
    assert settings() == (str(Files(home).certificate), str(Files(home).key))
    assert (home / "config.env").read_text().startswith("# words\nMAX_REPLICAS=3\n")
    assert run(["tls", "init"]) == Exit.OK
    assert "name it already" in capsys.readouterr().err


def test_settings_that_name_the_files_by_another_path_name_them_already(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert run(["tls", "init"]) == Exit.OK
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "link"))
    capsys.readouterr()
    assert run(["tls", "init"]) == Exit.OK
    assert "name it already" in capsys.readouterr().err


def test_settings_that_name_other_files_stay(home: Path, tmp_path: Path, capsys: Capture) -> None:
    home.mkdir()
    for name in ("a.pem", "a.key"):
        (tmp_path / name).touch()
    before = f"LLAMESH_TLS_CERTIFICATE={tmp_path / 'a.pem'}\nLLAMESH_TLS_KEY={tmp_path / 'a.key'}\n"
    (home / "config.env").write_text(before)
    assert run(["tls", "init"]) == Exit.OK
    assert "names another certificate, which stays in use" in capsys.readouterr().err
    assert (home / "config.env").read_text() == before


def test_an_environment_that_names_missing_files_is_told_so(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("LLAMESH_TLS_CERTIFICATE", "/nothing/a.pem")
    monkeypatch.setenv("LLAMESH_TLS_KEY", "/nothing/a.key")
    assert run(["tls", "init"]) == Exit.OK
    assert (
        "/nothing/a.pem and /nothing/a.key, which are missing: unset LLAMESH_TLS_CERTIFICATE" in capsys.readouterr().err
    )
    assert not (home / "config.env").exists()


def test_a_link_to_the_settings_stays_a_link(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (tmp_path / "mine.env").write_text("MAX_REPLICAS=3\n")
    (home / "config.env").symlink_to(tmp_path / "mine.env")
    assert run(["tls", "init"]) == Exit.OK
    assert (home / "config.env").is_symlink()
    assert (tmp_path / "mine.env").read_text().startswith("MAX_REPLICAS=3\nLLAMESH_TLS_CERTIFICATE=")


def test_several_at_once_make_one_authority_whose_key_fits(home: Path) -> None:
    words = [sys.executable, "-m", "llamesh.cli.main", "tls", "init", "--name"]
    runs = [
        subprocess.Popen([*words, f"n{number}.lan"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    for each in runs:
        _, said = each.communicate()
        assert each.returncode == 0, said
    files = Files(home)
    certificates.read(str(files.authority), str(files.authority_key), datetime.now(UTC))
    certificates.read(str(files.certificate), str(files.key), datetime.now(UTC))
    assert {f"n{number}.lan" for number in range(4)} <= set(names(home))
    assert (home / "config.env").read_text().count("LLAMESH_TLS_CERTIFICATE=") == 1


@pytest.mark.parametrize("signed", [True, False], ids=["a certificate is signed", "killed before"])
@pytest.mark.parametrize(
    "harm", ["no certificate", "no key", "empty certificate", "empty key", "server as authority", "folder"]
)
def test_a_half_made_authority_is_named_with_a_remedy_that_works(
    home: Path, capsys: Capture, harm: str, signed: bool
) -> None:
    assert run(["tls", "init"]) == Exit.OK
    files = Files(home)
    if harm == "server as authority":
        files.authority.write_bytes(files.certificate.read_bytes())
        files.authority_key.write_bytes(files.key.read_bytes())
    else:
        file = files.authority_key if "key" in harm else files.authority
        file.unlink()
        if harm.startswith("empty"):
            file.touch()
        elif harm == "folder":
            file.mkdir()
    if not signed:
        files.certificate.unlink()
    capsys.readouterr()
    assert run(["tls", "init", "--renew"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert said.startswith("error: the authority of this mesh cannot sign: ")
    assert "LLAMESH_TLS" not in said
    if signed:
        here, gone = ("ca.key", "ca.pem") if "certificate" in harm else ("ca.pem", "ca.key")
        one = f"hint: put {gone} back into {home / 'tls'}; if it is lost, remove {here}: clients must trust a new one"
        assert (one if harm.startswith("no ") else "hint: put ca.pem and ca.key back") in said
        return
    remedy = said.partition("hint: nothing is signed with it yet: ")[2].removesuffix(", and again\n")
    subprocess.run(remedy, shell=True, check=True)
    assert run(["tls", "init"]) == Exit.OK


@pytest.mark.parametrize("options", [[], ["--renew"]], ids=["plain", "renew"])
def test_an_authority_that_was_removed_is_made_again_and_signs_anew(home: Path, options: list[str]) -> None:
    assert run(["tls", "init", "--name", "a.lan"]) == Exit.OK
    files = Files(home)
    before = files.authority.read_bytes()
    files.authority.unlink()
    assert run(["tls", "init"]) == Exit.USAGE
    files.authority_key.unlink()
    assert run(["tls", "init", *options]) == Exit.OK
    assert files.authority.read_bytes() != before
    signer = x509.load_pem_x509_certificate(files.authority.read_bytes())
    x509.load_pem_x509_certificate(files.certificate.read_bytes()).verify_directly_issued_by(signer)
    assert "a.lan" in names(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_an_authority_that_the_user_may_not_read_is_not_to_be_removed(home: Path, tmp_path: Path) -> None:
    assert run(["tls", "init"]) == Exit.OK
    for folder in (tmp_path, home, home / "tls", *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o111)
    code = f"""
import os
from datetime import UTC, datetime
from pathlib import Path
from llamesh.certificates import CertificateError
from llamesh.cli.mesh import authority
import cryptography.x509
os.setuid(65534)
files = authority.Files(Path({str(home)!r}))
for read in (lambda: authority.not_after(files.authority), lambda: authority._read_authority(files, datetime.now(UTC))):
    try:
        read()
    except CertificateError as error:
        print(error.remedy)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["let user 65534 read it, and enter its folders"] * 2


def test_an_authority_that_is_gone_is_named_although_its_certificate_is_valid(home: Path, capsys: Capture) -> None:
    assert run(["tls", "init"]) == Exit.OK
    capsys.readouterr()
    Files(home).authority.write_text("")
    assert run(["tls", "init"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert f"error: {Files(home).authority}: it holds no PEM certificate\nhint: put ca.pem" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"A=1\nB=\xff\n", "line 2 of {file} is not UTF-8: save the file as UTF-8"),
        (b"A=1\nB=\0\n", "line 2 of {file} holds a NUL byte"),
        (None, "{file} is no regular file"),
    ],
    ids=["not UTF-8", "NUL", "folder"],
)
def test_settings_that_cannot_be_changed_are_named_before_anything_is_made(
    home: Path, capsys: Capture, content: bytes | None, said: str
) -> None:
    file = home / "config.env"
    home.mkdir()
    file.mkdir() if content is None else file.write_bytes(content)
    assert run(["tls", "init"]) != Exit.OK
    assert said.format(file=file) in capsys.readouterr().err
    assert not (home / "tls").exists()


def test_a_home_whose_path_the_settings_cannot_hold_is_refused(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    home = tmp_path / "${HOME}"
    monkeypatch.setenv("LLAMESH_HOME", str(home))
    assert run(["tls", "init"]) == Exit.USAGE
    assert "config.env can hold no path with" in capsys.readouterr().err
    assert not home.exists()
