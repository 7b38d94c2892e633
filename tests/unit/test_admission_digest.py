"""The digest of ids that Envoy must ask about: Python and Lua agree, no id is missing, few ids are extra, and the size is bounded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from lupa.luajit21 import LuaRuntime

from controller.xds import digest, scripts
from controller.xds.digest import Digest

VECTORS = json.loads((Path(__file__).parent / "digest_vectors.json").read_text())


class LuaDigest:
    """envoy/lua/admission_digest.lua in LuaJIT."""

    def __init__(self) -> None:
        self._lua = LuaRuntime(encoding=None)
        self._lua.execute(scripts.modules("admission_digest").encode())
        self._module = self._lua.eval(b'require("admission_digest")')
        self._wrap = self._lua.eval(
            b"function(values) return function() return { get = function(_, name) return values[name] end } end end"
        )

    def hash(self, text: str) -> int:
        return int(self._module[b"hash"](text.encode()))

    def digest(self, made: Digest) -> Any:
        told = made.metadata()
        given = {
            key.encode(): value.encode() if isinstance(value, str) else float(value) for key, value in told.host.items()
        }
        version = str(told.route["digest"]).encode()
        return self._module[b"digest"](version, self._wrap(self._lua.table_from(given)))

    def contains(self, made: Any, text: str) -> bool:
        return bool(self._module[b"contains"](made, text.encode()))


@pytest.fixture(scope="module")
def lua_digest() -> LuaDigest:
    return LuaDigest()


def ids(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [f"key_{chance.getrandbits(64):016x}" for _ in range(count)]


def test_both_languages_hash_alike(lua_digest: LuaDigest) -> None:
    assert {text: digest.fnv1a(text) for text in VECTORS["hashes"]} == VECTORS["hashes"]
    assert {text: lua_digest.hash(text) for text in VECTORS["hashes"]} == VECTORS["hashes"]
    # Test vectors of the authors of FNV.
    assert (digest.fnv1a(""), digest.fnv1a("a"), digest.fnv1a("foobar")) == (0x811C9DC5, 0xE40C292C, 0xBF9CF968)


@pytest.mark.parametrize("vector", VECTORS["places"], ids=lambda vector: f"{vector['id']} in {vector['buckets']}")
def test_an_id_has_the_same_bits_everywhere(vector: dict[str, Any]) -> None:
    place = digest.place(digest.fnv1a(vector["id"]), vector["buckets"])
    assert place == (vector["bucket"], tuple(vector["bits"]))


@pytest.mark.parametrize("count", [1, 1000, 20_000])
def test_the_digest_contains_every_added_id_and_few_others(lua_digest: LuaDigest, count: int) -> None:
    known, others = ids(count, 1), ids(20_000, 2)
    made = Digest()
    made.set(known[: count // 2])
    made.add(known[count // 2 :])
    digest_ = lua_digest.digest(made)
    assert all(lua_digest.contains(digest_, each) for each in known)
    wrong = sum(lua_digest.contains(digest_, each) for each in others) / len(others)
    assert wrong < 0.01


def test_an_empty_digest_publishes_no_metadata() -> None:
    made = Digest()
    assert made.metadata() == digest.NOTHING
    made.set(["key_1"])
    assert made.metadata() != digest.NOTHING
    made.set([])
    assert made.metadata() == digest.NOTHING


def test_the_digest_does_not_contain_a_removed_key(lua_digest: LuaDigest) -> None:
    made = Digest()
    made.set(["key_1", "key_2"])
    made.set(["key_2"])
    digest_ = lua_digest.digest(made)
    assert (lua_digest.contains(digest_, "key_1"), lua_digest.contains(digest_, "key_2")) == (False, True)


def test_the_digest_is_bounded_however_many_ids_there_are() -> None:
    made = Digest()
    made.set(ids(1, 1))
    few = made.metadata().host
    made.set(ids(1000, 1))
    assert sum(len(str(value)) for value in made.metadata().host.values()) == sum(
        len(str(value)) for value in few.values()
    )
    made.set(ids(100_000, 1))
    most = made.metadata().host
    assert len(most) == 1 + digest.MAX_BUCKETS
    made.add(ids(150_000, 1))
    assert len(made.metadata().host) == len(most)
    assert sum(len(str(value)) for value in most.values()) < 90_000
