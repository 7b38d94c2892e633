"""A download that failed because its source or the store was away keeps its parts: a new start fetches only what is missing."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
from aiohttp import web

from llamesh.kit.database import Database
from llamesh.kit.objects.parted_file import PartedFile
from llamesh.v1 import download_pb2 as pb
from services.download.sources import HttpsSource, SourceGoneError, SourceRefusedError
from tests.contract.download.conftest import OpenWith, Service
from tests.contract.download.in_parts import AGAIN, DATA, DIGEST, NEVER, PARALLEL, PARTS, nothing_left
from tests.contract.download.journal import HEADER, counted
from tests.contract.ranged_source import Answer, RangedServer


def away(_: web.Request, answer: Answer) -> None:
    """The source refuses every request."""
    answer.status, answer.body, answer.length, answer.ranged = 404, b"", 0, False


def well(_: web.Request, answer: Answer) -> None:
    """The source answers as it does without faults."""


async def failed(service: Service, reason: str) -> None:
    found = await service.state("m1")
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, reason)


async def lose_source(service: Service, source: RangedServer) -> None:
    """Let m1, which has half of its parts, fail for its source."""
    await service.pause("m1")
    source.fault = away
    source.go_on_until(NEVER)
    await service.resume("m1")
    await failed(service, "SOURCE_REFUSED")
    source.fault = well


async def goes_on(service: Service, source: RangedServer, journal: Database) -> None:
    objects, parts = await counted(journal)
    assert (objects, parts >= PARTS // 2 - PARALLEL) == (1, True)
    assert (await service.start("m1", source.url)).bytes_total == len(DATA)
    found = await service.state("m1")
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, DIGEST)
    assert source.sent <= len(DATA) + HEADER + 2 * AGAIN


async def test_a_download_whose_source_was_away_goes_on(half: Service, source: RangedServer, journal: Database) -> None:
    await lose_source(half, source)
    await goes_on(half, source, journal)


async def test_a_download_whose_store_refused_it_goes_on(
    half: Service, source: RangedServer, journal: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(PartedFile, "write", denied)
        source.go_on_until(NEVER)
        await failed(half, "STORE_UNAVAILABLE")
    await goes_on(half, source, journal)


@pytest.mark.parametrize("other", ["source", "digest"])
async def test_another_download_of_the_model_gets_none_of_the_parts(
    half: Service, source: RangedServer, other: str
) -> None:
    await lose_source(half, source)
    sent = source.sent
    if other == "source":
        await half.start("m1", f"{source.url}?other")
    else:
        await half.start("m1", source.url, sha256=DIGEST)
    assert (await half.state("m1")).sha256 == DIGEST
    assert source.sent - sent >= len(DATA)


async def test_a_removed_record_and_a_cancelled_new_start_leave_nothing(
    half: Service, source: RangedServer, journal: Database
) -> None:
    await lose_source(half, source)
    source.go_on_until(source.sent)
    await half.start("m1", source.url)
    await half.cancel("m1")
    await nothing_left(half, journal)
    source.fault = away
    await half.start("m1", source.url)
    await failed(half, "SOURCE_REFUSED")
    await half.downloads.DeleteDownload(pb.DeleteDownloadRequest(model_uuid="m1"), metadata=half.caller)
    await nothing_left(half, journal)


async def test_parts_of_a_failed_download_that_are_too_old_are_removed(
    open_half: OpenWith, source: RangedServer, journal: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.worker.SWEEP_SECONDS", 0.05)
    service = await open_half(download_paused_hours=1e-9)
    source.fault = away
    source.go_on_until(NEVER)
    await failed(service, "SOURCE_REFUSED")
    await nothing_left(service, journal)
    source.fault = well
    await service.start("m1", source.url)
    assert (await service.state("m1")).sha256 == DIGEST


@pytest.mark.parametrize(
    "error",
    [
        SourceGoneError("the Quant service has no model m1"),
        SourceRefusedError("it redirects to 169.254.169.254, which is not public", rule="address"),
    ],
)
async def test_a_download_whose_object_cannot_be_had_any_more_keeps_nothing(
    half: Service, source: RangedServer, journal: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    await half.pause("m1")
    monkeypatch.setattr(HttpsSource, "open", refuse)
    source.go_on_until(NEVER)
    await half.resume("m1")
    await failed(half, "SOURCE_REFUSED")
    await nothing_left(half, journal)
