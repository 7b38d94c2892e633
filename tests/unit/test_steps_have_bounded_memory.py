"""A step parses no document that needs much more memory than real ones, and is refused in words where memory does not suffice."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.machine_memory import MachineMemory
from services.quant.step.checkpoint_texts import read_texts
from services.quant.step.failure_messages import NO_MEMORY
from services.quant.step.llama_program import ProgressMarks, run_program
from services.quant.step.memory_limit import MIN_LIMIT, limit_of
from services.quant.step.report import StepRefusedError
from services.quant.step.untrusted_json import MAX_BYTES, MAX_DEPTH, MAX_MARKS, parse_json
from services.quant.step_process import REFUSED, StepProcess
from services.quant.workspace import JobSpec, Workspace
from tests.checkpoints import write_checkpoint
from tests.quantised_models import write_source

GIB = 1 << 30


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" + b"[]," * (MAX_MARKS // 2) + b"[]]", "elements"),
        (b"[" + b"{}," * (MAX_MARKS // 2) + b"{}]", "elements"),
        (b'["' + b"x" * MAX_BYTES + b'"]', "more than 48 MiB"),
        (b"[" * 200_000, "nested too deep"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
    ],
    ids=["lists", "objects", "long", "deep", "cut", "no text"],
)
def test_a_document_beyond_the_bounds_is_not_parsed(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(data)


@pytest.mark.parametrize("kind", [b"[%b]", b'{"a": %b}', b"[0, %b]"], ids=["lists", "objects", "last"])
def test_a_document_is_nested_as_deep_as_real_files_and_no_deeper(kind: bytes) -> None:
    data = b"1"
    for _ in range(MAX_DEPTH):
        data = kind % data
    parse_json(data)
    # Far from where Python's own parser ends.
    with pytest.raises(ValueError, match="nested too deep: more than 32 levels"):
        parse_json(kind % data)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "tokenizer.json",
            b"[" + b"[]," * (MAX_MARKS // 2) + b"[]]",
            "tokenizer.json cannot be read: it has more than",
        ),
        ("tokenizer_config.json", b"[" + b"[]," * (MAX_MARKS // 2) + b"[]]", "tokenizer files cannot be read"),
        ("merges.txt", b"a b\n" * (MAX_MARKS + 1), "merges.txt has more than 3,000,000 lines"),
    ],
)
def test_a_checkpoint_with_a_file_beyond_the_bounds_is_refused(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    checkpoint = write_checkpoint(write_source(tmp_path / "source.gguf"), tmp_path / "checkpoint")
    (checkpoint / name).write_bytes(data)
    with pytest.raises(StepRefusedError, match=said):
        read_texts(checkpoint)


def test_a_tokenizer_like_the_largest_is_parsed() -> None:
    """The numbers are those of Gemma 3."""
    tokens = {f"token{at}": at for at in range(262_144)}
    merges = [[f"to{at}", "ken"] for at in range(514_906)]
    assert (
        len(parse_json(json.dumps({"model": {"vocab": tokens, "merges": merges}}).encode())["model"]["vocab"])
        == 262_144
    )


@pytest.mark.parametrize(
    ("total", "available", "limit"),
    [(64, 40, 40 * GIB), (64, 1, 32 * GIB), (0.25, 0.1, MIN_LIMIT)],
    ids=["available", "half", "least"],
)
def test_a_step_may_have_what_is_available_and_at_least_half(total: float, available: float, limit: int) -> None:
    assert limit_of(MachineMemory(int(total * GIB), int(available * GIB))) == limit


_ALLOCATING = """
import sys
from llamesh.kit.machine_memory import MachineMemory
from services.quant.step import __main__ as step
step.machine_memory = lambda: MachineMemory(1 << 29, 1 << 29)
step._done = lambda *_: bytearray(1 << 30)
sys.exit(step.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit")
async def test_a_step_beyond_its_memory_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Workspace(tmp_path, "job_1").prepare(JobSpec("job_1", "m", "m", "", False, False, False, 0))
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nshift 8\nexec {sys.executable} -c "{_ALLOCATING}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    outcome = await StepProcess(Settings(home=tmp_path), "quantize", "job_1", "Q8_0").run(lambda _done, _total: None)
    assert (outcome.code, outcome.reason) == (REFUSED, "QUANT_REFUSED"), outcome
    assert (
        outcome.words() == "the step needs more than 512 MiB of memory, which is all that it may have on this machine"
    )


def test_the_log_of_a_program_names_files_without_the_folder_of_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "cannot read $PWD/source-00001-of-00001.gguf" >&2\nexit 1\n')
    program.chmod(0o755)
    with pytest.raises(StepRefusedError) as refused:
        run_program(
            "a program",
            "services.quant.step.llama_program",
            [str(program)],
            ProgressMarks(re.compile("x(1)")),
            folder=tmp_path,
            variables={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )
    assert str(tmp_path) not in str(refused.value) + capsys.readouterr().err
    assert "source-00001-of-00001.gguf" in str(refused.value)


@pytest.mark.parametrize("end", ["exit 1", "kill -ABRT $$"])
def test_a_program_of_llama_cpp_without_memory_is_not_tried_again(tmp_path: Path, end: str) -> None:
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\necho \"terminate called after throwing an instance of 'std::bad_alloc'\" >&2\n{end}\n"
    )
    program.chmod(0o755)
    with pytest.raises(StepRefusedError, match=NO_MEMORY):
        run_program(
            "a program",
            "services.quant.step.llama_program",
            [str(program)],
            ProgressMarks(re.compile("x(1)")),
            folder=tmp_path,
            variables={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )
