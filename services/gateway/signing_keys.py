"""Keys that sign and verify tokens: one shared secret (HS256), or key pairs that are rotated (EdDSA, RS256).

Invariants: a key signs only after verifiers had time to fetch it, and is published until the last token that it signed has expired. Key
pairs are in the database, encrypted with the mesh's secret, so that all gateways sign with the same. The secret never leaves the mesh.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from sqlalchemy import String, Text, delete, select
from sqlalchemy.orm import Mapped, mapped_column

from llamesh.kit.config import Settings
from llamesh.kit.database import Base, Database, Timestamp, is_unavailable
from llamesh.kit.errors import MeshError, StartRefused
from llamesh.kit.secret import mesh_secret

PUBLISH_LEAD = timedelta(seconds=60)
"""How long a new key pair is published before it signs; longer than the interval at which the controller fetches keys."""

SLACK = timedelta(days=1)
"""Margin on the stored expiry of a key, so that it is written once a day instead of with each token."""


_ENCRYPTED = "BEGIN ENCRYPTED PRIVATE KEY"

PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


class SigningKey(Base):
    """Row of a key pair."""

    __tablename__ = "signing_keys"

    kid: Mapped[str] = mapped_column(String(32), primary_key=True)
    algorithm: Mapped[str] = mapped_column(String(8))
    private_pem: Mapped[str] = mapped_column(Text)
    """Private key in PKCS 8, encrypted unless an earlier release wrote it."""
    create_time: Mapped[datetime] = mapped_column(Timestamp)
    good_until: Mapped[datetime] = mapped_column(Timestamp)
    """No token that this key signed is valid after this time."""


_ALL = select(SigningKey).order_by(SigningKey.create_time, SigningKey.kid)


@dataclass(frozen=True, slots=True)
class KeySet:
    """A JSON Web Key Set (RFC 7517) and its version."""

    jwks_json: str
    version: str


class Signer(Protocol):
    """Signs tokens and publishes the keys that verify them."""

    async def sign(self, claims: Mapping[str, Any], expires: datetime) -> str:
        """Sign a token with these claims."""

    async def key_set(self) -> KeySet:
        """Return the keys that verify tokens now."""

    async def public_keys(self) -> Sequence[Mapping[str, str]]:
        """Return the keys of the key set that are not secret."""

    async def rotate(self) -> None:
        """Replace old keys and delete unused ones."""


class SharedSecret:
    """HS256 with one secret, as in the reference deployment. It is not rotated."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._kid = _digest("kid", secret)

    async def sign(self, claims: Mapping[str, Any], expires: datetime) -> str:
        """Sign a token with these claims."""
        return jwt.encode(dict(claims), self._secret, algorithm="HS256", headers={"kid": self._kid})

    async def key_set(self) -> KeySet:
        """Return the secret as a key of type `oct`."""
        key = HMACAlgorithm.to_jwk(self._secret, as_dict=True)
        return _key_set([{"kty": "oct", "k": key["k"], "kid": self._kid, "alg": "HS256", "use": "sig"}])

    async def public_keys(self) -> Sequence[Mapping[str, str]]:
        """Return nothing: the key that verifies could also sign."""
        return ()

    async def rotate(self) -> None:
        """Do nothing: the secret is a setting."""


