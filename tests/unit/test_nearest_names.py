"""The name that an unknown word probably means: one rule for flags, fields, settings, models and files, in bounded time."""

from __future__ import annotations

import time

import pytest

from llamesh.nearest import MAX_LENGTH, MAX_NAMES, near, nearest

FLAGS = ("-ctxcp", "--ctx-checkpoints", "--ctx-size", "-c", "--temp", "--threads", "--flash-attn", "-ngl")
MODELS = ("Qwen3-0.6B.gguf", "smol", "famous.gguf")


@pytest.mark.parametrize(
    ("word", "names", "meant"),
    [
        ("--ctx", FLAGS, "--ctx-size"),
        ("--CTX_SIZE", FLAGS, "--ctx-size"),
        ("--flash-attention", FLAGS, "--flash-attn"),
        ("--ngl", FLAGS, "-ngl"),
        ("smoll", MODELS, "smol"),
        ("famos", MODELS, "famous.gguf"),
        ("QWEN", MODELS, "Qwen3-0.6B.gguf"),
        ("0.6b", MODELS, "Qwen3-0.6B.gguf"),
        ("xyz", MODELS, ""),
        ("", MODELS, ""),
        ("s", MODELS, ""),
        ("smol", (), ""),
    ],
)
def test_the_name_that_is_meant_is_found(word: str, names: tuple[str, ...], meant: str) -> None:
    assert nearest(word, names) == meant


def test_several_names_come_in_order_of_likeness_and_each_once() -> None:
    assert near("Q4_K", ("Q8_0", "IQ4_XS", "Q4_K_M", "Q4_K_S", "Q4_0"), 3, 0.5) == ["Q4_K_M", "Q4_K_S", "Q4_0"]


def test_a_word_or_name_that_is_too_long_is_like_no_other() -> None:
    assert nearest("a" * MAX_LENGTH, ["a" * (MAX_LENGTH + 1), "a" * (MAX_LENGTH - 1)]) == "a" * (MAX_LENGTH - 1)
    assert nearest("a" * (MAX_LENGTH + 1), ["a" * MAX_LENGTH]) == ""


def test_the_work_is_bounded_for_many_names_that_are_all_alike() -> None:
    names = [f"{number:07}" + "ab" * 60 for number in range(50 * MAX_NAMES)]
    began = time.process_time()
    assert nearest("ba" * 60, names) in names[:MAX_NAMES]
    # Without the bound it takes minutes.
    assert time.process_time() - began < 10
