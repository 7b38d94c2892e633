"""Behind nginx and Caddy as docs/guide/proxies.md configures them the mesh works for every client, and answers stay streams."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import httpx
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine.sentence import SENTENCE
from tests.cluster.proxies import NAME, Certificate, running_proxy
from tests.mesh.running import RunningMesh, running_mesh
from tools.packages import program

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

MESSAGES = [{"role": "user", "content": "Hi"}]
EVENT = b"data: {}\n\n"
LOGIN = {"username": "admin", "password": "correct horse battery"}


@dataclass(frozen=True)
class Proxied:
    """A mesh behind a proxy."""

    mesh: RunningMesh
    port: int
    certificate: Certificate
    key: str

    def url(self, path: str = "") -> str:
        return f"https://localhost:{self.port}{path}"

    @property
    def http(self) -> httpx.Client:
        return client(self.certificate)

    def chat(self, base: str, key: str = "") -> str:
        """An answer of the model, streamed to the OpenAI SDK."""
        sdk = openai.OpenAI(base_url=self.url(base), api_key=key or self.key, max_retries=0, http_client=self.http)
        with sdk, sdk.chat.completions.create(model="sentence", messages=MESSAGES, stream=True) as chunks:
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def client(certificate: Certificate) -> httpx.Client:
    return httpx.Client(timeout=60, verify=ssl.create_default_context(cafile=str(certificate.authority)))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("authority") / "home")


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """The mesh of this module, with the settings of the page."""
    settings = {
        "LLAMESH_TRUSTED_PROXIES": "1",
        "LLAMESH_ALLOWED_HOSTS": NAME,
        "LLAMESH_ADMIN_PASSWORD": LOGIN["password"],
    }
    with running_mesh(**settings) as running:
        running.add_model("sentence")
        running.serve("sentence", model_name="sentence", runtime_params="--ctx-size 4096")
        yield running


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest) -> str:
    """A proxy that can be had."""
    name = str(request.param)
    if program(name) is None:
        pytest.skip(f"{name} is not installed and cannot be fetched here: `python tools/packages.py` says why")
    return name


@pytest.fixture(scope="module")
def proxied(proxy: str, mesh: RunningMesh, certificate: Certificate) -> Iterator[Proxied]:
    made = mesh.call("POST", "/keys", json={"display_name": proxy, "scopes": ["infer:*"]})
    with running_proxy(proxy, certificate, mesh.ports["inference"], mesh.ports["gateway"]) as port:
        yield Proxied(mesh, port, certificate, made.json()["token"])


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_the_openai_sdk_streams_at_the_root_and_below_a_path(proxied: Proxied, prefix: str) -> None:
    assert proxied.chat(f"{prefix}/v1") == SENTENCE


def test_a_servers_own_address_is_served(proxied: Proxied) -> None:
    (server,) = proxied.mesh.call("GET", "/servers").json()["servers"]
    assert proxied.chat(f"/{server['server_uuid']}/v1") == SENTENCE


def test_a_key_is_required_although_the_proxy_is_on_loopback(proxied: Proxied) -> None:
    with pytest.raises(openai.AuthenticationError):
        proxied.chat("/v1", key="not-needed")


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_management_by_rest_at_the_root_and_below_a_path(proxied: Proxied, prefix: str) -> None:
    with proxied.http as http:
        named = {"host": NAME}
        login = http.post(
            proxied.url(f"{prefix}/auth/token"), json=LOGIN, headers=named, extensions={"sni_hostname": NAME}
        )
        assert login.status_code == 200, login.text
        token = {"authorization": f"Bearer {login.json()['access_token']}"}
        status = http.get(proxied.url(f"{prefix}/status"), headers=token)
        assert (status.status_code, status.headers["content-type"]) == (200, "application/json")
        assert "sentence" in status.text


def test_a_login_is_counted_by_the_clients_address_that_the_proxy_saw(proxied: Proxied) -> None:
    """The client's own words about its address do not make it another client."""
    with proxied.http as http:
        answers = [
            http.post(
                proxied.url("/auth/token"),
                json={"username": f"nobody-{proxied.port}", "password": "wrong"},
                headers={"x-forwarded-for": f"192.0.2.{number}"},
            ).status_code
            for number in range(8)
        ]
    assert answers[0] == 401
    assert answers[-1] == 429


def test_the_command_and_grpc_of_every_service(proxied: Proxied, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMESH_")}
    elsewhere = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "c")}
    elsewhere |= {"LLAMESH_CA": str(proxied.certificate.authority), "LLAMESH_INFERENCE_URL": proxied.url()}

    def command(*words: str, stdin: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llamesh.cli.main", *words],
            env=kept | elsewhere,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("login", "admin", "--password-stdin", "--url", proxied.url(), stdin=LOGIN["password"])
    assert "sentence" in command("status")
    assert SENTENCE in command("chat", "sentence", "Hi")
    credentials = grpc.ssl_channel_credentials(proxied.certificate.authority.read_bytes())
    with grpc.secure_channel(f"localhost:{proxied.port}", credentials) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_long_request_reaches_the_mesh_and_one_beyond_its_limit_does_not(proxied: Proxied) -> None:
    headers = {"authorization": f"Bearer {proxied.key}"}
    with proxied.http as http:

        def ask(length: int) -> httpx.Response:
            words = {"model": "sentence", "messages": [{"role": "user", "content": "a" * length}]}
            return http.post(proxied.url("/v1/chat/completions"), json=words, headers=headers)

        taken = ask(12_000_000)
        assert taken.status_code == 400
        assert taken.json()["error"]["code"], "the mesh's own answer"
        assert ask(17_000_000).status_code == 413


@contextmanager
def hesitant() -> Iterator[tuple[int, threading.Event]]:
    """Port of a server (a labelled fake of an engine) that sends one event, and the rest once the event object is set."""
    resume = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self._chunk(EVENT)
            resume.wait(120)
            self._chunk(EVENT)
            self._chunk(b"")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def log_message(self, *_words: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, resume
        finally:
            resume.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("path", ["/v1/any", "/llm/v1/any", "/00000000-0000-0000-0000-000000000000/v1/any"])
def test_an_event_passes_the_proxy_before_the_next_one_exists(proxy: str, certificate: Certificate, path: str) -> None:
    with (
        hesitant() as (upstream, resume),
        running_proxy(proxy, certificate, upstream, upstream) as port,
        client(certificate) as http,
        http.stream("GET", f"https://localhost:{port}{path}") as answer,
    ):
        received = answer.iter_raw()
        first = next(received)
        assert first == EVENT
        resume.set()
        assert b"".join(received) == EVENT
