"""One mesh of three supervisors, each with a home and certificates of its own: services, the controller, and Envoy."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.sentence import SENTENCE
from llamesh.member_authority import AUTHORITY, MemberAuthority, replace_files
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY
from llamesh.names import CONTRACT, CONTROLLER, DOWNLOAD, ENVOY, GATEWAY, WAKER
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, until
from tests.ports import free_ports
from tests.processes import kill_all, left_behind, mesh_processes

MACHINES = {"services": (GATEWAY, CONTRACT, DOWNLOAD), "engines": (CONTROLLER,), "front": (ENVOY,)}
CALLED = (GATEWAY, CONTRACT, DOWNLOAD, CONTROLLER, WAKER)
CHAT = {"model": "sentence.gguf", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
COMMAND = (sys.executable, "-m", "llamesh.cli.main")
DRAIN_SECONDS = "200"
"""Longer than the stream of a test takes on a busy machine."""


class Machine:
    """A supervisor of some members, as on a machine of its own."""

    def __init__(self, home: Path, members: tuple[str, ...], environment: dict[str, str]) -> None:
        self.home = home
        self.members = members
        self.log = home.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **environment,
            "LLAMESH_HOME": str(home),
            "LLAMESH_MEMBER_CERTIFICATES": str(home / "members" / "{member}"),
        }

    def start(self) -> None:
        """Start its members."""
        only = [word for name in self.members for word in ("--only", name)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "up", *only],
                env=self.environment,
                cwd=self.home.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self) -> str:
        """What its supervisor has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> int:
        """End it as a service manager does; its exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.kill()

    def kill(self) -> None:
        """End what is left of it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        kill_all(left_behind(self.home))


class SplitMesh(RunningMesh):
    """The mesh as its clients see it: through Envoy. `home` is that of the services, into which models are put."""

    def __init__(self, folder: Path, database: str) -> None:
        addresses = {name: f"127.0.0.1:{port}" for name, port in zip(CALLED, free_ports(len(CALLED)), strict=True)}
        super().__init__(
            folder / "services",
            LLAMESH_MEMBER_ADDRESSES=",".join(f"{name}={address}" for name, address in addresses.items()),
            LLAMESH_DRAIN_SECONDS=DRAIN_SECONDS,
            DATABASE_URL=database,
        )
        self.addresses = addresses
        self.machines = {name: Machine(folder / name, members, self.environment) for name, members in MACHINES.items()}
        authority = MemberAuthority(folder / "issued", "llamesh")
        for machine in self.machines.values():
            for member in machine.members:
                authority.issue(member, datetime.now(UTC))
                shutil.copytree(folder / "issued" / member, machine.home / "members" / member, symlinks=True)

    def start(self) -> None:
        for machine in self.machines.values():
            machine.start()
        self.process = self.machines["services"].process
        until(self.healthy, 120, self.log)

    def log(self) -> str:
        return "\n".join(
            f"== {path}\n{path.read_text(errors='replace')[-3000:]}"
            for machine in self.machines.values()
            for path in (machine.log, *sorted((machine.home / "logs").glob("*.log")))
            if path.exists()
        )

    def stop(self) -> None:
        self.http.close()
        for name in ("front", "engines", "services"):
            self.machines[name].stop()


@pytest.fixture(scope="module")
def mesh(postgres: Callable[..., str]) -> Iterator[SplitMesh]:
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))  # short: sockets lie below it
    found = SplitMesh(folder, postgres(migrated=True))
    try:
        found.start()
        found.add_model("sentence", "sentence.gguf")
        found.serve("sentence", model_name="sentence.gguf", runtime_params="--ctx-size 16384 --parallel 1")
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


def chat(mesh: SplitMesh) -> str:
    answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=CHAT)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def test_a_chat_passes_all_of_them(mesh: SplitMesh) -> None:
    assert chat(mesh) == SENTENCE
    assert set(mesh.components().values()) == {"OK"}


def test_each_supervisor_runs_its_own_members_only(mesh: SplitMesh) -> None:
    for machine in mesh.machines.values():
        records = json.loads((machine.home / "run" / "processes.json").read_text())
        assert {each["name"] for each in records} == set(machine.members)
        assert {path.name for path in (machine.home / "members").iterdir()} == set(machine.members)
        # On one machine there is one controller, with its engines, and one Envoy: that of its own home.
        names = {Path(word).name for process in mesh_processes(machine.home) for word in process.cmdline()[:1]}
        assert (ENVOY in names) is (ENVOY in machine.members)
    assert not list(mesh.home.parent.rglob(f"members/{AUTHORITY}"))


