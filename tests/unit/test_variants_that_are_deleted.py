"""A variant that was deleted in Quant is gone for good, before it is read and while it is read; other failures say nothing about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from services.download.sources import FileSource, QuantSource, SourceError, SourceGoneError
from services.download.sources.quant_models import QuantModel


class Models:
    """FAKE: a Quant service that answers with a model or an error."""

    def __init__(self, answer: QuantModel | SourceError) -> None:
        self._answer = answer

    async def find(self, model_uuid: str) -> QuantModel:
        if isinstance(self._answer, SourceError):
            raise self._answer
        return self._answer


def source_of(answer: QuantModel | SourceError, folder: Path) -> QuantSource:
    return QuantSource(cast("Any", Models(answer)), None, FileSource([folder]))


@pytest.mark.parametrize(("status", "gone"), [(404, True), (0, False), (503, False)])
async def test_a_model_that_quant_does_not_know(tmp_path: Path, status: int, gone: bool) -> None:
    with pytest.raises(SourceError) as caught:
        async with source_of(SourceError("no", status=status), tmp_path).open("quant:m"):
            pass
    assert isinstance(caught.value, SourceGoneError) is gone


@pytest.mark.parametrize(("status", "gone"), [(404, True), (503, False)])
async def test_an_object_that_goes_while_it_is_read(tmp_path: Path, status: int, gone: bool) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(SourceError) as caught:
        async with source_of(QuantModel("", "", "m", 4, "", path=str(path)), tmp_path).open("quant:m"):
            raise SourceError("a range of the object", status=status)
    assert isinstance(caught.value, SourceGoneError) is gone
