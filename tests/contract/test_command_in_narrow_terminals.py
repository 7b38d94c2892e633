"""Lists in real terminals: no id is broken, no line is longer than the terminal, and nothing is dropped without a word."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamesh.cli.failure import Exit
from llamesh.v1 import download_pb2, gateway_pb2, model_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway
from tests.terminal import terminal

ID = "SmolLM2-135M-Instruct-Q4_K_M"
SHA256 = "12fd25f77366fa6b3b4b768ec3050bf629380bac12fd25f77366fa6b3b4b768e"
COLUMNS = (60, 80, 120)

pytestmark = pytest.mark.usefixtures("url", "mesh")


class Gateway(FakeGateway):
    """Has one model."""

    def ListModels(self, request: Any, context: Any) -> gateway_pb2.ListModelsResponse:
        gguf = model_pb2.GgufMetadata(quantisation="Q4_K_M", context_length=8192)
        model = model_pb2.Model(
            model_uuid=ID, name=f"{ID}.gguf", size_bytes=105_454_432, sha256=SHA256, source=f"hf:a/{ID}", gguf=gguf
        )
        return gateway_pb2.ListModelsResponse(models=[model])


class Downloads(FakeDownloads):
    """Has eight downloads that have failed."""

    def ListDownloads(self, request: Any, context: Any) -> download_pb2.ListDownloadsResponse:
        words = "the server answered 404 for the address https://models.example.com/a/long/path/gone.gguf: no such file"
        error = download_pb2.DownloadError(reason="SOURCE_UNAVAILABLE", message=words)
        return download_pb2.ListDownloadsResponse(
            downloads=[
                download_pb2.Download(
                    model_uuid=f"{ID}-{number}", state=download_pb2.DOWNLOAD_STATE_FAILED, error=error
                )
                for number in range(8)
            ]
        )


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


def drawn(words: Sequence[str], columns: int, tmp_path: Path) -> list[str]:
    """The lines that a command draws in a terminal of so many columns."""
    with terminal(words, columns, os.environ, tmp_path) as screen:
        assert screen.end() == Exit.OK, screen.lines
    return screen.lines


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_model_is_one_line(columns: int, tmp_path: Path) -> None:
    lines = drawn(["models"], columns, tmp_path)
    row = next(line.split() for line in lines if ID in line.split())
    assert {"100.6", "Q4_K_M", "ready"} <= set(row)
    assert any("no room for NAME" in line for line in lines) is (columns < 120)


@pytest.mark.parametrize("columns", COLUMNS)
def test_the_wide_list_has_every_column(columns: int, tmp_path: Path) -> None:
    shown = drawn(["models", "-o", "wide"], columns, tmp_path)
    # A terminal breaks a line that is too long, a copy of it does not.
    assert SHA256 in "".join(line.ljust(columns) for line in shown).replace(" ", "")
    for title, value in (("MODEL", ID), ("NAME", f"{ID}.gguf"), ("SOURCE", f"hf:a/{ID}")):
        assert [title, value] in [line.split() for line in shown]


@pytest.mark.parametrize("columns", COLUMNS)
def test_eight_failures_fit_a_screen(columns: int, tmp_path: Path) -> None:
    lines = drawn(["downloads"], columns, tmp_path)
    assert len(lines) < 34
    for number in range(8):
        assert any(f"{ID}-{number}" in line.split() for line in lines)
