"""llamesh is on no package index: messages and pages name the checkout or the wheel that is installed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from llamesh.installation import command_of, install_command
from tests.unit.house import ROOT

UNPUBLISHED = re.compile(
    r"""(pip install|pipx install|uvx?( tool)? (run|install)?) [^\n`]*?(?<![\w/.-])['"]?llamesh(\[|\b(?![-/._\w]))"""
)
FOLDERS = (
    "llamesh",
    "services",
    "controller",
    "engine",
    "docs",
    "examples",
    "deploy",
    "tools",
    "proto",
    "Makefile",
    "README.md",
)


def test_no_message_and_no_page_installs_from_an_index() -> None:
    found = []
    for name in FOLDERS:
        place = ROOT / name
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.suffix in {".py", ".md", ".proto", ".yaml", ".service", ""} and path.is_file():
                for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                    if UNPUBLISHED.search(line):
                        found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "pip install llamesh",
        "pip install 'llamesh[mesh,engine]'",
        "pip install --upgrade 'llamesh[mesh]>=1'",
        "pip install llamesh openai",
    ],
)
def test_a_command_for_an_index_is_found(line: str) -> None:
    assert UNPUBLISHED.search(line)


@pytest.mark.parametrize(
    "line", ["pip install './llamesh-0.1.0-py3-none-any.whl[mesh]'", "pip install /src/llamesh", "pip install openai"]
)
def test_a_command_for_a_wheel_is_not_taken_for_one_of_an_index(line: str) -> None:
    assert not UNPUBLISHED.search(line)


def test_the_command_names_the_checkout_or_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "llamesh-0.1.0-py3-none-any.whl"
    wheel.touch()
    checkout = json.dumps({"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert command_of(checkout, "0.1.0", ("mesh", "engine"), "/v/python") == (
        f"/v/python -m pip install -e '{tmp_path}[mesh,engine]'"
    )
    built = json.dumps({"url": wheel.as_uri(), "archive_info": {}})
    assert command_of(built, "0.1.0", ("quant",), "/v/python") == f"/v/python -m pip install '{wheel}[quant]'"


@pytest.mark.parametrize("record", ["", "{}", "[]", "x", '{"url": "https://host/x"}', '{"url": "file:///gone"}'])
def test_an_unknown_origin_names_the_wheel_of_the_release(record: str) -> None:
    assert command_of(record, "0.1.0", ("mesh",), "python") == (
        "python -m pip install 'llamesh-0.1.0-py3-none-any.whl[mesh]'"
    )


def test_this_installation_has_a_command() -> None:
    assert install_command("mesh").startswith(f"{shlex.quote(sys.executable)} -m pip install ")
    assert install_command("mesh").endswith("[mesh]'")
