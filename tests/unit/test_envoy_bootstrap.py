"""Envoy's first file is written from its template, whatever the path of the home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamesh.cli.failure import CommandError
from llamesh.cli.mesh.envoy import write_bootstrap
from llamesh.cli.mesh.settings import MeshSettings


def settings_of(run: Path, **more: Any) -> MeshSettings:
    """Settings whose run directory is `run`."""
    return MeshSettings(
        home=run.parent,
        run_dir=run,
        bind="127.0.0.1",
        public_host="localhost",
        inference_port=1,
        gateway_port=2,
        contract_port=3,
        download_port=4,
        drain_seconds=1,
        member_patience_seconds=20,
        **more,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with a difficult name."""
    path = tmp_path / 'a "quoted" ${place} \\ with: colon'
    path.mkdir()
    return path


def test_paths_arrive_as_they_are(run: Path) -> None:
    settings = settings_of(run)
    written = yaml.safe_load(write_bootstrap(settings).read_text())
    assert written["admin"]["address"]["pipe"]["path"] == str(run / "envoy-admin.sock")
    cluster = written["static_resources"]["clusters"][0]
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert endpoint["address"]["pipe"]["path"] == str(run / "controller.sock")
    assert "transport_socket" not in cluster
    assert [path.name for path in run.iterdir()] == ["envoy.yaml"]


@pytest.mark.parametrize(
    ("address", "kind", "host"),
    [("127.0.0.1:9003", "STATIC", "127.0.0.1"), ("controller.llm.svc:9003", "STRICT_DNS", "controller.llm.svc")],
)
def test_the_controller_is_reached_over_tcp_with_the_identity_that_it_must_have(
    run: Path, address: str, kind: str, host: str
) -> None:
    settings = settings_of(
        run,
        member_addresses={"controller": address},
        member_certificates=run / "{member}",
        trust_domain="mesh.test",
    )
    written = yaml.safe_load(write_bootstrap(settings).read_text())
    (cluster,) = written["static_resources"]["clusters"]
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert cluster["type"] == kind
    assert endpoint["address"] == {"socket_address": {"address": host, "port_value": 9003}}
    context = cluster["transport_socket"]["typed_config"]["common_tls_context"]
    matchers = context["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"]
    assert matchers == [{"san_type": "URI", "matcher": {"exact": "spiffe://mesh.test/controller"}}]
    named = context["tls_certificate_sds_secret_configs"][0]["sds_config"]["path_config_source"]["path"]
    (secret,) = json.loads(Path(named).read_text())["resources"]
    assert secret["tls_certificate"]["private_key"] == {"filename": str(run / "envoy" / "tls.key")}
    assert secret["tls_certificate"]["watched_directory"] == {"path": str(run / "envoy")}


def test_without_a_folder_of_certificates_nothing_is_written(run: Path) -> None:
    with pytest.raises(CommandError, match="LLAMESH_MEMBER_CERTIFICATES is not"):
        write_bootstrap(settings_of(run, member_addresses={"gateway": "127.0.0.1:9000"}))
