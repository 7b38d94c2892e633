"""A list in a terminal of any width breaks no word, drops nothing without a word, and stays within the width where words allow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from llamesh.cli import terminal_table
from llamesh.cli.models import MODEL
from llamesh.cli.output import Column, shortened
from llamesh.cli.quant_jobs import JOB, STEP
from llamesh.cli.quant_variants import VARIANT, short_source
from llamesh.cli.terminal_table import blocks, fitting
from llamesh.v1 import model_pb2, quant_pb2

Capture = pytest.CaptureFixture[str]
Show = Callable[..., str]
ID = "SmolLM2-135M-Instruct-Q4_K_M"
COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
SOURCE = f"hf:HuggingFaceTB/SmolLM2-135M-Instruct@{COMMIT}"
WIDTHS = (40, 60, 80, 120)

MODELS = [model_pb2.Model(model_uuid=ID, name=f"{ID}.gguf", size_bytes=105_454_432, source=SOURCE, sha256="ab" * 32)]
MODELS[0].gguf.quantisation, MODELS[0].gguf.context_length = "Q4_K_M", 8192
VARIANTS = [quant_pb2.QuantModel(model_uuid=ID, size_bytes=105_454_432, source=SOURCE, job_id=f"job_{'a' * 32}")]
JOBS = [
    quant_pb2.QuantJob(
        job_id=f"job_{'a' * 32}", source=SOURCE, types=["Q4_K_M"], state=quant_pb2.QUANT_JOB_STATE_SUCCEEDED
    )
]
STEPS = [
    quant_pb2.QuantStep(
        kind=quant_pb2.QUANT_STEP_KIND_QUANTIZE,
        type="Q4_K_M",
        state=quant_pb2.QUANT_STEP_STATE_SUCCEEDED,
        done=89,
        total=272,
        tries=1,
    )
]
STEPS[0].start_time.seconds, STEPS[0].end_time.seconds = 1000, 1125


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Show:
    """Shows a list in a terminal of a width; its text."""

    def show(items: Sequence[object], columns: Sequence[Column], width: int, *, wide: bool = False) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        chosen = [column for column in columns if wide or not column.wide]
        terminal_table.show_in_terminal(items, chosen, keep=wide)
        return "".join(capsys.readouterr())

    return show


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("items", "columns", "words"),
    [
        (MODELS, MODEL, [ID, "100.6", "Q4_K_M", "ready"]),
        (VARIANTS, VARIANT, [ID, "100.6"]),
        (JOBS, JOB, [f"job_{'a' * 32}", short_source(SOURCE), "Q4_K_M", "SUCCEEDED"]),
        (STEPS, STEP, ["quantize", "Q4_K_M", "SUCCEEDED", "89"]),
    ],
    ids=["models", "variants", "jobs", "steps"],
)
def test_no_word_is_broken(
    shown: Show, items: Sequence[object], columns: Sequence[Column], words: list[str], width: int
) -> None:
    text = shown(items, columns, width)
    assert set(words) <= set(text.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_list_with_all_columns_has_them_at_every_width(shown: Show, width: int) -> None:
    text = shown(MODELS, MODEL, width, wide=True)
    words = text.split()
    assert {ID, f"{ID}.gguf", SOURCE, "ab" * 32, "SHA256", "SOURCE"} <= set(words)


@pytest.mark.parametrize(("width", "missing"), [(60, {"NAME", "CONTEXT"}), (80, {"NAME"}), (160, set())])
def test_columns_without_room_are_named(shown: Show, width: int, missing: set[str]) -> None:
    text = shown(MODELS, MODEL, width)
    named = text.partition("no room for ")[2].partition(":")[0]
    assert set(named.split(", ")) - {""} == missing
    assert max(map(len, text.partition("no room")[0].splitlines())) <= width


def test_the_time_that_a_step_took_goes_before_its_start() -> None:
    titles = [column.title for column in fitting(STEPS, STEP, 80)]
    assert "TOOK" in titles
    assert "STARTED" not in titles


def test_a_block_has_a_line_for_each_value_and_none_for_an_empty_one() -> None:
    two = [*MODELS, model_pb2.Model(model_uuid="other", problem="its object " + "is missing " * 10)]
    lines = blocks(two, MODEL, 60).splitlines()
    assert lines[0].split() == ["MODEL", ID]
    assert lines.count("") == 1
    assert not any(line.startswith("TAGS") for line in lines)
    long = next(at for at, line in enumerate(lines) if line.startswith("PROBLEM"))
    assert lines[long + 1].startswith(" " * lines[long].index("its"))


@pytest.mark.parametrize(
    ("address", "short"),
    [
        (SOURCE, "hf:HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f77366"),
        ("hf:a/b@main", "hf:a/b@main"),
        ("file:///home/me/import/my-model/", "my-model"),
        ("", ""),
    ],
)
def test_the_source_of_a_job_is_short(address: str, short: str) -> None:
    assert short_source(address) == short


@pytest.mark.parametrize(
    ("words", "cut"),
    [
        ("the server answered 404", "the server answered 404"),
        ("the server answered 404: there is no such file", "the server answered..."),
        ("x" * 40, "x" * 22 + "..."),
    ],
)
def test_a_reason_is_cut_between_words(words: str, cut: str) -> None:
    assert shortened(words, 25) == cut
