"""A controller refuses to start where engines of a cluster could not run."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from controller.kubernetes.cluster import open_cluster
from llamesh.kit.config import Settings
from llamesh.kit.errors import StartRefused


async def opened(settings: Settings, connect: Any) -> None:
    async with AsyncExitStack() as stack:
        await open_cluster(stack, settings, connect(settings, "download"), connect(settings, "contract"))


async def test_models_in_a_folder_of_one_machine_are_refused(in_cluster_settings: Settings, connect: Any) -> None:
    with pytest.raises(StartRefused, match="MINIO_ENDPOINT is not set"):
        await opened(in_cluster_settings, connect)


async def test_a_machine_that_knows_no_cluster_is_told_how_to_name_one(
    in_cluster_settings: Settings, connect: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(StartRefused, match="KUBECONFIG"):
        await opened(in_cluster_settings.model_copy(update={"minio_endpoint": "store:9000"}), connect)
