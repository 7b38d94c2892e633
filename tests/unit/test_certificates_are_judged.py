"""A pair of certificate and key is judged before anybody relies on it; what is wrong is said with its remedy."""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF8
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from llamesh import certificates
from llamesh.certificates import CertificateError
from llamesh.cli import tls
from llamesh.cli.failure import CommandError
from llamesh.cli.mesh import renewal
from llamesh.cli.mesh.authority import AUTHORITY_DAYS, Files, issue
from llamesh.client.trust import authorities, kept_authority

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    issue(Files(tmp_path), ["localhost", "127.0.0.1", "LLM.lan.", "[::1]"], NOW)
    return Files(tmp_path)


def read(files: Files, now: datetime = NOW) -> certificates.Certificate:
    return certificates.read(str(files.certificate), str(files.key), now)


def test_names_are_written_one_way(files: Files) -> None:
    found = read(files)
    assert found.names == ("localhost", "llm.lan", "127.0.0.1", "::1")
    assert [found.covers(host) for host in ("LLM.LAN", "[::1]", "127.0.0.1", "other.lan")] == [True, True, True, False]


@pytest.mark.parametrize("name", ["http://x", "x:80", "a b", "", "user@x"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CertificateError, match="no host name"):
        issue(Files(tmp_path), [name], NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_renews_only_certificates_that_no_longer_suffice(files: Files) -> None:
    authority = files.authority.read_bytes()
    assert issue(files, ["localhost"], NOW)[1] is False
    assert issue(files, ["localhost"], NOW + timedelta(days=360))[1] is False
    renewed, made = issue(files, ["localhost"], NOW + timedelta(days=370))
    assert made
    assert renewed.days_left(NOW + timedelta(days=370)) == 397
    assert issue(files, ["localhost", "new.lan"], NOW + timedelta(days=371))[1] is True
    assert files.authority.read_bytes() == authority


@pytest.mark.parametrize("days", [370, 500], ids=["about to expire", "expired"])
def test_a_renewal_keeps_the_names_of_the_earlier_certificate(files: Files, days: int) -> None:
    renewed, made = issue(files, ["localhost", "new.lan"], NOW + timedelta(days=days))
    assert made
    assert renewed.names == ("localhost", "new.lan", "llm.lan", "127.0.0.1", "::1")


def test_a_name_that_is_not_ascii_is_there_already_in_a_second_run(tmp_path: Path) -> None:
    found, _ = issue(Files(tmp_path), ["Bücher.lan"], NOW)
    assert found.names == ("xn--bcher-kva.lan",)
    assert issue(Files(tmp_path), ["bücher.lan"], NOW)[1] is False


def test_an_authority_is_trusted_beside_comments_and_once(files: Files) -> None:
    pem = files.authority.read_bytes()
    (one,) = authorities(pem)
    comment = "Bücherei\n".encode()
    for content in (comment + pem, comment.decode().encode("latin-1") + pem, BOM_UTF8 + pem, pem + comment + pem):
        assert authorities(content) == [one]
    with pytest.raises(ValueError, match="more than certificates of authorities"):
        authorities(pem + pem + files.certificate.read_bytes())
    with pytest.raises(ValueError, match="no PEM certificate"):
        authorities(pem.replace(b"MII", "MÜI".encode(), 1))


def test_trust_does_not_replace_a_file_that_it_cannot_read(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    tls.trust(str(files.authority))
    tls.trust(str(files.authority))
    kept = kept_authority()
    assert authorities(kept.read_bytes()) == authorities(files.authority.read_bytes())
    kept.write_text("damaged")
    with pytest.raises(CommandError, match="cannot be read: ") as raised:
        tls.trust(str(files.authority))
    assert str(kept) in str(raised.value)
    assert kept.read_text() == "damaged"


@pytest.mark.parametrize("harm", ["key away", "certificate away", "key of another", "expired"])
def test_an_authority_that_cannot_sign_is_named_and_no_setting_is(files: Files, harm: str) -> None:
    now = NOW
    if harm == "key away":
        files.authority_key.unlink()
    elif harm == "certificate away":
        files.authority.unlink()
    elif harm == "key of another":
        files.authority_key.write_bytes(files.key.read_bytes())
    else:
        now += timedelta(days=AUTHORITY_DAYS + 1)
    with pytest.raises(CertificateError, match="the authority of this mesh cannot sign") as raised:
        issue(files, ["mesh.lan"], now, renew=True)
    assert "LLAMESH_TLS" not in f"{raised.value} {raised.value.remedy}"
    put = {"key away": "put ca.key back", "certificate away": "put ca.pem back"}.get(harm, "put ca.pem and ca.key back")
    assert put in raised.value.remedy


def test_the_time_counts(files: Files) -> None:
    with pytest.raises(CertificateError, match="expired on 2027-12-03") as caught:
        read(files, NOW + timedelta(days=398))
    assert "tls init" in caught.value.remedy
    with pytest.raises(CertificateError, match="not valid before") as caught:
        read(files, NOW - timedelta(days=1))
    assert "clock" in caught.value.remedy


def test_a_key_of_another_certificate_is_refused(files: Files, tmp_path: Path) -> None:
    other = Files(tmp_path / "other")
    issue(other, ["localhost"], NOW)
    with pytest.raises(CertificateError, match="does not belong"):
        certificates.read(str(files.certificate), str(other.key), NOW)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_cannot_be_read_is_named(files: Files) -> None:
    files.key.chmod(0)
    with pytest.raises(CertificateError, match="cannot be read by this user"):
        read(files)


def test_envoy_gets_both_in_one_private_file_and_only_if_they_changed(files: Files, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert certificates.hand_to_envoy(read(files), run)
    assert not certificates.hand_to_envoy(read(files), run)
    certificates.secret_file(run).write_bytes(b"\xff")
    assert certificates.hand_to_envoy(read(files), run)
    file = certificates.secret_file(run)
    assert file.stat().st_mode & 0o777 == 0o600
    (secret,) = json.loads(file.read_text())["resources"]
    assert secret["tls_certificate"]["certificate_chain"]["inline_string"] == files.certificate.read_text()
    assert [path.name for path in run.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        (rsa.generate_private_key(65537, 1024), False),
        (rsa.generate_private_key(65537, 2048), True),
        (ec.generate_private_key(ec.SECP224R1()), False),
        (ec.generate_private_key(ec.SECP256K1()), False),
        (ec.generate_private_key(ec.SECP256R1()), True),
        (ec.generate_private_key(ec.SECP384R1()), True),
        (ec.generate_private_key(ec.SECP521R1()), True),
        (ed25519.Ed25519PrivateKey.generate(), True),
    ],
    ids=["rsa1024", "rsa2048", "p224", "secp256k1", "p256", "p384", "p521", "ed25519"],
)
def test_a_key_that_envoy_does_not_take_is_refused(tmp_path: Path, key: Any, taken: bool) -> None:
    builder = x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.public_key(), 1)
    builder = builder.not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=9))
    made = builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    pair = Files(tmp_path)
    pair.certificate.parent.mkdir(parents=True, exist_ok=True)
    pair.certificate.write_bytes(made.public_bytes(Encoding.PEM))
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    if taken:
        assert read(pair).leaf == made.public_bytes(Encoding.DER)
        return
    with pytest.raises(CertificateError, match="Envoy takes no key of the kind") as caught:
        read(pair)
    assert "P-256" in caught.value.remedy


