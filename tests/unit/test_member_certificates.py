"""Certificates of members are issued in time, trust is spread before it is used, and a chain from elsewhere is checked to its end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from llamesh.certificates import CertificateError
from llamesh.kit.config import Settings
from llamesh.member_authority import AUTHORITY, AUTHORITY_LIFE, LIFE, TRUST_DELAY, MemberAuthority, replace_files
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY, read

NOW = datetime(2027, 1, 1, 12, tzinfo=UTC)
DOMAIN = "mesh.test"


@pytest.fixture
def authority(tmp_path: Path) -> MemberAuthority:
    return MemberAuthority(tmp_path, DOMAIN)


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(authority: MemberAuthority) -> None:
    first = authority.issue("gateway", NOW)
    assert first.ends - NOW == LIFE
    assert authority.issue("gateway", NOW + LIFE * 0.65) == first
    second = authority.issue("gateway", NOW + LIFE * 0.67)
    assert second.ends == NOW + LIFE * 1.67
    assert authority.issue("gateway", NOW + LIFE * 10).begins > second.ends, "also if the last one has expired"


def test_a_renewed_certificate_lives_as_long_as_the_one_before(authority: MemberAuthority) -> None:
    now = NOW
    authority.issue("gateway", now, timedelta(hours=6))
    for _ in range(5):
        now += timedelta(hours=5)
        assert authority.issue("gateway", now).ends - now == timedelta(hours=6)


def test_files_are_private_and_replaced_together(authority: MemberAuthority, tmp_path: Path) -> None:
    authority.issue("gateway", NOW)
    folder = tmp_path / "gateway"
    opened = (folder / "..data").resolve()
    authority.issue("gateway", NOW, renew=True)
    assert (folder / "..data").resolve() != opened
    assert not opened.exists(), "the earlier files are removed"
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith("..")) == [
        AUTHORITIES,
        CERTIFICATE,
        KEY,
    ]
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder / "..data").iterdir()}
    assert modes == dict.fromkeys((AUTHORITIES, CERTIFICATE, KEY), 0o600)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path, folder, folder / "..data")} == {0o700}
    assert not (folder / "..data" / "old.key").exists()


def test_a_new_authority_is_trusted_by_all_before_it_signs(authority: MemberAuthority) -> None:
    members = ("gateway", "contract")
    before = {member: authority.issue(member, NOW) for member in members}
    old = before["gateway"].authorities
    assert authority.replace_authority(NOW)
    assert not authority.replace_authority(NOW + TRUST_DELAY / 2), "one replacement at a time"
    trusting = {member: authority.issue(member, NOW + timedelta(minutes=1)) for member in members}
    for found in trusting.values():
        assert found.authorities.endswith(old)
        assert len(x509.load_pem_x509_certificates(found.authorities)) == 2
        assert is_signed_by(found.chain, old), "those that do not trust the new one yet accept it"
    now = NOW + TRUST_DELAY + timedelta(minutes=1)
    later = authority.issue("gateway", now, renew=True)
    assert not is_signed_by(later.chain, old)
    assert later.authorities.endswith(old), "certificates of the old one are still accepted"
    assert authority.replace_authority(now)
    third = authority.issue("gateway", now)
    assert old not in third.authorities


def test_an_authority_is_replaced_in_time_by_itself(authority: MemberAuthority) -> None:
    first = authority.issue("gateway", NOW)
    later = authority.issue("gateway", NOW + AUTHORITY_LIFE * 0.7)
    assert later.authorities.endswith(first.authorities)
    assert later.authorities != first.authorities


def is_signed_by(chain: bytes, authority: bytes) -> bool:
    """Whether the first certificate of an authority's file has signed another."""
    try:
        x509.load_pem_x509_certificate(chain).verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except Exception:
        return False
    return True


def test_an_authority_that_cannot_be_read_is_named_and_not_replaced(authority: MemberAuthority, tmp_path: Path) -> None:
    authority.issue("gateway", NOW)
    (tmp_path / AUTHORITY / "..data" / KEY).unlink()
    with pytest.raises(CertificateError, match=r"the authority in .* cannot sign"):
        authority.issue("gateway", NOW, renew=True)
    assert read(tmp_path / "gateway", DOMAIN, "gateway", NOW)


def test_the_chain_of_an_intermediate_authority_is_accepted_to_its_end(tmp_path: Path) -> None:
    """cert-manager puts those between the member and the authority into tls.crt."""
    root, root_key = make("root")
    middle, middle_key = make("middle", (root, root_key))
    leaf, key = make("gateway", (middle, middle_key), leaf=True)
    other, _ = make("other")
    replace_files(tmp_path / "good", files([leaf, middle], key, [root]))
    replace_files(tmp_path / "cut", files([leaf], key, [root]))
    replace_files(tmp_path / "strange", files([leaf, middle], key, [other]))
    assert read(tmp_path / "good", DOMAIN, "gateway", NOW).ends
    for folder in ("cut", "strange"):
        with pytest.raises(CertificateError, match=r"no authority in ca\.crt has signed"):
            read(tmp_path / folder, DOMAIN, "gateway", NOW)


def make(name: str, signer: tuple | None = None, *, leaf: bool = False) -> tuple:
    """A certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer, signing = signer or (None, key)
    builder = (
        x509.CertificateBuilder(issuer.subject if issuer else subject, subject, key.public_key(), 7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=not leaf, path_length=None), critical=True)
    )
    if leaf:
        names = [x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/{name}"), x509.DNSName(f"{name}.{DOMAIN}")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signing, hashes.SHA256()), key


def files(chain: list, key: ec.EllipticCurvePrivateKey, authorities: list) -> dict[str, bytes]:
    """The three files of a member."""
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        CERTIFICATE: b"".join(each.public_bytes(pem) for each in chain),
        KEY: private,
        AUTHORITIES: b"".join(each.public_bytes(pem) for each in authorities),
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("gateway", "is not HOST:PORT"),
        ("envoy=localhost:1", "'envoy' is none of gateway"),
        ("gateway=http://a:1", "is not HOST:PORT"),
        ("gateway=a:1,contract=b", "b is not HOST:PORT"),
    ],
)
def test_addresses_that_cannot_be_meant_are_refused(monkeypatch: pytest.MonkeyPatch, value: str, words: str) -> None:
    monkeypatch.setenv("LLAMESH_MEMBER_ADDRESSES", value)
    with pytest.raises(ValueError, match=words):
        Settings(_env_file=None)  # type: ignore[call-arg]


def test_a_member_listens_at_its_own_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_MEMBER_ADDRESSES", "gateway=gateway.llm.svc:9000, contract=[::1]:9001")
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    assert (settings.listens_at("contract"), settings.listens_at("download")) == ("[::1]:9001", "")
    for bind, address in (("0.0.0.0", "0.0.0.0:9000"), ("[::]", "[::]:9000"), ("::", "[::]:9000")):
        monkeypatch.setenv("LLAMESH_MEMBER_BIND", bind)
        assert Settings(_env_file=None).listens_at("gateway") == address  # type: ignore[call-arg]
