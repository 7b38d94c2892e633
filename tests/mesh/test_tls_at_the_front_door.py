"""A whole mesh with the certificate of `llamesh tls init`: every client speaks https, nothing is served in clear, renewals are taken."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import openai
import pytest

from engine import sentence
from llamesh.cli.mesh.authority import fingerprint
from llamesh.client.sync import Client
from llamesh.client.trust import authorities
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.mesh.running import ADMIN, COMMAND_SECONDS, RunningMesh, until

PAGE = "https://ui.example"
"""Origin of a web page that may use the mesh."""
COMMAND = (sys.executable, "-m", "llamesh.cli.main")


class TlsMesh(RunningMesh):
    """A mesh that speaks TLS."""

    def url(self, port: str, path: str) -> str:
        return f"https://localhost:{self.ports[port]}{path}"

    @property
    def authority(self) -> Path:
        return self.home / "tls" / "ca.pem"

    def command(self, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words],
            env=self.environment | changed,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def certificate(self, port: str = "inference", context: ssl.SSLContext | None = None) -> bytes:
        """The certificate that a port shows now."""
        context = context or ssl.create_default_context(cafile=str(self.authority))
        with (
            socket.create_connection(("127.0.0.1", self.ports[port]), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            return secured.getpeercert(binary_form=True) or b""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsMesh]:
    config = tmp_path_factory.mktemp("config")
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))  # short: sockets lie below it
    found = TlsMesh(folder / "home", XDG_CONFIG_HOME=str(config), LLAMESH_ALLOWED_ORIGINS=PAGE)
    try:
        made = found.command("tls", "init", "--name", "mesh.example", "--name", "192.0.2.7")
        assert made.returncode == 0, made.stderr
        found.http = httpx.Client(timeout=60, verify=ssl.create_default_context(cafile=str(found.authority)))
        found.start()
        found.add_model("sentence")
        found.serve("sentence", model_name="sentence")
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_tls_init_creates_private_files_once(mesh: TlsMesh) -> None:
    files = {path.name: path.stat().st_mode & 0o777 for path in (mesh.home / "tls").iterdir()}
    assert files == dict.fromkeys(("ca.pem", "ca.key", "server.pem", "server.key"), 0o600)
    before = (mesh.home / "tls" / "server.pem").read_bytes()
    again = mesh.command("tls", "init")
    assert (again.returncode, (mesh.home / "tls" / "server.pem").read_bytes()) == (0, before)
    assert "still valid" in again.stderr
    assert (mesh.home / "config.env").read_text().count("LLAMESH_TLS_CERTIFICATE=") == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_needs_nothing_but_the_authority(mesh: TlsMesh) -> None:
    asked = {"inference": "/v1/models", **dict.fromkeys(("gateway", "contract", "download"), "/health")}
    for port, path in asked.items():
        words = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", str(mesh.authority)]
        answer = subprocess.run([*words, mesh.url(port, path)], capture_output=True, text=True, timeout=30, check=False)
        assert answer.stdout == "200", answer.stderr
    without = subprocess.run(
        ["curl", "-sS", mesh.url("gateway", "/health")], capture_output=True, timeout=30, check=False
    )
    assert without.returncode == 60


def test_the_openai_sdk(mesh: TlsMesh) -> None:
    client = openai.OpenAI(base_url=mesh.url("inference", "/v1"), api_key="not-needed", http_client=mesh.http)
    answer = client.chat.completions.create(model="sentence", messages=[{"role": "user", "content": "Hi"}])
    assert sentence.SENTENCE in (answer.choices[0].message.content or "")


def test_grpc_with_the_authority(mesh: TlsMesh) -> None:
    credentials = grpc.ssl_channel_credentials(mesh.authority.read_bytes())
    with grpc.secure_channel(f"localhost:{mesh.ports['gateway']}", credentials) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        assert stub.CreateToken(gateway_pb2.CreateTokenRequest(**ADMIN), timeout=60).access_token


def test_a_browser_negotiates_http2_and_an_old_client_http1(mesh: TlsMesh) -> None:
    for offered, chosen in ((["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)):
        context = ssl.create_default_context(cafile=str(mesh.authority))
        if offered:
            context.set_alpn_protocols(offered)
        with (
            socket.create_connection(("localhost", mesh.ports["inference"]), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="mesh.example") as secured,
        ):
            assert secured.selected_alpn_protocol() == chosen


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_page_in_a_browser_asks_first_then_streams_over_http2_and_calls_grpc_web(mesh: TlsMesh) -> None:
    """curl sends over HTTP/2 what a browser sends for a page of another origin."""

    def fetch(port: str, path: str, origin: str, *words: str, body: bytes = b"") -> tuple[str, str, bytes]:
        """Status line, Access-Control-Allow-Origin and body."""
        sent = ["--data-binary", "@-"] if body else []
        usual = ["curl", "--http2", "-sS", "-N", "-i", "--cacert", str(mesh.authority), "-H", f"Origin: {origin}"]
        done = subprocess.run(
            [*usual, *sent, *words, mesh.url(port, path)],
            input=body,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        status, *lines = head.decode().splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        return status.strip(), headers.get("access-control-allow-origin", ""), content

    chat = "/v1/chat/completions"
    json_type = ("-H", "Content-Type: application/json")
    asked = ("-X", "OPTIONS", "-H", "Access-Control-Request-Method: POST")
    asked += ("-H", "Access-Control-Request-Headers: content-type")
    assert fetch("inference", chat, PAGE, *asked)[:2] == ("HTTP/2 200", PAGE)
    assert fetch("inference", chat, "https://other.example", *asked)[1] == ""

    body = b'{"model": "sentence", "messages": [{"role": "user", "content": "Hi"}], "stream": true}'
    status, allowed, content = fetch("inference", chat, PAGE, *json_type, body=body)
    assert (status, allowed) == ("HTTP/2 200", PAGE)
    assert content.rstrip().endswith(b"data: [DONE]")
    # Without a body: curl 7 reports an error if it gets the answer while it still sends.
    refused = fetch("inference", chat, "https://other.example", *json_type, "-X", "POST")
    assert refused[:2] == ("HTTP/2 403", "")

    message = gateway_pb2.CreateTokenRequest(**ADMIN).SerializeToString()
    frame = b"\0" + len(message).to_bytes(4, "big") + message
    web = ("-H", "Content-Type: application/grpc-web+proto", "-H", "X-Grpc-Web: 1")
    status, allowed, content = fetch("gateway", "/llamesh.v1.GatewayService/CreateToken", PAGE, *web, body=frame)
    assert (status, allowed) == ("HTTP/2 200", PAGE)
    length = int.from_bytes(content[1:5], "big")
    assert gateway_pb2.CreateTokenResponse.FromString(content[5 : 5 + length]).access_token


def test_tls_before_1_2_is_refused(mesh: TlsMesh) -> None:
    context = ssl.create_default_context(cafile=str(mesh.authority))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        mesh.certificate(context=context)


def test_plain_http_is_led_to_https_and_never_served(mesh: TlsMesh) -> None:
    with httpx.Client(timeout=60) as plain:
        for port in ("inference", "gateway"):
            led = plain.get(f"http://localhost:{mesh.ports[port]}/health?a=b")
            assert (led.status_code, led.headers["location"]) == (308, mesh.url(port, "/health?a=b"))
            host = f"mesh.example:{mesh.ports[port]}"
            led = plain.get(f"http://localhost:{mesh.ports[port]}/health", headers={"Host": host})
            assert (led.status_code, led.headers["location"]) == (308, f"https://{host}/health")
            # The host is the caller's word: nobody is led to a host that is not the mesh's.
            # Envoy compares the host up to the first colon.
            disguised = (
                "localhost:1@stranger.example",
                "localhost:@stranger.example",
                "localhost:x",
                "[::1]:1@a.example",
            )
            for stranger in (
                "stranger.example",
                "stranger.example:80",
                "localhost.stranger.example",
                "x@localhost",
                *disguised,
            ):
                told = plain.get(f"http://localhost:{mesh.ports[port]}/health", headers={"Host": stranger})
                assert (told.status_code, "location" in told.headers) == (400, False)
                assert "https://" in told.text
        told = plain.post(f"http://localhost:{mesh.ports['inference']}/v1/chat/completions", json={"model": "sentence"})
        assert (told.status_code, told.json()["error"]["code"]) == (400, "https_required")
        told = plain.post(f"http://localhost:{mesh.ports['gateway']}/auth/token", json=ADMIN)
        assert told.status_code == 400
        assert "https://" in told.json()["message"]
    with grpc.insecure_channel(f"localhost:{mesh.ports['gateway']}") as channel, pytest.raises(grpc.RpcError) as caught:
        gateway_pb2_grpc.GatewayServiceStub(channel).CreateToken(gateway_pb2.CreateTokenRequest(**ADMIN), timeout=60)
    assert "https://" in caught.value.details()


def test_the_command_and_the_sdk_of_this_machine_need_no_setting(
    mesh: TlsMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged_in = subprocess.run(
        [*COMMAND, "login", "admin", "--password-stdin"],
        env=mesh.environment,
        input="admin\n",
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert logged_in.returncode == 0, logged_in.stderr
    assert "sentence" in mesh.command("status").stdout
    assert sentence.SENTENCE in mesh.command("chat", "sentence", "Hi").stdout
    answer = mesh.command("api", "-i", "GET", "/models").stdout
    assert answer.startswith("HTTP/1.1 200 OK\n")
    assert "\n\n{" in answer
    for name in ("LLAMESH_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, mesh.environment[name])
    with Client() as client:
        assert [server.model_name for server in client.servers.list()] == ["sentence"]


def test_another_machine_is_told_to_trust_and_then_does(mesh: TlsMesh, tmp_path: Path) -> None:
    elsewhere = {"LLAMESH_HOME": "", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    elsewhere |= {"LLAMESH_URL": mesh.url("gateway", ""), "LLAMESH_TOKEN": mesh.token}
    assert mesh.command("status", **elsewhere).returncode != 0
    assert mesh.command("status", **elsewhere, LLAMESH_CA=str(mesh.authority)).returncode == 0
    kept = mesh.command("tls", "trust", str(mesh.authority), **elsewhere)
    assert kept.returncode == 0, kept.stderr
    assert fingerprint(mesh.authority) in kept.stderr
    assert mesh.command("status", **elsewhere).returncode == 0
    wrong = mesh.command("status", **elsewhere, LLAMESH_CA=str(tmp_path / "nothing.pem"))
    assert (wrong.returncode, "nothing.pem" in wrong.stderr) == (2, True)


def test_only_authorities_are_trusted_and_another_one_beside_the_first(mesh: TlsMesh, tmp_path: Path) -> None:
    elsewhere = {"LLAMESH_HOME": str(tmp_path / "other"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert mesh.command("tls", "init", **elsewhere).returncode == 0
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n")
    mixed = tmp_path / "mixed.pem"
    mixed.write_bytes(mesh.authority.read_bytes() + (mesh.home / "tls" / "server.key").read_bytes())
    for file in (nonsense, mixed, mesh.home / "tls" / "server.pem"):
        refused = mesh.command("tls", "trust", str(file), **elsewhere)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith(f"error: {file}: it holds ")
    kept = tmp_path / "config" / "llamesh" / "ca.pem"
    assert not kept.exists()
    for file in (mesh.authority, tmp_path / "other" / "tls" / "ca.pem", mesh.authority):
        assert mesh.command("tls", "trust", str(file), **elsewhere).returncode == 0
    assert len(authorities(kept.read_bytes())) == 2
    kept.write_bytes(nonsense.read_bytes())
    broken = mesh.command(
        "api", "GET", "/models", **elsewhere | {"LLAMESH_HOME": "", "LLAMESH_URL": mesh.url("gateway", "")}
    )
    assert "hint: remove the file, and trust the authority again" in broken.stderr


def test_a_renewed_certificate_is_taken_without_a_restart_and_a_half_renewed_one_is_not(mesh: TlsMesh) -> None:
    log = mesh.home.parent / "up.log"
    assert "has a new certificate" not in log.read_text()
    first = mesh.certificate()
    kept = (mesh.home / "tls" / "server.key").read_bytes()
    envoy = mesh.processes()["envoy"].pid
    renewed = mesh.command("tls", "init", "--renew")
    assert renewed.returncode == 0, renewed.stderr
    until(lambda: mesh.certificate() != first, 60, "the renewed certificate")
    until(lambda: "has a new certificate" in log.read_text(), 60, "words about the renewal")
    second = mesh.certificate()
    good = (mesh.home / "tls" / "server.key").read_bytes()
    (mesh.home / "tls" / "server.key").write_bytes(kept)
    until(lambda: "does not belong to the certificate" in log.read_text(), 60, "words about the pair")
    assert mesh.certificate() == second
    (mesh.home / "tls" / "server.key").write_bytes(good)
    assert mesh.processes()["envoy"].pid == envoy


def test_the_start_refuses_an_unusable_pair_and_names_the_remedy(mesh: TlsMesh, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert mesh.command("tls", "init", LLAMESH_HOME=str(other)).returncode == 0
    pair = {
        "LLAMESH_TLS_CERTIFICATE": str(other / "tls" / "server.pem"),
        "LLAMESH_TLS_KEY": str(other / "tls" / "server.key"),
    }
    own = str(tmp_path / "own")
    # Its ports are free: those of the fixture's mesh are taken.
    ports = {f"LLAMESH_{name.upper()}_PORT": "0" for name in mesh.ports}
    cases = {
        "does not belong": pair | {"LLAMESH_TLS_KEY": str(mesh.home / "tls" / "server.key")},
        "LLAMESH_TLS_KEY is not": pair | {"LLAMESH_TLS_KEY": ""},
        "cannot be read": pair | {"LLAMESH_TLS_KEY": str(tmp_path / "nothing.key")},
        "holds no PEM": pair | {"LLAMESH_TLS_CERTIFICATE": pair["LLAMESH_TLS_KEY"]},
    }
    for words, settings in cases.items():
        refused = mesh.command("up", LLAMESH_HOME=own, **ports, **settings)
        assert refused.returncode == 2, refused.stderr
        assert words in refused.stderr
        assert "hint:" in refused.stderr


def test_doctor_says_how_long_the_certificate_lasts(mesh: TlsMesh) -> None:
    found = mesh.command("doctor")
    assert "certificate" in found.stdout
    assert "397 days" in found.stdout or "396 days" in found.stdout
