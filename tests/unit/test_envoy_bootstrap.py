"""Envoy's first file is written from its template, whatever the path of the home."""

from __future__ import annotations

from pathlib import Path

import yaml

from llamesh.cli.mesh.envoy import write_bootstrap
from llamesh.cli.mesh.settings import MeshSettings


def test_paths_arrive_as_they_are(tmp_path: Path) -> None:
    run = tmp_path / 'a "quoted" ${place} \\ with: colon'
    run.mkdir()
    settings = MeshSettings(
        home=tmp_path,
        run_dir=run,
        bind="127.0.0.1",
        public_host="localhost",
        inference_port=1,
        gateway_port=2,
        contract_port=3,
        download_port=4,
        drain_seconds=1,
        member_patience_seconds=20,
    )
    written = yaml.safe_load(write_bootstrap(settings).read_text())
    assert written["admin"]["address"]["pipe"]["path"] == str(run / "envoy-admin.sock")
    cluster = written["static_resources"]["clusters"][0]
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert endpoint["address"]["pipe"]["path"] == str(run / "controller.sock")
