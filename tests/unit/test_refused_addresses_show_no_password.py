"""An address with a password is refused without the password, wherever it was typed and however it was written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any, cast

import grpc
import pytest

from llamesh.cli.sources import no_source
from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError
from llamesh.model_addresses import names_user, shown_address
from llamesh.v1.checkpoint_pb2 import GetCheckpointRequest, GetMatrixFileRequest, ReadCheckpointRequest
from llamesh.v1.download_pb2 import AdapterSource, StartDownloadRequest
from services.download.bandwidth import Bandwidth
from services.download.checkpoint_servicer import CheckpointServicer
from services.download.checkpoints import Checkpoints
from services.download.matrix_files import MatrixFiles
from services.download.model_names import check_name
from services.download.service import files_of, hub_of, sources_of
from services.download.starts import Starts

PASSWORDS = ["SECRET", "p@SECRET", "pa/SECRET", "SECRET/x", "SECRET:x", "x:SECRET", "pa#SECRET", "SECRET?x", "$SECRET"]
BEGINNINGS = [
    *("https://", "HTTPS://", "http://", "https:", "https:///", "htps://", "ftp://", "", "file://", "s3://", "quant:"),
    *("oci://", "oci:", "ollama:", "ollama://", "hf:", "hf://"),
]
HOSTS = ["models.example/a.gguf", "huggingface.co/owner/repo", "ghcr.io/owner/name:tag", "name"]
ADDRESSES = [f"{first}user:{word}@{host}" for first, word, host in product(BEGINNINGS, PASSWORDS, HOSTS)]
HEX = "0123456789abcdef" * 4


def words_of(error: MeshError) -> str:
    """Everything that a caller or the log is told."""
    return f"{error} {vars(error)}"


@pytest.fixture
async def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
async def starts(settings: Settings) -> AsyncIterator[Starts]:
    """Starts that can only refuse."""
    nothing = cast("Any", None)
    async with grpc.aio.insecure_channel(f"unix:{settings.home}/quant.sock") as channel:
        sources = sources_of(settings, hub_of(settings), files_of(settings), channel)
        yield Starts(nothing, nothing, sources, nothing, has_quant=True)


@pytest.mark.parametrize("field", ["source", "projector", "adapters"])
async def test_a_download_is_refused_without_the_password(starts: Starts, field: str) -> None:
    for address in ADDRESSES:
        given = [AdapterSource(name="a", source=address)] if field == "adapters" else address
        request = StartDownloadRequest(**cast("Any", {"model_uuid": "m", field: given}))
        with pytest.raises(MeshError) as refused:
            await starts.start(request, "ada")
        assert "SECRET" not in words_of(refused.value), address


async def test_a_checkpoint_is_refused_without_the_password(settings: Settings) -> None:
    checkpoints = Checkpoints(hub_of(settings), files_of(settings), Bandwidth(0, monotonic), monotonic)
    matrices = MatrixFiles(files_of(settings), Bandwidth(0, monotonic))
    servicer, context = CheckpointServicer(checkpoints, matrices), cast("Any", None)
    for address in ADDRESSES:
        with pytest.raises(MeshError) as refused:
            await servicer.GetCheckpoint(GetCheckpointRequest(source=address), context)
        assert "SECRET" not in words_of(refused.value), address
        with pytest.raises(MeshError) as refused:
            async for _ in servicer.ReadCheckpoint(ReadCheckpointRequest(source=address, name="config.json"), context):
                pass
        assert "SECRET" not in words_of(refused.value), address
        with pytest.raises(MeshError) as refused:
            await servicer.GetMatrixFile(GetMatrixFileRequest(source=address), context)
        assert "SECRET" not in words_of(refused.value), address


def test_an_address_in_place_of_a_name_is_refused_without_the_password() -> None:
    for address in ADDRESSES:
        if address.startswith("user"):
            continue
        with pytest.raises(MeshError) as refused:
            check_name("name", address)
        assert "SECRET" not in words_of(refused.value), address


def test_the_command_repeats_no_password() -> None:
    for address in filter(names_user, ADDRESSES):
        refusal = no_source(address, ["tiny"])
        assert "SECRET" not in f"{refusal.cause} {refusal.hint} {refusal.parts}", address


@pytest.mark.parametrize(
    "address",
    [
        "https://models.example:8443/@ada/tiny.gguf",
        "https://[::1]/@ada/tiny.gguf",
        "https://models.example/a@b.gguf",
        "file:///models/a@b/tiny.gguf",
        "/models/a:b@c/tiny.gguf",
        "s3://place/a@b.gguf",
        "hf:owner/repo@v1:Q8_0",
        "huggingface.co/owner/repo@v1:Q8_0",
        f"ollama:tiny:1b@sha256:{HEX}",
        f"tiny:1b@sha256:{HEX}",
        f"oci://ghcr.io/ada/tiny@sha256:{HEX}",
    ],
)
def test_an_at_sign_behind_the_host_names_no_user(address: str) -> None:
    assert not names_user(address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("ftp://models.example/a.gguf?sig=SECRET#x", "ftp://models.example/a.gguf"),
        ("HF:owner/repo@v1/x.gguf", "hf:owner/repo@v1/x.gguf"),
        ("hf:owner/repo@v 1", ""),
        ("https://models.example/@ada/tiny.gguf", ""),
        ("tiny.gguf", "tiny.gguf"),
    ],
)
def test_a_refused_address_is_shown_if_it_can_have_no_password(address: str, shown: str) -> None:
    assert shown_address(address) == shown
