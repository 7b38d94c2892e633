"""What this machine or its disk lacks for a moment, such as file descriptors, ends no job and no download for good."""

from __future__ import annotations

import errno
import io
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from unittest import mock

import aiohttp
import pytest

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.objects import StagedObject, StoreUnavailableError
from llamesh.v1.checkpoint_pb2 import GetMatrixFileRequest
from services.download.bandwidth import Bandwidth
from services.download.checkpoint_servicer import CheckpointServicer
from services.download.matrix_files import MatrixFiles
from services.download.sources import AddressRules, FileRole, FileSource, SourceError, file
from services.download.sources.http_client import HttpClient
from services.download.verification import verify

SHORT = [errno.EMFILE, errno.ENFILE, errno.ENOMEM]
KEY = cast("Any", SimpleNamespace(host="store.example", port=443, ssl=True, is_ssl=True))
NONE = cast("Any", None)


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", SHORT)
async def test_a_name_that_cannot_be_looked_up_now_is_looked_up_again(number: int) -> None:
    rules = AddressRules(resolve=mock.AsyncMock(side_effect=failure(number)))
    with pytest.raises(SourceError, match=os.strerror(number)) as caught:
        await rules.addresses("huggingface.co", 443)
    assert caught.value.transient


@pytest.mark.parametrize(("number", "transient"), [*((each, True) for each in SHORT), (errno.ECONNREFUSED, False)])
async def test_a_connection_that_this_machine_cannot_make_now_is_made_again(number: int, transient: bool) -> None:
    client = HttpClient(AddressRules(frozenset({"127.0.0.1"})), http_hosts=["127.0.0.1:9"])
    refused = aiohttp.ClientConnectorError(KEY, failure(number))
    with (
        mock.patch.object(aiohttp.ClientSession, "get", mock.AsyncMock(side_effect=refused)),
        pytest.raises(SourceError, match="cannot be reached") as caught,
    ):
        async with client.get(client.parsed("http://127.0.0.1:9/a.gguf")):
            pass
    assert caught.value.transient is transient


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        *((each, Reason.ERROR_REASON_SOURCE_UNAVAILABLE) for each in (*SHORT, errno.EIO, errno.ESTALE)),
        *((each, Reason.ERROR_REASON_SOURCE_REFUSED) for each in (errno.ENOENT, errno.EACCES)),
    ],
)
async def test_a_matrix_is_refused_only_if_it_is_missing_or_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: Reason
) -> None:
    (tmp_path / "matrix.gguf").write_bytes(b"x")
    servicer = CheckpointServicer(NONE, MatrixFiles(FileSource([tmp_path]), Bandwidth(0, time.monotonic)))
    request = GetMatrixFileRequest(source=(tmp_path / "matrix.gguf").as_uri())
    assert (await servicer.GetMatrixFile(request, NONE)).size_bytes == 1
    monkeypatch.setattr(file.os, "open", mock.Mock(side_effect=failure(number)))
    with pytest.raises(MeshError, match=os.strerror(number)) as caught:
        await servicer.GetMatrixFile(request, NONE)
    assert caught.value.reason == reason


class Unreadable(io.BytesIO):
    """FAKE: a file on a disk that fails."""

    def read(self, _size: int | None = -1) -> bytes:
        raise failure(errno.EIO)


@pytest.mark.parametrize("opened", [failure(errno.EMFILE), [Unreadable()]])
async def test_staged_bytes_that_cannot_be_read_now_are_an_outage_of_the_store(
    opened: OSError | list[BinaryIO],
) -> None:
    staged = SimpleNamespace(open=mock.Mock(side_effect=opened), size=100)
    with pytest.raises(StoreUnavailableError, match="cannot read a staged object"):
        await verify([(FileRole.WEIGHTS, cast("StagedObject", staged))])
