"""The source of a Quant job keeps its bytes although its model is removed: it is linked, not copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.download.part_links import PartLinks
from services.quant.step.fetch import _bring
from services.quant.workspace import StoredPart, Workspace


@pytest.mark.parametrize("count", [1, 2])
def test_the_parts_of_a_source_outlive_their_objects(tmp_path: Path, count: int) -> None:
    objects = [tmp_path / f"object{number}" for number in range(count)]
    for path in objects:
        path.write_bytes(path.name.encode())
    located = PartLinks(tmp_path / "parts").make("m", objects) if count > 1 else objects
    workspace = Workspace(tmp_path, "job_1")
    workspace.source_part(1, count).parent.mkdir(parents=True)
    _bring([(StoredPart("", 7, ""), path) for path in located], workspace)
    for path in objects:
        path.unlink()
    assert [path.read_bytes() for path in workspace.sources] == [path.name.encode() for path in objects]
