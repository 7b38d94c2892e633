"""`llamesh doctor` and `llamesh up` name what is wrong with the files of the certificate, with a remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh import before_start, certificate_checks, host_names
from llamesh.cli.mesh.authority import AUTHORITY_DAYS, Files, issue, not_after
from llamesh.cli.mesh.findings import Finding
from llamesh.cli.mesh.settings import MeshSettings
from tests.unit.test_start_names_what_prevents_it import settings as plain_settings

NOW = datetime.now(UTC)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path / "home")
    issue(found, ["localhost", "127.0.0.1"], NOW)
    return found


def settings(files: Files, **changed: object) -> MeshSettings:
    pair = {"tls_certificate": str(files.certificate), "tls_key": str(files.key)}
    return replace(plain_settings(files.home), **{**pair, **changed})


def found(settings: MeshSettings, days: float = 0) -> list[Finding]:
    then = NOW + timedelta(days=days)
    return list(certificate_checks.of_files(settings, then.timestamp))


def harmed(files: Files, harm: str) -> tuple[MeshSettings, str]:
    """The settings of a pair that cannot be used, and words that name what is wrong."""
    if harm == "missing certificate":
        files.certificate.unlink()
        return settings(files), f"LLAMESH_TLS_CERTIFICATE: {files.certificate} cannot be read: No such file"
    if harm == "missing key":
        files.key.unlink()
        return settings(files), f"LLAMESH_TLS_KEY: {files.key} cannot be read: No such file"
    if harm == "one setting":
        return settings(files, tls_key=""), "LLAMESH_TLS_CERTIFICATE is set and LLAMESH_TLS_KEY is not"
    if harm == "folder":
        return settings(files, tls_key=str(files.home)), "is no regular file"
    if harm == "pipe":
        files.key.unlink()
        os.mkfifo(files.key)
        return settings(files), f"{files.key} is no regular file"
    if harm == "device":
        return settings(files, tls_certificate="/dev/zero"), "/dev/zero is no regular file"
    if harm == "empty":
        files.certificate.write_text("\n")
        return settings(files), f"{files.certificate} is empty"
    if harm == "huge":
        files.certificate.write_bytes(bytes(2 << 20))
        return settings(files), "has more than 1048576 bytes"
    if harm == "other key":
        files.key.write_bytes(files.authority_key.read_bytes())
        return settings(files), f"the key {files.key} does not belong to the certificate {files.certificate}"
    if harm == "encrypted":
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        files.key.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))
        return settings(files), f"{files.key} is encrypted"
    if harm == "DER":
        der = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        files.certificate.write_bytes(der.public_bytes(serialization.Encoding.DER))
        return settings(files), f"{files.certificate} is not PEM"
    assert harm == "other kind"
    write_pair(files, ed448.Ed448PrivateKey.generate(), ["localhost"])
    return settings(files), "Envoy takes no key of the kind of"


def write_pair(
    files: Files, key: ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey, names: list[str], days: int = 90
) -> None:
    builder = x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.public_key(), 1)
    builder = builder.not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=days))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    made = builder.sign(key, hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None)
    files.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files.key.write_bytes(key.private_bytes(*form))


HARMS = [
    *("missing certificate", "missing key", "one setting", "folder", "pipe", "device", "empty", "huge", "other key"),
    *("encrypted", "DER", "other kind"),
]


@pytest.mark.parametrize("harm", HARMS)
def test_doctor_and_a_start_name_the_same_fault_with_the_same_remedy(files: Files, harm: str) -> None:
    used, words = harmed(files, harm)
    (finding,) = found(used)
    assert finding.state == "problem"
    assert words in finding.found
    assert finding.fix
    with pytest.raises(CommandError) as refused:
        list(before_start.check_machine(used))
    assert (str(refused.value), refused.value.hint, refused.value.code) == (finding.found, finding.fix, Exit.USAGE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_key_that_the_user_may_not_read_is_named(files: Files, closed: str) -> None:
    code = f"""
import os
from datetime import UTC, datetime
from llamesh import certificates
import cryptography.x509
os.setuid(65534)
try:
    certificates.read({str(files.certificate)!r}, {str(files.key)!r}, datetime.now(UTC))
except certificates.CertificateError as error:
    print(error, "|", error.remedy)
