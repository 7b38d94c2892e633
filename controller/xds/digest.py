"""Digest of the ids that Envoy must ask Admission about. Its size is bounded for any number of ids.

It is a blocked Bloom filter. The hash of an id selects one bucket and four bits in it; Envoy asks about an id if its four bits are set.
The hash is 32-bit FNV-1a, the same as in envoy/lua/admission_digest.lua; tests/unit/digest_vectors.json checks both. A bucket is a text,
because Envoy's metadata holds text: each character encodes six bits as one of the 64 characters from "0" on.

Invariant: Envoy asks about every id of the digest. It also asks about 0.1 % of the other ids with twelve bits for each id, and about more
of them beyond `MAX_BUCKETS`. Such a question is harmless, because Admission decides by its own state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CHARACTERS = 342
BITS = 6 * CHARACTERS
"""Bits of one bucket. A request reads one bucket for each id of its token."""
ROUNDS = 4
MIN_BUCKETS = 16
MAX_BUCKETS = 256
"""With this number of buckets the digest has 86 KiB, its maximum."""
BITS_EACH = 12
"""The number of buckets is doubled while there would be fewer bits for each id."""

_ZERO = ord("0")


def fnv1a(text: str) -> int:
    """Return the 32-bit FNV-1a hash of a text in UTF-8."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def place(value: int, buckets: int) -> tuple[int, tuple[int, ...]]:
    """Return the bucket of a hash, and its bits in that bucket."""
    rest, first = divmod(value, BITS)
    bucket, step = divmod(rest, BITS - 1)
    return bucket % buckets, tuple((first + turn * (step + 1)) % BITS for turn in range(ROUNDS))


@dataclass(frozen=True, slots=True)
class DigestMetadata:
    """Metadata for the route filter. Envoy copies metadata whenever a script reads it: so routes, which every request reads, have only the
    version, and the virtual host has the buckets, which a worker reads once for each version."""

    route: Mapping[str, str | bool] = field(default_factory=dict)
    host: Mapping[str, str | int] = field(default_factory=dict)


NOTHING = DigestMetadata()
"""Envoy asks Admission about no token."""
EVERYTHING = DigestMetadata({"ask tokens": True})
"""Envoy asks Admission about every token."""


class Digest:
    """The digest of a set of ids. The cost of adding an id does not depend on their number."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}
        self._buckets: list[bytearray] = []

    def set(self, ids: Iterable[str]) -> None:
        """Replace all ids."""
        present = dict.fromkeys(ids)
        self._hashes = {each: self._hashes.get(each) or fnv1a(each) for each in present}
        self._fill()

    def add(self, ids: Iterable[str]) -> None:
        """Add ids."""
        added = {each: fnv1a(each) for each in ids if each not in self._hashes}
        self._hashes |= added
        if _buckets(len(self._hashes)) != len(self._buckets):
            self._fill()
        else:
            self._put(added.values())

    def metadata(self) -> DigestMetadata:
        """Return the metadata for the route filter."""
        if not self._hashes:
            return NOTHING
        version = hashlib.sha256(b"".join(self._buckets)).hexdigest()[:16]
        host: dict[str, str | int] = {"buckets": len(self._buckets)}
        for number, bucket in enumerate(self._buckets):
            host[f"bucket {number}"] = bucket.decode("ascii")
        return DigestMetadata({"digest": version}, host)

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
    buckets = MIN_BUCKETS
    while buckets < MAX_BUCKETS and ids * BITS_EACH > buckets * BITS:
        buckets *= 2
    return buckets
