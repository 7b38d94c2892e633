"""A request that removes an object of Quant's bucket is never abandoned, and keeps the ownership for a bounded time only.

The store makes its requests in threads, as the S3 client does: nobody can stop one that has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from llamesh.kit.errors import MeshError
from llamesh.kit.objects import StoreUnavailableError
from services.quant.variants import Variants
from tests.contract.patience import PATIENCE, until

KEY = "models/x.gguf"


class FakeDatabase:
    """FAKE: a database whose owner is this process; counts the transactions that keep the ownership."""

    def __init__(self) -> None:
        self.present = self.ended = self.most = 0

    @contextlib.asynccontextmanager
    async def owned(self) -> AsyncIterator[float]:
        self.present += 1
        self.most = max(self.most, self.present)
        try:
            yield 0.01
        finally:
            self.present -= 1
            self.ended += 1


class HangingStore:
    """FAKE: a bucket whose first request hangs in a thread until `answers` is set. It refuses all with `error`, if that is set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.error: Exception | None = None
        self.began = 0
        self.removed: list[str] = []

    async def remove_staged(self, key: str) -> None:
        await asyncio.to_thread(self._request, "staged bytes")

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._request, key)

    def _request(self, name: str) -> None:
        self.began += 1
        assert self.answers.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.removed.append(name)


Parts = tuple[FakeDatabase, HangingStore, Variants]


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    database, store = FakeDatabase(), HangingStore()
    yield database, store, Variants(cast("Any", database), cast("Any", store))
    # The threads of a test that has failed end too.
    store.answers.set()


async def test_a_removal_waits_for_a_request_that_outlasts_its_transaction(parts: Parts) -> None:
    database, store, variants = parts
    removal = asyncio.create_task(variants.remove_object(KEY))
    await until(lambda: database.ended)
    assert not removal.done()
    assert store.removed == []
    store.answers.set()
    await removal
    assert store.removed == ["staged bytes", KEY, "models/x.json"]
    assert database.ended == 3


@pytest.mark.parametrize("times", [1, 2])
async def test_a_removal_that_is_cancelled_ends_with_its_request(parts: Parts, times: int) -> None:
    database, store, variants = parts
    removal = asyncio.create_task(variants.remove_object(KEY))
    await until(lambda: store.began)
    for _ in range(times):
        removal.cancel()
        await asyncio.sleep(0)
    await until(lambda: database.ended)
    assert not removal.done()
    store.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await removal
    assert store.removed == ["staged bytes"]


async def test_a_request_that_fails_late_is_said(parts: Parts) -> None:
    database, store, variants = parts
    store.error = StoreUnavailableError("cannot delete x")
    removal = asyncio.create_task(variants.remove_object(KEY))
    await until(lambda: database.ended)
    store.answers.set()
    with pytest.raises(MeshError, match="cannot delete x"):
        await removal


async def test_many_removals_take_one_connection_to_the_database(parts: Parts) -> None:
    database, store, variants = parts
    removals = [asyncio.create_task(variants.remove_object(f"models/{number}.gguf")) for number in range(20)]
    await until(lambda: database.ended)
    assert (database.present, store.began) == (0, 1)
    store.answers.set()
    await asyncio.gather(*removals)
    assert (database.most, len(store.removed)) == (1, 60)
