"""Key pairs: replaced when old, named before they sign and until their last token ends; the one secret is made once."""

from __future__ import annotations

import asyncio
import json
import stat
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import select

from llamesh.kit.database import open_database
from llamesh.kit.database_failures import unreachable
from llamesh.kit.errors import MeshError, StartRefused
from llamesh.kit.secret import kept_secret
from services.gateway.signing_keys import PUBLISH_LEAD, KeyPairs, SigningKey, open_signer
from tests.conftest import SECRET

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
MONTH = timedelta(days=30)


class World:
    """A database and a clock that a test turns."""

    def __init__(self, database) -> None:
        self.database = database
        self.time = START
        self._names = iter(f"key{number}" for number in range(100))

    def now(self) -> datetime:
        return self.time

    def signer(self, algorithm: str = "EdDSA", secret: str = SECRET) -> KeyPairs:
        return KeyPairs(self.database, algorithm, MONTH, secret, self.now, lambda: next(self._names))

    async def token(self, signer: KeyPairs, lifetime: timedelta) -> str:
        end = self.time + lifetime
        return await signer.sign({"sub": "ada", "aud": "llamesh", "exp": int(end.timestamp())}, end)


async def named(signer: KeyPairs) -> dict[str, dict[str, str]]:
    return {key["kid"]: key for key in json.loads((await signer.key_set()).jwks_json)["keys"]}


def signed_by(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


@pytest.fixture
async def world(settings):
    database = open_database(settings, "gateway")
    await database.migrate("services.gateway")
    yield World(database)
    await database.close()


@pytest.mark.parametrize(("algorithm", "members"), [("EdDSA", {"crv", "x"}), ("RS256", {"n", "e"})])
async def test_the_named_key_verifies_and_shows_nothing_private(world, algorithm, members) -> None:
    signer = world.signer(algorithm)
    await signer.rotate()
    token = await world.token(signer, timedelta(days=1))
    (key,) = (await named(signer)).values()
    assert set(key) == {"kty", "kid", "alg", "use"} | members
    assert (key["alg"], key["use"], key["kid"]) == (algorithm, "sig", "key0")
    options = {"verify_exp": False}
    assert jwt.decode(token, jwt.PyJWK(key), [algorithm], audience="llamesh", options=options)["sub"] == "ada"


async def test_a_new_key_is_named_before_it_signs(world) -> None:
    signer = world.signer()
    await signer.rotate()
    version = (await signer.key_set()).version
    world.time += MONTH - timedelta(seconds=1)
    await signer.rotate()
    assert (await signer.key_set()).version == version
    world.time += timedelta(seconds=1)
    await signer.rotate()
    assert set(await named(signer)) == {"key0", "key1"}
    assert (await signer.key_set()).version != version
    assert signed_by(await world.token(signer, timedelta(days=1))) == "key0"
    world.time += PUBLISH_LEAD
    assert signed_by(await world.token(signer, timedelta(days=1))) == "key1"
    await signer.rotate()
    assert set(await named(signer)) == {"key0", "key1"}


async def test_a_key_is_named_until_its_last_token_has_ended(world) -> None:
    signer = world.signer()
    await signer.rotate()
    await world.token(signer, timedelta(days=365))
    await world.token(signer, timedelta(days=1))
    for _ in range(12):
        world.time += MONTH
        await signer.rotate()
        assert "key0" in await named(signer)
    world.time += MONTH
    await signer.rotate()
    assert "key0" not in await named(signer)
    assert len(await named(signer)) <= 3


async def test_a_change_of_algorithm_keeps_old_tokens_good(world) -> None:
    await world.signer("RS256").rotate()
    signer = world.signer("EdDSA")
    await signer.rotate()
    assert {key["alg"] for key in (await named(signer)).values()} == {"RS256", "EdDSA"}
    assert signed_by(await world.token(signer, timedelta(days=1))) == "key1"


async def test_two_gateways_sign_with_the_same_key(world) -> None:
    first, second = world.signer(), world.signer()
    await first.rotate()
    await second.rotate()
    tokens = [await world.token(signer, timedelta(days=1)) for signer in (first, second)]
    assert {signed_by(token) for token in tokens} == {"key0"}
    assert await named(first) == await named(second)


async def test_the_secret_is_made_once_and_only_its_owner_reads_it(one_settings) -> None:
    made = await asyncio.gather(*(asyncio.to_thread(kept_secret, one_settings.home) for _ in range(8)))
    assert len(set(made)) == 1
    assert len(made[0]) >= 32
    folder = one_settings.home / "secrets"
    assert [path.name for path in folder.iterdir()] == ["jwt_secret"]
    assert stat.S_IMODE((folder / "jwt_secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    settings = one_settings.model_copy(update={"jwt_secret": None})
    database = open_database(settings, "gateway")
    tokens = {await open_signer(settings, database, lambda: START).sign({"sub": "ada"}, START) for _ in range(2)}
    assert len(tokens) == 1
    assert jwt.decode(tokens.pop(), made[0], algorithms=["HS256"])["sub"] == "ada"
    await database.close()


async def test_private_keys_are_encrypted_with_the_secret_and_old_ones_become_so(world) -> None:
    signer = world.signer()
    await signer.rotate()
    token = await world.token(signer, timedelta(days=1))
    async with world.database.begin() as session:
        key = (await session.scalars(select(SigningKey))).one()
        assert "BEGIN ENCRYPTED PRIVATE KEY" in key.private_pem
        # As an earlier release kept it.
        private = ed25519.Ed25519PrivateKey.generate()
        key.private_pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    again = world.signer()
    assert await world.token(again, timedelta(days=1)) != token
    await again.rotate()
    async with world.database.begin() as session:
        assert "BEGIN ENCRYPTED PRIVATE KEY" in (await session.scalars(select(SigningKey))).one().private_pem
    assert await named(world.signer()) == await named(again)
    with pytest.raises(StartRefused, match="JWT_SECRET"):
        await world.signer(secret="another" * 8).rotate()


async def test_keys_are_named_while_the_database_is_away(world, monkeypatch) -> None:
    signer = world.signer()
    await signer.rotate()
    before = await signer.key_set()
    monkeypatch.setattr(world.database, "read", gone)
    assert await signer.key_set() == before
    with pytest.raises(MeshError):
        await world.signer().key_set()


@asynccontextmanager
async def gone():
    raise unreachable()
    yield
