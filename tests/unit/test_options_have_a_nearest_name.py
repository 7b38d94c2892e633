"""An option or flag that does not exist is refused with the one that it probably means, which begins with it if one does."""

from __future__ import annotations

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.kit.errors import MeshError
from services.contract.flag_parser import parse

SHORTENED = [
    ("--ctx", "--ctx-size"),
    ("--batch", "--batch-size"),
    ("--rope-freq", "--rope-freq-base"),
    ("--CTX", "--ctx-size"),
]


@pytest.mark.parametrize(("written", "meant"), SHORTENED)
def test_an_option_that_is_cut_short_is_answered_with_the_whole(
    written: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "smol", written, "4096"]) == Exit.USAGE
    assert capsys.readouterr().err.startswith(f"error: Unknown option: {written}. Did you mean {meant}?\n")


@pytest.mark.parametrize(("written", "meant"), SHORTENED)
def test_a_flag_that_is_cut_short_is_answered_with_the_whole(written: str, meant: str) -> None:
    with pytest.raises(MeshError, match=f"; did you mean {meant}\\?"):
        parse(f"{written} 4096")


def test_an_option_of_llama_server_is_refused_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "smol", "--port", "1"]) == Exit.USAGE
    assert "Unknown option" not in capsys.readouterr().err
