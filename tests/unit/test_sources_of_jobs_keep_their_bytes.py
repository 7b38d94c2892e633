"""The source of a Quant job keeps its bytes although its model is removed: it is linked, not copied."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock, MagicMock

import pytest

from llamesh.kit.config import Settings
from services.download.part_links import PartLinks
from services.quant.step import fetch
from services.quant.step.fetch import _bring
from services.quant.workspace import JobSpec, StoredPart, Workspace


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


def test_a_source_is_read_from_the_bucket_if_the_download_service_may_be_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "copy"
    parts = [StoredPart("models/m", 7, "digest")]
    found = AsyncMock(return_value=(None, parts))
    monkeypatch.setattr(fetch, "channel", MagicMock())
    monkeypatch.setattr(fetch, "SourceObjects", lambda _: SimpleNamespace(find=found))
    store = SimpleNamespace(local_path=AsyncMock(return_value=copied), close=AsyncMock())
    monkeypatch.setattr(fetch, "models_store", lambda *_, **__: store)
    place = {"minio_endpoint": "store:9000", "minio_access_key": "a", "minio_secret_key": "b"}
    spec = JobSpec("job_1", "m", "m", "digest", False, False, False, 0)

    settings = Settings(home=tmp_path, member_addresses={"download": "download:9202"}, **place)
    objects = fetch._listed(spec, settings)
    assert fetch._objects(objects, settings) == [(parts[0], copied)]
    found.assert_awaited_once_with("m", "digest")

    assert spec.lists_objects(settings)
    assert not spec.lists_objects(Settings(home=tmp_path, **place)), "on one machine it is linked"
    there = {"download": "download:9202"}
    assert not spec.lists_objects(Settings(home=tmp_path, member_addresses=there)), "there is no bucket"
