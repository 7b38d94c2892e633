"""grpcurl finds and calls everything public by reflection, with no file at hand."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.mesh.running import ROOT, RunningMesh

GRPCURL = ROOT / ".tools" / "bin" / "grpcurl"


def grpcurl(
    mesh: RunningMesh, *arguments: str, port: str = "gateway", token: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run it against a port of the mesh."""
    headers = ["-H", f"authorization: Bearer {mesh.token}"] if token else []
    options = [item for item in arguments if item.startswith("-d=")]
    rest = [item for item in arguments if not item.startswith("-d=")]
    data = [part for item in options for part in ("-d", item.removeprefix("-d="))]
    command = [str(GRPCURL), "-plaintext", *headers, *data, f"127.0.0.1:{mesh.ports[port]}", *rest]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("port", ["gateway", "contract", "download"])
def test_services_are_listed_at_every_management_port(mesh: RunningMesh, port: str) -> None:
    answer = grpcurl(mesh, "list", port=port, token=False)
    assert answer.returncode == 0, answer.stderr
    own = {"contract": ["ContractService"], "download": ["DownloadService"]}
    shown = own.get(port, ["ContractService", "DownloadService", "GatewayService"])
    assert [name for name in answer.stdout.split() if name.startswith("llamesh.")] == [
        f"llamesh.v1.{name}" for name in shown
    ]


def test_a_service_is_described(mesh: RunningMesh) -> None:
    answer = grpcurl(mesh, "describe", "llamesh.v1.GatewayService", token=False)
    assert answer.returncode == 0, answer.stderr
    assert "rpc Serve" in answer.stdout


def test_a_call_is_described_by_its_own_name(mesh: RunningMesh) -> None:
    answer = grpcurl(mesh, "describe", "llamesh.v1.DownloadService.StartDownload", token=False)
    assert answer.returncode == 0, answer.stderr
    assert "rpc StartDownload ( .llamesh.v1.StartDownloadRequest )" in answer.stdout


@pytest.mark.parametrize(
    ("method", "data", "expected"),
    [
        ("llamesh.v1.GatewayService/ListModels", "{}", "models"),
        ("llamesh.v1.GatewayService/GetHealth", "{}", "components"),
        ("llamesh.v1.ContractService/Check", '{"model_uuid":"sentence"}', "allowed"),
        ("llamesh.v1.DownloadService/GetDownload", '{"model_uuid":"sentence"}', "state"),
    ],
)
def test_every_public_service_is_called_at_the_common_port(
    mesh: RunningMesh, method: str, data: str, expected: str
) -> None:
    answer = grpcurl(mesh, f"-d={data}", method)
    assert answer.returncode == 0, answer.stderr
    assert expected in json.loads(answer.stdout)


def test_an_error_shows_its_reason(mesh: RunningMesh) -> None:
    answer = grpcurl(mesh, '-d={"model_uuid":"nothing"}', "llamesh.v1.GatewayService/GetModel")
    assert answer.returncode != 0
    assert "MODEL_NOT_FOUND" in answer.stderr
