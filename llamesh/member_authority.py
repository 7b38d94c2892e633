"""Makes the authority of a mesh's members and issues their certificates, where nobody else does (cert-manager).

Invariant: keys are readable for this user only from the moment they exist. The three files of a member change together: they are in a new
folder, and a rename replaces the link to it, as Kubernetes does with a mounted Secret. The authority's key is in no folder of a member.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from llamesh import locks
from llamesh.certificates import CertificateError, pem_of_key
from llamesh.locations import make_private
from llamesh.member_certificates import (
    AUTHORITIES,
    CERTIFICATE,
    CURRENT,
    KEY,
    MemberCertificate,
    host_name,
    identity,
    present,
    read,
)
from llamesh.private_files import write_private

AUTHORITY = "authority"
"""Name of the folder with the authority's certificate and key, beside those of the members."""
AUTHORITY_LIFE = timedelta(days=365)
LIFE = timedelta(hours=24)
"""Default life of a member's certificate: a stolen one is of use until it expires, as there is no list of revoked ones."""
MIN_LIFE = timedelta(hours=1)
"""Shortest life that the command gives: connections are made anew every ten minutes, and the last third of the life is for renewals."""
TRUST_DELAY = timedelta(minutes=10)
"""How long a new authority is only trusted before it signs: until then every member has read it, if all certificates are issued again."""
_SKEW = timedelta(minutes=5)
"""Clocks of other machines may be slow."""
_MADE = re.compile(r"\.\.[0-9a-f]{16}")
"""How a folder is named that the link CURRENT leads to, or has led to."""
OLD_KEY = "old.key"
"""The key of the earlier authority, which signs until the new one does."""


class MemberAuthority:
    """The authority in a folder, which has one folder for each member beside it."""

    def __init__(self, folder: Path, domain: str) -> None:
        self._folder = folder
        self._domain = domain

    def issue(
        self, member: str, now: datetime, life: timedelta | None = None, *, renew: bool = False, spread: bool = True
    ) -> MemberCertificate:
        """Return the present certificate of a member, after issuing a new one if two thirds of its life have passed or it cannot be used.

        `life`: that of a new one; None: that of the present one, or LIFE if there is none. `renew`: issue a new one in any case.
        `spread`: all members trust the newest authority. If not, the earlier one signs, while it is valid.
        OSError if a file cannot be written; CertificateError if the authority cannot sign.
        """
        with self._alone():
            authorities = self._authorities(now)
            if _is_due(authorities[0].not_valid_before_utc, authorities[0].not_valid_after_utc, now):
                authorities = self._make(now, authorities)
            place = self._folder / member
            with suppress(CertificateError):
                found = read(place, self._domain, member, now)
                due = _is_due(found.begins, found.ends, now) or found.authorities != _pem_of(authorities)
                if not due and not renew:
                    return found
                life = life or _life_of(found)
            signer, signing = self._signer(authorities, now, spread)
            chain, key = _signed(self._domain, member, signer, signing, now, life or LIFE)
            replace_files(place, {CERTIFICATE: chain, KEY: key, AUTHORITIES: _pem_of(authorities)})
            return read(place, self._domain, member, now)

    def replace_authority(self, now: datetime) -> bool:
        """Make a new authority, unless the last one does not sign yet; return whether it did.

        The new one is trusted by members that get a certificate from now on, and signs after TRUST_DELAY. The earlier one stays trusted
        until the next replacement.
        """
        with self._alone():
            before = self._authorities(now)
            if len(before) > 1 and not _signs(before[0], now):
                return False
            self._make(now, before)
            return True

    def _authorities(self, now: datetime) -> list[Any]:
        """Return the trusted authorities, the newest first. The first call makes one."""
        from cryptography import x509

        place = self._folder / AUTHORITY
        if not place.exists():
            return self._make(now, [])
        try:
            found = x509.load_pem_x509_certificates((present(place) / AUTHORITIES).read_bytes())
        except (OSError, ValueError) as error:
            raise _unusable(place, error) from error
        if found[0].not_valid_after_utc < now:
            raise CertificateError(f"the authority in {place} has expired", f"remove {place} and issue all again")
        return found

    def _signer(self, authorities: list[Any], now: datetime, spread: bool) -> tuple[Any, Any]:
        """Return the authority that signs now, and its key."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        old = len(authorities) > 1 and not _signs(authorities[0], now)
        if len(authorities) > 1 and not spread and now < authorities[1].not_valid_after_utc:
            old = True
        place = self._folder / AUTHORITY
        try:
            key: Any = load_pem_private_key((present(place) / (OLD_KEY if old else KEY)).read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise _unusable(place, error) from error
        return authorities[1 if old else 0], key

    def _make(self, now: datetime, before: list[Any]) -> list[Any]:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"members of {self._domain}"[:64])])
        made = (
            _builder(name, name, key, now, now + AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        place = self._folder / AUTHORITY
        found = [made, *before[:1]]
        old = {OLD_KEY: (present(place) / KEY).read_bytes()} if before else {}
        replace_files(place, {AUTHORITIES: _pem_of(found), KEY: pem_of_key(key), **old})
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process issues certificates in the folder."""
        folder = os.open(make_private(self._folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            locks.wait(folder)
            yield
        finally:
            os.close(folder)


def replace_files(folder: Path, files: dict[str, bytes]) -> None:
    """Replace files of a folder in one step: each is a link through CURRENT, which is renamed to lead to the new ones."""
    made = f"..{os.urandom(8).hex()}"
    make_private(folder)
    for name, content in files.items():
        write_private(make_private(folder / made) / name, content)
    _link(folder / CURRENT, made)
    for name in files:
        if not (folder / name).is_symlink():
            _link(folder / name, f"{CURRENT}/{name}")
    for earlier in folder.iterdir():
        if _MADE.fullmatch(earlier.name) and earlier.name != made:
            shutil.rmtree(earlier, ignore_errors=True)


def _link(path: Path, target: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    unfinished.symlink_to(target)
    unfinished.replace(path)


def _is_due(begins: datetime, ends: datetime, now: datetime) -> bool:
    return now >= begins + (ends - begins) * 2 / 3


def _life_of(found: MemberCertificate) -> timedelta:
    whole = found.ends - found.begins
    return whole - _SKEW if whole > 2 * _SKEW else whole


def _signs(authority: Any, now: datetime) -> bool:
    return bool(now >= authority.not_valid_before_utc + _SKEW + TRUST_DELAY)


def _unusable(place: Path, error: Exception) -> CertificateError:
    words = getattr(error, "strerror", None) or str(error)
    return CertificateError(
        f"the authority in {place} cannot sign: {words}", f"restore {place}, or remove it and issue all again"
    )


def _signed(domain: str, member: str, signer: Any, signing: Any, now: datetime, life: timedelta) -> tuple[bytes, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.UniformResourceIdentifier(identity(domain, member)), x509.DNSName(host_name(domain, member))]
    purposes = [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, member)])
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    made = (
        _builder(subject, signer.subject, key, now, min(now + life, signer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(authority_id, critical=False)
        .sign(signing, hashes.SHA256())
    )
    return _pem_of([made]), pem_of_key(key)


def _builder(subject: Any, issuer: Any, key: Any, now: datetime, last: datetime) -> Any:
    from cryptography import x509

    begins = now - min(_SKEW, (last - now) / 2)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(last)
    )


def _usage(*allowed: str) -> Any:
    from cryptography import x509

    words = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    more = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{word: word in allowed for word in (*words, *more)})


def _pem_of(certificates: list[Any]) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)
