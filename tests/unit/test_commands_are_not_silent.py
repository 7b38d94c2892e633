"""Commands say a word where people expect one: files that declare nothing, a start that is interrupted, an argument that is not UTF-8."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from llamesh.cli import up
from llamesh.cli.apply import _read
from llamesh.cli.failure import Exit, unforeseen
from llamesh.cli.mesh.settings import MeshSettings

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("content", ["", "---\n---\n", "# only a comment\n"])
def test_files_that_declare_nothing_are_named(tmp_path: Path, content: str, capsys: Capture) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(content)
    assert _read([str(path)]) == []
    assert capsys.readouterr().err == f"nothing is declared in {path}\n"


def test_standard_input_that_declares_nothing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert _read(["-"]) == []
    assert capsys.readouterr().err == "nothing is declared in -\n"


def test_an_interrupted_start_in_the_background_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(_: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(up.detached, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        up._detached(cast("MeshSettings", SimpleNamespace()), demo=False, began=0)
    shown = capsys.readouterr()
    assert "the mesh goes on starting; `llamesh down` ends it" in shown.out + shown.err


def test_an_argument_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(UnicodeEncodeError) as raised:
        "caf\udcc3\udca9".encode()
    failure = unforeseen(raised.value)
    assert failure.cause == "'caf\\udcc3\\udca9' cannot be sent: it is not UTF-8"
    assert "LC_ALL=C.UTF-8" in failure.hint
    assert failure.code == Exit.USAGE
