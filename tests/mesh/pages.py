"""The fenced blocks of the documentation, and what they show."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mesh.running import ROOT


def fences(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def shown(output: str, expected: str) -> bool:
    """Whether an output is what a page shows, `...` standing for anything."""
    pattern = ".*".join(re.escape(part) for part in re.split(r"\n?\.\.\.\n?", expected.strip()))
    return re.search(pattern, output, re.DOTALL) is not None


def steps(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what the page shows it to print."""
    for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, expected = step.partition("\n")
        yield command, expected
