"""The versions of each service's tables follow each other in one line: two that follow the same one stop every start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path for place in ("services", "controller") for path in (ROOT / place).rglob("migrations/versions"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parents[1].name)
def test_each_version_follows_the_one_before(folder: Path) -> None:
    files = sorted(folder.glob("*.py"))
    versions = [re.findall(r'^(?:down_)?revision = "?([\w]+)"?', file.read_text(), re.MULTILINE) for file in files]
    names = [name for name, _ in versions]
    assert [before for _, before in versions] == ["None", *names[:-1]]
    assert [name.rpartition("_")[2] for name in names] == [file.name[:4] for file in files]