class KeyPairs:
    """EdDSA or RS256 key pairs in the database, encrypted with `secret`. `now` is the clock; `new_id` makes the names of keys.

    During an outage of the database, the keys that were read last stay published.
    """

    def __init__(
        self,
        database: Database,
        algorithm: str,
        max_age: timedelta,
        secret: str,
        now: Callable[[], datetime],
        new_id: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._database = database
        self._algorithm = algorithm
        self._max_age = max_age
        self._now = now
        self._new_id = new_id
        self._vault = _Vault(secret)
        self._last: Sequence[Mapping[str, str]] | None = None

    async def sign(self, claims: Mapping[str, Any], expires: datetime) -> str:
        """Sign a token and store until when its key must be published."""
        async with self._database.begin() as session:
            keys = (await session.scalars(_newest_first(self._algorithm).with_for_update())).all()
            key = signs(keys, self._now())
            if key.good_until < expires:
                key.good_until = expires + SLACK
        private = self._vault.opened(key)
        return jwt.encode(dict(claims), private, algorithm=key.algorithm, headers={"kid": key.kid})

    async def key_set(self) -> KeySet:
        """Return all public keys, those of retired pairs and of an earlier algorithm included."""
        return _key_set(await self.public_keys())

    async def public_keys(self) -> Sequence[Mapping[str, str]]:
        """Return the same keys as JSON Web Keys."""
        try:
            async with self._database.read() as session:
                keys = (await session.scalars(_ALL)).all()
        except MeshError as error:
            if self._last is None or not is_unavailable(error):
                raise
            return self._last
        self._last = [_public(key, self._vault.opened(key)) for key in keys]
        return self._last

    async def rotate(self) -> None:
        """Create a key pair if there is none or the newest is old, delete those whose last token has expired, and encrypt the rest.

        Raises StartRefused if the keys were encrypted with another secret.
        """
        now = self._now()
        async with self._database.begin() as session:
            for key in (await session.scalars(_ALL.with_for_update())).all():
                key.private_pem = self._vault.closed(key)
            keys = (await session.scalars(_newest_first(self._algorithm).with_for_update())).all()
            if not keys or now - keys[0].create_time >= self._max_age:
                session.add(
                    SigningKey(
                        kid=self._new_id(),
                        algorithm=self._algorithm,
                        private_pem=self._vault.sealed(_new_private(self._algorithm)),
                        create_time=now,
                        good_until=now + self._max_age + PUBLISH_LEAD + SLACK,
                    )
                )
            used = {key.kid for key in keys[:1]} | ({signs(keys, now).kid} if keys else set())
            await session.execute(delete(SigningKey).where(SigningKey.good_until < now, SigningKey.kid.not_in(used)))


def signs(keys: Sequence[SigningKey], now: datetime) -> SigningKey:
    """Return the key to sign with: the newest that verifiers have, or the oldest if all are new. `keys` are sorted newest first."""
    return next((key for key in keys if now - key.create_time >= PUBLISH_LEAD), keys[-1])


def open_signer(settings: Settings, database: Database, now: Callable[[], datetime]) -> Signer:
    """Create the signer for JWT_ALGORITHM."""
    secret = mesh_secret(settings)
    if settings.jwt_algorithm == "HS256":
        return SharedSecret(secret)
    return KeyPairs(database, settings.jwt_algorithm, timedelta(days=settings.jwt_rotation_days), secret, now)


def _newest_first(algorithm: str) -> Any:
    return (
        select(SigningKey)
        .where(SigningKey.algorithm == algorithm)
        .order_by(SigningKey.create_time.desc(), SigningKey.kid)
    )


class _Vault:
    """Encrypts private keys with a secret. Decrypted keys are cached, because the key derivation of PKCS 8 is slow on purpose."""

    def __init__(self, secret: str) -> None:
        self._password = _digest("signing keys at rest", secret).encode()
        self._opened: dict[str, PrivateKey] = {}

    def sealed(self, private: PrivateKey) -> str:
        encryption = BestAvailableEncryption(self._password)
        return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()

    def closed(self, key: SigningKey) -> str:
        """Return the encrypted form of a key."""
        private = self.opened(key)
        return key.private_pem if _ENCRYPTED in key.private_pem else self.sealed(private)

    def opened(self, key: SigningKey) -> PrivateKey:
        private = self._opened.get(key.kid)
        if private is None:
            password = self._password if _ENCRYPTED in key.private_pem else None
            try:
                loaded = load_pem_private_key(key.private_pem.encode(), password=password)
            except ValueError as error:
                raise StartRefused(
                    f"the signing key {key.kid} in the database was encrypted with another secret: set JWT_SECRET to the former one, or "
                    "put LLAMESH_HOME/secrets/jwt_secret back; to end all tokens instead, delete the rows of the table signing_keys"
                ) from error
            assert isinstance(loaded, ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey), "only these two kinds are made"
            private = self._opened[key.kid] = loaded
        return private


def _new_private(algorithm: str) -> PrivateKey:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _public(key: SigningKey, private: PrivateKey) -> dict[str, str]:
    if isinstance(private, ed25519.Ed25519PrivateKey):
        jwk = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    else:
        jwk = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
    return {
        **{name: str(jwk[name]) for name in ("kty", "crv", "x", "n", "e") if name in jwk},
        "kid": key.kid,
        "alg": key.algorithm,
        "use": "sig",
    }


def _key_set(keys: Sequence[Mapping[str, Any]]) -> KeySet:
    text = json.dumps({"keys": list(keys)}, separators=(",", ":"))
    return KeySet(text, _digest("version", text))


def _digest(purpose: str, text: str) -> str:
    return hashlib.sha256(f"llamesh {purpose}\0{text}".encode()).hexdigest()[:16]