def test_what_up_prints_is_true_of_each(mesh: SplitMesh) -> None:
    services, engines, front = mesh.machines.values()
    assert "gateway, contract and download are ready after" in services.said()
    assert f"  gateway     {mesh.addresses[GATEWAY]}\n" in services.said()
    assert "controller is ready after" in engines.said()
    assert "envoy is ready after" in front.said()
    assert f"  inference   http://localhost:{mesh.ports['inference']}/v1\n" in front.said()
    assert "http" not in services.said() + engines.said()


def test_metrics_have_no_source_that_is_elsewhere(mesh: SplitMesh) -> None:
    answer = mesh.call("GET", "/metrics")
    assert answer.status_code == 200, answer.text
    families = {each.name: each for each in text_string_to_metric_families(answer.text)}
    up = {each.labels["source"]: each.value for each in families["llamesh_up"].samples}
    assert up == dict.fromkeys((GATEWAY, CONTRACT, DOWNLOAD, CONTROLLER), 1.0)
    assert "returned no metrics" not in (mesh.home / "logs" / "gateway.log").read_text()
    # On Envoy's machine its admin interface has them.
    transport = httpx.HTTPTransport(uds=str(mesh.machines["front"].home / "run" / "envoy-admin.sock"))
    with httpx.Client(transport=transport) as client:
        assert "envoy_server_uptime" in client.get("http://envoy/stats/prometheus").text


def test_doctor_asks_the_members_that_run_on_its_machine(mesh: SplitMesh) -> None:
    found = subprocess.run(
        [*COMMAND, "doctor", "--output", "json"],
        env=mesh.machines["services"].environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    states = {each["check"]: each["state"] for each in json.loads(found.stdout)}
    assert {name: states.get(name) for name in (GATEWAY, CONTRACT, DOWNLOAD, "mesh", "members")} == dict.fromkeys(
        (GATEWAY, CONTRACT, DOWNLOAD, "mesh", "members"), "ok"
    )
    assert not {"front door", CONTROLLER} & states.keys()


def serial_numbers(mesh: SplitMesh) -> set[str]:
    """The serial numbers of the certificates that Envoy has now."""
    transport = httpx.HTTPTransport(uds=str(mesh.machines["front"].home / "run" / "envoy-admin.sock"))
    with httpx.Client(transport=transport) as client:
        found = client.get("http://envoy/certs").json()["certificates"]
    return {chain["serial_number"] for each in found for chain in each.get("cert_chain", ())}


def test_envoy_takes_a_new_certificate_of_its_own_machine(mesh: SplitMesh) -> None:
    """The controller, which configures it, has another home and no file of Envoy's."""
    before, front = serial_numbers(mesh), mesh.machines["front"]
    assert len(before) == 1
    issued = mesh.home.parent / "issued"
    MemberAuthority(issued, "llamesh").issue(ENVOY, datetime.now(UTC), renew=True)
    files = {name: (issued / ENVOY / name).read_bytes() for name in (CERTIFICATE, KEY, AUTHORITIES)}
    replace_files(front.home / "members" / ENVOY, files)
    until(lambda: len(now := serial_numbers(mesh)) == 1 and not now & before, 30, "Envoy's new certificate")
    assert chat(mesh) == SENTENCE


def test_a_stream_ends_whole_while_the_supervisor_of_envoy_stops(mesh: SplitMesh) -> None:
    front = mesh.machines["front"]
    assert front.process is not None
    body = {**CHAT, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with mesh.http.stream("POST", mesh.url("inference", "/v1/chat/completions"), json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        front.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in front.said(), 30, "the end to begin")
        *_, last = [line for line in lines if line]
    assert last == "data: [DONE]"
    assert front.process.wait(60) == 0
    assert not (front.home / "run").exists()
    with pytest.raises(httpx.HTTPError):
        mesh.http.get(mesh.url("gateway", "/health"))
    for name in ("services", "engines"):
        process = mesh.machines[name].process
        assert process is not None
        assert process.poll() is None, "others go on"
    front.start()
    until(mesh.healthy, 90, mesh.log)
    assert chat(mesh) == SENTENCE


def test_members_without_addresses_of_the_others_are_refused(mesh: SplitMesh, tmp_path: Path) -> None:
    environment = {**mesh.environment, "LLAMESH_HOME": str(tmp_path / "home")}
    del environment["LLAMESH_MEMBER_ADDRESSES"]
    refused = subprocess.run(
        [*COMMAND, "up", "--only", "gateway,contract"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert refused.returncode == 2
    assert "gateway calls download and controller" in refused.stderr
    assert "LLAMESH_MEMBER_ADDRESSES" in refused.stderr
    assert not (tmp_path / "home").exists(), "nothing is made before"
