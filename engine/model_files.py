"""The model files of an engine: checked before llama.cpp starts, and held while it runs.

llama.cpp maps the files into memory, so it keeps their bytes even if they are removed. The hold prevents that the cache of this machine
removes them while other engines of the same model may still be started (`llamesh.file_holds`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from engine.failure import EngineError, FailureReason
from engine.spec import EngineSpec
from llamesh.file_holds import held
from llamesh.part_names import parts_of


@contextlib.contextmanager
def held_models(spec: EngineSpec) -> Iterator[None]:
    """Check and hold all model files of an engine. Raises EngineError."""
    named = [spec.model, *spec.files.values(), *spec.adapters.values(), *filter(None, [spec.projector])]
    for path in named:
        _check(path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(part for path in named for part in _parts(path)))
        except OSError as error:
            words = f"cannot read the model {error.filename}: {error.strerror}"
            raise EngineError(FailureReason.NO_MODEL, words) from error
        yield


def _parts(path: Path) -> Iterator[Path]:
    """Yield the files of the model in `path`. A missing part is left to llama.cpp, which names it."""
    yield path
    with contextlib.suppress(ValueError):
        yield from (other for name in parts_of(path.name) if (other := path.with_name(name)).exists())


def _check(model: Path) -> None:
    """Report the two most common problems of a model file in plain words, before llama.cpp fails with its own."""
    try:
        with model.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise EngineError(FailureReason.NO_MODEL, f"cannot read the model {model}: {error.strerror}") from error
    if magic != b"GGUF":
        raise EngineError(FailureReason.BAD_MODEL, f"{model} is not a GGUF file: it begins with {magic!r}")
