"""What Envoy is told about the tokens that it must ask Admission about: a digest of ids whose size does not follow their number.

A blocked Bloom filter. An id's hash names one bucket and four bits in it; an id whose four bits are set is asked about. The hash is
FNV-1a with 32 bits, the same as in envoy/lua/asked.lua; both are held against tests/unit/digest_vectors.json. A bucket is text, because
Envoy's metadata is: each character holds six bits and is one of the 64 from "0" on.

Invariant: every id that is in is asked about. One that is not costs a question at times: 0.1 % with twelve bits for each id, more
beyond `MOST_BUCKETS`, and Admission answers it by what is true.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CHARACTERS = 342
BITS = 6 * CHARACTERS
"""Of one bucket. A request looks into as many buckets as its token has ids."""
ROUNDS = 4
LEAST_BUCKETS = 16
MOST_BUCKETS = 256
"""Then the text has 86 KiB, and no further id makes it longer."""
BITS_EACH = 12
"""There are twice as many buckets where an id would have fewer bits."""

_ZERO = ord("0")


def fnv1a(text: str) -> int:
    """The 32-bit FNV-1a hash of a text in UTF-8."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def place(value: int, buckets: int) -> tuple[int, tuple[int, ...]]:
    """The bucket of a hash and its bits there."""
    rest, first = divmod(value, BITS)
    bucket, step = divmod(rest, BITS - 1)
    return bucket % buckets, tuple((first + turn * (step + 1)) % BITS for turn in range(ROUNDS))


@dataclass(frozen=True, slots=True)
class Told:
    """Metadata for the route filter. Envoy copies the metadata that a script asks for, with each request: so the routes have the version
    only, and the virtual host what a worker reads once for each version."""

    route: Mapping[str, str | bool] = field(default_factory=dict)
    host: Mapping[str, str | int] = field(default_factory=dict)


NOTHING = Told()
"""Admission is asked about no token."""
EVERYTHING = Told({"ask tokens": True})
"""Admission is asked about every token."""


class Digest:
    """The digest of a set of ids that changes. An id that is added costs the same however many there are."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}
        self._buckets: list[bytearray] = []

    def set(self, ids: Iterable[str]) -> None:
        """These are all ids now."""
        present = dict.fromkeys(ids)
        self._hashes = {each: self._hashes.get(each) or fnv1a(each) for each in present}
        self._fill()

    def add(self, ids: Iterable[str]) -> None:
        """These are ids too. It costs the same however many there are already."""
        added = {each: fnv1a(each) for each in ids if each not in self._hashes}
        self._hashes |= added
        if _buckets(len(self._hashes)) != len(self._buckets):
            self._fill()
        else:
            self._put(added.values())

    def told(self) -> Told:
        """What the route filter is told of it."""
        if not self._hashes:
            return NOTHING
        version = hashlib.sha256(b"".join(self._buckets)).hexdigest()[:16]
        host: dict[str, str | int] = {"buckets": len(self._buckets)}
        for number, bucket in enumerate(self._buckets):
            host[f"bucket {number}"] = bucket.decode("ascii")
        return Told({"asked": version}, host)

    def _fill(self) -> None:
        self._buckets = [bytearray([_ZERO]) * CHARACTERS for _ in range(_buckets(len(self._hashes)))]
        self._put(self._hashes.values())

    def _put(self, hashes: Iterable[int]) -> None:
        for value in hashes:
            bucket, bits = place(value, len(self._buckets))
            text = self._buckets[bucket]
            for bit in bits:
                text[bit // 6] = _ZERO + (text[bit // 6] - _ZERO | 1 << bit % 6)


def _buckets(ids: int) -> int:
    buckets = LEAST_BUCKETS
    while buckets < MOST_BUCKETS and ids * BITS_EACH > buckets * BITS:
        buckets *= 2
    return buckets