@pytest.mark.parametrize("end", [20, 200, -2, -15])
def test_a_chain_that_is_written_in_part_is_refused(files: Files, end: int) -> None:
    whole = files.certificate.read_text()
    signer = files.authority.read_text().strip()
    files.certificate.write_text(f"{whole}\n{signer[:end]}")
    with pytest.raises(CertificateError, match="cut off"):
        read(files)
    files.certificate.write_text(f"words before\n{whole}\n{signer}\n")
    assert read(files)


class Served:
    """A front door whose certificate a test sets, and what the supervisor says about it."""

    def __init__(self, files: Files, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = files
        self.now = datetime.now(UTC)
        self.renew()
        self.certificate: bytes | None = None
        self.said: list[str] = []
        settings: Any = SimpleNamespace(
            tls=True, tls_certificate=str(files.certificate), tls_key=str(files.key), envoy_files=run_dir
        )
        monkeypatch.setattr(renewal, "shown", lambda _: self.certificate)
        self.look = renewal.Renewal(settings, self.said.append)._look

    def renew(self) -> None:
        issue(self.files, ["localhost"], self.now, renew=True)

    def take(self) -> None:
        self.certificate = read(self.files, self.now).leaf


@pytest.fixture
def served(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    return Served(files, tmp_path / "run", monkeypatch)


def test_a_renewal_is_said_when_a_client_is_shown_it(served: Served) -> None:
    said, look = served.said, served.look
    look()  # Envoy does not listen yet
    served.take()
    look()
    assert said == []
    served.renew()
    for _ in range(renewal.LOOKS_BEHIND + 2):
        look()
    assert len(said) == 1
    assert "Envoy has not taken" in said[0]
    served.take()
    look()
    look()
    assert len(said) == 2
    assert "has a new certificate" in said[1]


def test_a_renewal_that_envoy_misses_because_its_folder_was_moved_is_found(served: Served, tmp_path: Path) -> None:
    served.take()
    served.look()
    (tmp_path / "run").rename(tmp_path / "moved")
    served.renew()
    for _ in range(renewal.LOOKS_BEHIND + 2):
        served.look()
    (words,) = served.said
    assert "Envoy has not taken the new one" in words
    assert "`llamesh down` and `llamesh up`" in words


def test_a_renewal_that_cannot_be_handed_over_is_said_once_with_the_remedy(served: Served, tmp_path: Path) -> None:
    served.take()
    served.look()
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").touch()
    served.renew()
    served.look()
    served.look()
    (words,) = served.said
    assert "certificate.json cannot be written: " in words
    assert "is a folder of this user" in words
    (tmp_path / "run").unlink()
    served.look()
    served.take()
    served.look()
    assert "has a new certificate" in served.said[-1]
