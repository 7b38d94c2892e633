"""A whole mesh whose members call each other over loopback TCP with mutual TLS: it serves, and certificates change while it does."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from engine import sentence
from llamesh.member_authority import replace_files
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY, host_name, present
from llamesh.names import MEMBERS
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, until
from tests.ports import free_ports

CALLED = ("gateway", "contract", "download", "controller", "waker")
COMMAND = (sys.executable, "-m", "llamesh.cli.main")


class MeshOnTcp(RunningMesh):
    """A mesh with the certificates of `llamesh certificates`."""

    def __init__(self, home: Path) -> None:
        self.members = dict(zip(CALLED, free_ports(len(CALLED)), strict=True))
        addresses = ",".join(f"{name}=127.0.0.1:{port}" for name, port in self.members.items())
        super().__init__(
            home, LLAMESH_MEMBER_ADDRESSES=addresses, LLAMESH_MEMBER_CERTIFICATES=str(home / "members" / "{member}")
        )

    def certificates(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `llamesh certificates`."""
        return subprocess.run(
            [*COMMAND, "certificates", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def folder(self, member: str) -> Path:
        """The certificate files of a member; the waker is a part of the controller."""
        return self.home / "members" / ("controller" if member == "waker" else member)

    def shown(self, member: str) -> bytes:
        """The certificate that a member shows to Envoy's certificate now."""
        own = self.folder("envoy")
        context = ssl.create_default_context(cafile=str(self.folder(member) / AUTHORITIES))
        context.load_cert_chain(own / CERTIFICATE, own / KEY)
        context.set_alpn_protocols(["h2"])
        name = host_name("llamesh", "controller" if member == "waker" else member)
        with (
            socket.create_connection(("127.0.0.1", self.members[member]), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            return secured.getpeercert(binary_form=True) or b""


@pytest.fixture(scope="module")
def mesh() -> Iterator[MeshOnTcp]:
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))  # short: sockets lie below it
    found = MeshOnTcp(folder / "home")
    try:
        made = found.certificates()
        assert made.returncode == 0, made.stderr
        found.start()
        found.add_model("sentence")
        found.serve("sentence", model_name="sentence")
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


def chat(mesh: MeshOnTcp) -> None:
    """One chat and one management call, which pass all members."""
    body = {"model": "sentence", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
    answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].strip() in sentence.SENTENCE
    listed = mesh.http.get(mesh.url("inference", "/v1/models"))
    assert [each["id"] for each in listed.json()["data"]] == ["sentence"], "the waker answers"
    servers = mesh.call("GET", "/servers")
    assert servers.status_code == 200, servers.text


def test_everything_passes_over_tcp(mesh: MeshOnTcp) -> None:
    chat(mesh)
    assert mesh.components()["envoy"] == "OK"
    connected = {
        (each.laddr.port if each.laddr.port in mesh.members.values() else each.raddr.port): each.status
        for name, process in mesh.processes().items()
        if name == "envoy"
        for each in process.net_connections("tcp")
        if each.raddr and each.raddr.port in mesh.members.values()
    }
    assert {mesh.members[name] for name in ("gateway", "controller", "waker")} <= connected.keys()
    contract = mesh.processes()["contract"]
    peers = {each.raddr.port for each in contract.net_connections("tcp") if each.raddr}
    assert mesh.members["gateway"] in peers


def test_the_files_are_private(mesh: MeshOnTcp) -> None:
    for member in (*MEMBERS, "authority"):
        assert mesh.folder(member).stat().st_mode & 0o777 == 0o700
        for name in (KEY, AUTHORITIES):
            assert (mesh.folder(member) / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("member", CALLED)
def test_a_program_outside_the_mesh_gets_nothing(mesh: MeshOnTcp, member: str) -> None:
    address = f"127.0.0.1:{mesh.members[member]}"
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{address}/", timeout=60)
    context = ssl.create_default_context(cafile=str(mesh.folder(member) / AUTHORITIES))
    context.check_hostname = False
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"https://{address}/", verify=context, timeout=60)


def test_the_waker_answers_envoy_only(mesh: MeshOnTcp) -> None:
    answers = {}
    for member in ("envoy", "quant"):
        context = ssl.create_default_context(cafile=str(mesh.folder("controller") / AUTHORITIES))
        context.check_hostname = False
        context.load_cert_chain(mesh.folder(member) / CERTIFICATE, mesh.folder(member) / KEY)
        headers = {"x-llamesh-scopes": "infer:*"}
        answer = httpx.get(f"https://127.0.0.1:{mesh.members['waker']}/v1/models", verify=context, headers=headers)
        answers[member] = answer.status_code
    assert answers == {"envoy": 200, "quant": 403}


@contextmanager
def under_load(mesh: MeshOnTcp) -> Iterator[list[int]]:
    """Chats and management calls without a pause, and one watch; fails if any of them does."""
    stop, failed, done = threading.Event(), [], [0]
    token = mesh.token

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                body = {"model": "sentence", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
                answers = (
                    client.post(mesh.url("inference", "/v1/chat/completions"), json=body),
                    client.get(mesh.url("gateway", "/servers"), headers={"authorization": f"Bearer {token}"}),
                    client.get(mesh.url("inference", "/v1/models")),
                )
                failed.extend(each.text for each in answers if each.status_code != 200)
                done[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []


def test_certificates_change_while_the_mesh_serves(mesh: MeshOnTcp) -> None:
    with mesh.without_restarts(), under_load(mesh) as done:
        seen = {member: {mesh.shown(member)} for member in CALLED}
        for round_ in range(2):
            made = mesh.certificates("--renew")
            assert made.returncode == 0, made.stderr
            for member in CALLED:
                before = len(seen[member])

                def changed(member: str = member, before: int = before) -> bool:
                    seen[member].add(mesh.shown(member))
                    return len(seen[member]) > before

                until(changed, 30, f"{member} to show its new certificate")
            before = done[0]
            until(lambda before=before: done[0] > before + 4, 60, f"requests after change {round_}")
    log = "\n".join(path.read_text(errors="replace") for path in (mesh.home / "logs").glob("*.log"))
    assert "the certificate that is in use stays" not in log
    assert "refused a member" in log, "the test before this one"


def envoy_serial(mesh: MeshOnTcp) -> set[str]:
    """The serial numbers of the certificates that Envoy has now, by its admin interface."""
    transport = httpx.HTTPTransport(uds=str(mesh.home / "run" / "envoy-admin.sock"))
    with httpx.Client(transport=transport) as client:
        found = json.loads(client.get("http://envoy/certs").text)["certificates"]
    return {chain["serial_number"] for each in found for chain in each.get("cert_chain", ())}


def test_envoy_takes_its_new_certificate_toward_every_member(mesh: MeshOnTcp) -> None:
    before = envoy_serial(mesh)
    assert len(before) == 1
    assert mesh.certificates("envoy", "--renew").returncode == 0
    until(lambda: len(now := envoy_serial(mesh)) == 1 and not now & before, 30, "Envoy's new certificate")
    chat(mesh)


def test_files_that_cannot_be_used_change_nothing_and_health_says_so(mesh: MeshOnTcp) -> None:
    before = envoy_serial(mesh)
    for member in ("envoy", "gateway", "contract"):
        place = present(mesh.folder(member))
        files = {name: (place / name).read_bytes() for name in (CERTIFICATE, AUTHORITIES)}
        other = (mesh.folder("quant") / KEY).read_bytes()
        replace_files(mesh.folder(member), {**files, KEY: other})
    until(
        lambda: mesh.components()["gateway"] == mesh.components()["contract"] == "DEGRADED", 30, "health that says so"
    )
    chat(mesh)
    assert envoy_serial(mesh) == before
    assert mesh.certificates("--renew").returncode == 0
    until(mesh.healthy, 30, "a healthy mesh")
    until(lambda: not envoy_serial(mesh) & before, 30, "Envoy's new certificate")
    chat(mesh)


def test_a_restarted_member_and_envoy_connect_again(mesh: MeshOnTcp) -> None:
    for name in ("contract", "controller", "envoy"):
        before = mesh.processes()[name]
        before.kill()
        until(lambda name=name, before=before: mesh.processes().get(name) not in (None, before), 60, f"a new {name}")
        until(mesh.healthy, 90, "a healthy mesh")
    until(lambda: not psutil.pid_exists(before.pid) or before.status() == psutil.STATUS_ZOMBIE, 30)
    chat(mesh)


def test_a_mesh_without_usable_certificates_does_not_start(mesh: MeshOnTcp, tmp_path: Path) -> None:
    other = MeshOnTcp(tmp_path / "home")
    started = subprocess.run(
        [*COMMAND, "up"], env=other.environment, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    assert started.returncode == 2
    assert "tls.crt cannot be read: No such file or directory" in started.stderr
    assert "llamesh certificates" in started.stderr
    other.http.close()
