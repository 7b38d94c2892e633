"""Each way an engine ends badly has one reason and a sentence for people."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest

from engine import embedded
from engine.failure import EngineError, FailureReason, explain

MEMORY = "0.00.1 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 99"
LOAD = "0.00.2 E srv    load_model: failed to load model, '/m.gguf'"


@pytest.mark.parametrize(
    ("exit_code", "log", "reason", "words"),
    [
        (1, [LOAD], FailureReason.BAD_MODEL, "failed to load model"),
        (1, [MEMORY, LOAD], FailureReason.OUT_OF_MEMORY, "failed to allocate buffer"),
        (
            1,
            ["E error loading model: unknown model architecture: 'x'"],
            FailureReason.BAD_MODEL,
            "unknown model architecture",
        ),
        (
            1,
            ["0.1 E srv start: couldn't bind HTTP server socket, hostname: x"],
            FailureReason.ADDRESS_IN_USE,
            "couldn't bind",
        ),
        (1, ['error while handling argument "--ctx-size": stoi'], FailureReason.BAD_SPEC, "--ctx-size"),
        (-9, [], FailureReason.OUT_OF_MEMORY, "killed by the system"),
        (-9, [LOAD], FailureReason.OUT_OF_MEMORY, "killed by the system"),
        (-6, ["ggml.c:1: GGML_ASSERT(x) failed"], FailureReason.CRASHED, "SIGABRT"),
        (-4, [], FailureReason.CRASHED, "processor"),
        (-11, [], FailureReason.CRASHED, "SIGSEGV"),
        (3, ["something", "  last   words "], FailureReason.CRASHED, "code 3: last words"),
        (3, [], FailureReason.CRASHED, "wrote nothing"),
        (69, ["engine: libgomp.so.1 is missing"], FailureReason.NO_LLAMA_CPP, "libgomp.so.1 is missing"),
        (64, ["engine: parameters: no", "noise"], FailureReason.BAD_SPEC, "parameters: no"),
    ],
)
def test_an_end_is_explained(exit_code: int, log: list[str], reason: FailureReason, words: str) -> None:
    failure = explain(exit_code, log)
    assert failure.reason is reason
    assert words in str(failure)


CAUSE = "0.1 E llama_model_load: error loading model: error loading model hyperparameters: key not found in model: a.b"
FAILED = "0.2 E llama_model_load_from_file_impl: failed to load model"


@pytest.mark.parametrize("log", [[CAUSE, FAILED, LOAD], [FAILED, LOAD, CAUSE], [LOAD, CAUSE, FAILED, CAUSE]])
def test_the_cause_is_shown_wherever_it_stands(log: list[str]) -> None:
    assert str(explain(1, log)) == "llama.cpp: error loading model hyperparameters: key not found in model: a.b"


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            ImportError("libgomp.so.1: cannot open shared object file: No such file or directory"),
            "apt-get install libgomp1",
        ),
        (ModuleNotFoundError("No module named 'xllamacpp'"), "pip install xllamacpp"),
        (ImportError("libfoo.so: bad"), "libfoo.so"),
    ],
)
def test_a_library_that_does_not_load_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, error: ImportError, remedy: str
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "xllamacpp":
            raise error
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EngineError, match=remedy) as caught:
        embedded.library()
    assert caught.value.reason is FailureReason.NO_LLAMA_CPP