"""
    for folder in (files.home.parents[0], *files.home.parents[0].parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o111)
    files.home.chmod(0o755)
    files.key.parent.chmod(0o755 if closed == "file" else 0o700)
    files.certificate.chmod(0o644)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    file = files.key if closed == "file" else files.certificate
    assert f"{file} cannot be read by this user | let user 65534 read it, and enter its folders\n" in said


def test_the_end_is_said_before_and_after(files: Files) -> None:
    assert [(item.state, item.found) for item in found(settings(files))] == [
        ("ok", f"valid for 397 days, until {NOW + timedelta(days=397):%Y-%m-%d}, for localhost, 127.0.0.1")
    ]
    (soon,) = found(settings(files), 390)
    assert (soon.state, soon.found[:16], "llamesh tls init" in soon.fix) == ("warning", "valid for 7 days", True)
    (gone,) = found(settings(files), 398)
    assert (gone.state, "expired on" in gone.found, "llamesh tls init" in gone.fix) == ("problem", True, True)


def test_missing_names_are_named_with_the_command_that_adds_them(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_names, "outward_addresses", lambda: ["192.0.2.7", "fd00::7"])
    (other, good) = found(settings(files, bind="0.0.0.0"))
    assert (other.state, other.fix, good.state) == ("warning", "llamesh tls init --name 192.0.2.7", "ok")
    assert "other machines are given addresses with 192.0.2.7, for which it is not valid" in other.found
    (other, _) = found(settings(files, bind="0.0.0.0", public_host="llm.lan"))
    assert other.fix == "llamesh tls init --name llm.lan"
    (here, _) = found(settings(files, bind="192.0.2.9"))
    assert (here.found, here.fix) == ("it is not valid for 192.0.2.9", "llamesh tls init --name 192.0.2.9")
    issue(files, ["llm.lan"], NOW)
    assert [item.state for item in found(settings(files, bind="0.0.0.0", public_host="llm.lan"))] == ["ok"]


def test_a_certificate_of_others_is_not_told_to_be_made_again(files: Files) -> None:
    write_pair(files, ec.generate_private_key(ec.SECP256R1()), ["*.example.com"])
    files.certificate.rename(files.home / "own.pem")
    used = settings(files, tls_certificate=str(files.home / "own.pem"), public_host="llm.lan")
    here, other, _ = found(used)
    assert here.fix == "commands on this machine need LLAMESH_URL with one of its names: *.example.com"
    assert other.fix == "set LLAMESH_PUBLIC_HOST to one of its names: *.example.com"
    assert [item.found for item in found(replace(used, public_host="a.example.com"))[:-1]] == [here.found]


def test_a_certificate_without_names_is_a_problem_and_a_start_warns(files: Files) -> None:
    write_pair(files, ec.generate_private_key(ec.SECP256R1()), [])
    nameless, _ = found(settings(files))
    assert (nameless.state, "it has no names" in nameless.found) == ("problem", True)
    warnings = list(before_start.check_machine(settings(files)))
    assert [line for line in warnings if "certificate" in line] == [
        f"certificate: {nameless.found}\n    -> {nameless.fix}"
    ]


@pytest.mark.parametrize(
    ("days", "state", "words"),
    [
        (0, "ok", "valid for 3650 days"),
        (AUTHORITY_DAYS - 91, "ok", "valid for 91 days"),
        (AUTHORITY_DAYS - 89, "warning", "ends in 89 days"),
        (AUTHORITY_DAYS + 1, "problem", "ended, on"),
    ],
)
def test_doctor_says_when_the_authority_ends(files: Files, days: float, state: str, words: str) -> None:
    then = NOW + timedelta(days=days)
    (finding,) = certificate_checks.of_authority(settings(files), then.timestamp)
    assert (finding.check, finding.state) == ("authority", state)
    assert words in finding.found
    assert state == "ok" or f"rm {files.authority} {files.authority_key}; llamesh tls init --renew" in finding.fix


def test_a_certificate_ends_with_its_authority_at_the_latest(files: Files) -> None:
    last = not_after(files.authority)
    then = NOW + timedelta(days=AUTHORITY_DAYS - 100)
    write_pair(files, ec.generate_private_key(ec.SECP256R1()), ["localhost"], AUTHORITY_DAYS + 100)
    made, is_new = issue(files, ["localhost"], then)
    assert (made.ends, is_new) == (last, True), "one of an earlier release, which outlives it, is replaced"
    kept, is_new = issue(files, ["localhost"], then + timedelta(days=80))
    assert (kept.leaf, is_new) == (made.leaf, False), "a new one would end at the same time"
    early, _ = issue(files, ["localhost"], NOW, renew=True)
    assert NOW + timedelta(days=396) < early.ends < last


@pytest.mark.parametrize(
    "spelling", ["{home}//tls/server.pem", "{home}/../{name}/tls/server.pem", "{link}/tls/server.pem"]
)
def test_the_mesh_uses_its_own_certificate_whatever_the_spelling(files: Files, spelling: str) -> None:
    link = files.home.with_name("link")
    link.symlink_to(files.home)
    path = spelling.format(home=files.home, name=files.home.name, link=link)
    then = NOW + timedelta(days=AUTHORITY_DAYS - 10)
    used = settings(files, tls_certificate=path)
    assert [item.state for item in certificate_checks.of_authority(used, then.timestamp)] == ["warning"]
    here, _ = found(replace(used, bind="192.0.2.9"))
    assert here.fix == "llamesh tls init --name 192.0.2.9"


def test_the_end_of_an_authority_counts_only_if_the_mesh_uses_it(files: Files) -> None:
    other = settings(files, tls_certificate=str(files.home / "other.pem"))
    assert not list(certificate_checks.of_authority(other))
    files.authority.write_text("none")
    (finding,) = certificate_checks.of_authority(settings(files))
    assert (finding.state, "it holds no PEM certificate" in finding.found) == ("warning", True)
    files.authority.unlink()
    assert not list(certificate_checks.of_authority(settings(files)))
