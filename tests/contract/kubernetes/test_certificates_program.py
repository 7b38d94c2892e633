"""`python -m controller.kubernetes.certificates` as a Job runs it: exit codes, and nothing of a key in what it says."""

from __future__ import annotations

import asyncio
import os
import sys
from base64 import b64decode
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller.kubernetes import certificate_run, certificates
from controller.kubernetes.certificate_secrets import secret_of
from llamesh.kit.kubernetes_api import KubernetesApi
from llamesh.member_authority import AUTHORITY, OLD_KEY
from llamesh.member_certificates import KEY
from tests.contract.patience import PATIENCE
from tests.kubernetes_cluster import StandIn

PLACE = "/api/v1/namespaces/mesh/secrets"
PIECE = 12
"""Characters of a key that no output may have in a row."""
Program = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def program(cluster: StandIn, tmp_path: Path) -> Program:
    async def run(*words: str) -> tuple[int, str]:
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "LLAMESH_LEASE_NAMESPACE": "mesh",
            "LLAMESH_LOG_LEVEL": "debug",
        }
        command = (sys.executable, "-m", "controller.kubernetes.certificates", *words)
        running = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            output, _ = await asyncio.wait_for(running.communicate(), PATIENCE)
        finally:
            if running.returncode is None:
                running.kill()
        assert running.returncode is not None
        return running.returncode, output.decode()

    return run


def names(cluster: StandIn) -> list[str]:
    return [item["metadata"]["name"] for item in cluster.of("secrets")]


def keys(cluster: StandIn) -> list[str]:
    """Every key in the cluster, as PEM and as its Secret has it."""
    found = [value for item in cluster.of("secrets") for name, value in item["data"].items() if name in (KEY, OLD_KEY)]
    return found + [line for value in found for line in b64decode(value).decode().splitlines() if "-----" not in line]


def shows(output: str, key: str) -> bool:
    return any(key[start : start + PIECE] in output for start in range(len(key) - PIECE + 1))


async def test_the_program_makes_renews_and_refuses_and_never_shows_a_key(
    cluster: StandIn, api: KubernetesApi, program: Program
) -> None:
    code, said = await program()
    assert code == 0, said
    assert names(cluster) == [
        secret_of(each) for each in (AUTHORITY, "gateway", "contract", "download", "controller", "envoy")
    ]
    assert said.count("wrote a Secret") == 6
    seen = keys(cluster)

    code, more = await program("--members=gateway,quant", "--new-authority", "--hours=48")
    assert (code, more.count("wrote a Secret")) == (0, 3), more
    seen += keys(cluster)
    said += more

    # Garbage that is near a key, and an answer that repeats what was sent.
    half = cluster.objects[f"{PLACE}/llamesh-gateway-tls"]["data"][KEY]
    await api.merge(f"{PLACE}/llamesh-gateway-tls", {"data": {KEY: half[: len(half) // 8 * 4]}})
    code, more = await program()
    assert code == 2
    assert "the Secret llamesh-gateway-tls cannot be used: tls.key is no key" in more
    said += more

    cluster.fault = (403, f"cannot get resource: {half}")
    code, more = await program()
    assert code == 1
    assert (
        "no right to get secrets/llamesh-gateway-tls in the namespace mesh: apply deploy/kubernetes/certificate-rights"
        in more
    )
    said += more
    cluster.fault = (422, half)
    code, more = await program()
    assert (code, "status 422" in more) == (1, True)
    said += more

    assert shows(seen[0], seen[0])
    assert not [key for key in seen if shows(said, key)]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--members=gateway,engine"], "is no list of gateway,contract"),
        (["--members="], "is no list of gateway,contract"),
        (["--hours=5"], "no number of hours between 6 and 8760"),
        (["--hours=nan"], "no number of hours between 6 and 8760"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        certificates.main(words)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


@pytest.fixture
def own_logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave the logs of the tests' process as they are, and its settings out."""
    monkeypatch.setattr(certificates, "configure_logs", lambda *_: None)
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))


@pytest.mark.usefixtures("own_logs")
def test_no_cluster_and_one_that_is_away_end_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(certificate_run, "MAX_PAUSE", 0.0)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    assert certificates.main([]) == 2
    assert "certificates: no cluster is configured" in capsys.readouterr().err
    away = StandIn()
    away.address = "http://127.0.0.1:1"
    monkeypatch.setenv("KUBECONFIG", str(away.write_kubeconfig(tmp_path / "kubeconfig")))
    assert certificates.main(["--namespace=mesh"]) == 1
    said = capsys.readouterr().err
    assert "certificates: gave up after 10 attempts: the API server did not get secrets/llamesh-gateway-tls" in said
    monkeypatch.setenv("LLAMESH_TRUST_DOMAIN", "Not A Name")
    assert certificates.main([]) == 2
    assert "LLAMESH_TRUST_DOMAIN" in capsys.readouterr().err


@pytest.mark.usefixtures("own_logs")
def test_the_namespace_is_that_of_the_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def run(_: object, namespace: str) -> None:
        asked.append(namespace)

    file = tmp_path / "namespace"
    file.write_text("of-the-pod\n", encoding="utf-8")
    monkeypatch.setattr(certificates, "_run", run)
    monkeypatch.setattr(certificates, "_NAMESPACE_FILE", file)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("LLAMESH_LEASE_NAMESPACE", "of-the-settings")
    certificates.main([])
    certificates.main(["--namespace=named"])
    file.unlink()
    certificates.main([])
    assert asked == ["of-the-pod", "named", "of-the-settings"]


@pytest.mark.usefixtures("own_logs")
def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def run(*_: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/llamesh-x")

    monkeypatch.setattr(certificates, "_run", run)
    assert certificates.main([]) == 1
    assert "certificates: /tmp/llamesh-x: No space left on device" in capsys.readouterr().err
