"""A file of this machine is one source for a model, whoever hands it over to the mesh: the command, a manifest or the SDK."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.manifest import reader
from llamesh.cli.manifest.executor import carry_out
from llamesh.cli.manifest.holdings import Holdings
from llamesh.cli.manifest.plan import plan
from llamesh.client.aio import AsyncClient
from llamesh.client.sync import Client, Pull
from llamesh.local_mesh import Addresses
from llamesh.v1 import download_pb2
from tests.contract.fakes import FakeDownloads, refuse

Way = Callable[[str], object]


class Downloads(FakeDownloads):
    """Takes files of the folder `handed-over` only."""

    def StartDownload(self, request: Any, context: Any) -> download_pb2.Download:
        if "/handed-over/" not in request.source:
            words = "it lies in no folder that models may be imported from"
            refuse(context, grpc.StatusCode.PERMISSION_DENIED, "SOURCE_REFUSED", words, metadata={"rule": "folder"})
        return super().StartDownload(request, context)


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


@pytest.fixture(autouse=True)
def here(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    port = urlsplit(url).port
    addresses = Addresses(f"http://localhost:{port}", "http://localhost:8080")
    monkeypatch.setattr("llamesh.client.own_files.running_here", lambda _: addresses)
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("my m.gguf", "style.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    return tmp_path


def sdk(url: str) -> None:
    with Client(url, "token") as mesh:
        mesh.models.pull("./my m.gguf", adapters={"style": "./style.gguf"})


def command(*more: str) -> Way:
    words = ["pull", "./my m.gguf", "--lora", "style=./style.gguf", "--no-wait", *more]
    return lambda _: run(words)


@pytest.mark.parametrize(
    "pull",
    [
        command(),
        command("--uuid", "my-m.gguf"),
        command("--uuid", "my-m.gguf", "--name", "M"),
        command("--name", "my m.gguf"),
    ],
)
def test_the_command_and_the_sdk_name_one_source(url: str, downloads: Downloads, pull: Way) -> None:
    assert pull(url) == Exit.OK
    sdk(url)
    first, second = downloads.requests
    assert first.model_uuid == second.model_uuid == "my-m.gguf"
    assert first.source == second.source
    assert list(first.adapters) == list(second.adapters)


def test_a_manifest_names_the_same_source(
    url: str, downloads: Downloads, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "m.yaml").write_text(
        "apiVersion: llamesh.dev/v1alpha1\nkind: Model\nmetadata: {name: my-m.gguf}\n"
        "spec: {name: M, source: './my m.gguf', adapters: [style=./style.gguf]}\n"
    )
    (action,) = plan(reader.read([str(here / "m.yaml")]), Holdings())
    monkeypatch.setattr(Pull, "wait", lambda _: None)
    with Client(url, "token") as mesh:
        carry_out(mesh, action)
    sdk(url)
    first, second = downloads.requests
    assert first.source == second.source
    assert list(first.adapters) == list(second.adapters)


def test_another_model_of_the_same_file_has_a_source_of_its_own(url: str, downloads: Downloads) -> None:
    assert command("--uuid", "other")(url) == Exit.OK
    sdk(url)
    first, second = downloads.requests
    assert first.source != second.source
    assert first.adapters[0].source != second.adapters[0].source


async def test_other_calls_go_on_while_a_file_is_handed_over(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def wait(request: download_pb2.StartDownloadRequest, _: str) -> bool:
        begun.set()
        request.source = "file:///handed-over/m.gguf"
        return goes_on.wait(10)

    monkeypatch.setattr("llamesh.client.aio.models.hand_over", wait)
    async with AsyncClient(url, "token") as mesh:
        pull = asyncio.create_task(mesh.models.pull("./my m.gguf"))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        assert not goes_on.is_set()
        goes_on.set()
        assert (await pull).model_uuid == "my-m.gguf"
