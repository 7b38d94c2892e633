"""A real Envoy under the real control plane, with stub upstreams on Unix sockets: what the mesh tests of the front door stand on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import jwt

from controller.xds import templates
from controller.xds.clusters import ServerEndpoints, ServiceSettings
from controller.xds.inference import InferenceSettings
from controller.xds.intent import ADMISSION_ID_KINDS
from controller.xds.management import ManagementSettings
from controller.xds.serving import ControlPlane
from controller.xds.tokens import TokenSettings
from llamesh.addresses import listening_addresses
from llamesh.envoy_binary import find_envoy
from tests.mesh.http_connection import Answer, Connection, read_body, read_head, written
from tests.ports import free_ports
from tests.standings import uid_of

SECRET = b"0123456789abcdef0123456789abcdef"

JWKS = json.dumps(
    {
        "keys": [
            {
                "kty": "oct",
                "alg": "HS256",
                "kid": "k1",
                "k": base64.urlsafe_b64encode(SECRET).rstrip(b"=").decode(),
            }
        ]
    }
)

PATIENCE = 30.0
"""Seconds that Envoy, the control plane and a test may take on a busy machine for what usually takes milliseconds."""

A_DAY = 24 * 3600
"""Seconds. Modules make tokens when they are imported, which may be long before their tests run."""


def token(*, key: bytes = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """A token of the mesh; `claims` replace the usual ones, None takes one away."""
    now = int(time.time())
    sub = claims.get("sub", "ada")
    usual = {"iss": "llamesh", "aud": "llamesh", "sub": sub, "exp": now + A_DAY, "iat": now, "scopes": ["infer:*"]}
    usual |= {"uid": uid_of(str(sub)), "standing": 1}
    return jwt.encode({name: value for name, value in (usual | claims).items() if value is not None}, key, algorithm)


@dataclass
class Received:
    """A request as an upstream saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Handler = Callable[[Received], Awaitable[tuple[int, dict[str, str], bytes]]]


@dataclass
class StubEngine:
    """An HTTP/1.1 server that answers as llama.cpp does: a stream ends with a closed connection, kept alive by its words."""

    location: str
    name: str = "engine"
    handler: Handler | None = None
    first_token: asyncio.Event | None = None
    """The head of a stream is sent at once, its first token when this is set."""
    received: list[Received] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.location, limit=1 << 20)

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        Path(self.location).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                first, headers = await read_head(reader)
                method, path, _ = first.split()
                request = Received(method, path, headers, await read_body(reader, headers))
                self.received.append(request)
                if self.handler:
                    status, extra, body = await self.handler(request)
                    self._write(writer, status, extra, body)
                elif request.body and json.loads(request.body).get("stream"):
                    await self._stream(writer)
                    return
                else:
                    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
                    self._write(writer, 200, {}, written({"from": self.name, "usage": usage}).encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    def _write(self, writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes) -> None:
        usual = {
            "content-type": "application/json; charset=utf-8",
            "content-length": str(len(body)),
            "access-control-allow-origin": "*",
            "keep-alive": "timeout=5, max=100",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in (usual | headers).items())
        writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nkeep-alive: timeout=5\r\n\r\n"
        )
        await writer.drain()
        if self.first_token:
            await self.first_token.wait()
        last = {"choices": [], "timings": {"prompt_n": 3, "cache_n": 2, "predicted_n": 3}}
        for event in ('{"choices":[{"delta":{"content":"hi"}}]}', written(last), "[DONE]"):
            data = f"data: {event}\n\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


class FrontDoor:
    """Envoy, its control plane and their folder. Sockets live below a short path: those of Unix are limited to 107 bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control = ControlPlane()
        for kind in ADMISSION_ID_KINDS:
            self.control.set_admission_ids(kind, ())
        (self.port,) = free_ports(1)
        self.engines: list[StubEngine] = []
        self.waker = StubEngine(self.socket("waker"), "waker")
        self._connections: list[Connection] = []
        self._server: grpc.aio.Server | None = None
        self._envoy: asyncio.subprocess.Process | None = None

    def socket(self, name: str) -> str:
        return str(self.folder / f"{name}.sock")

    @property
    def pid(self) -> int:
        assert self._envoy
        return self._envoy.pid

    def inference(self, **changed: Any) -> InferenceSettings:
        usual: dict[str, Any] = {
            "addresses": listening_addresses("localhost"),
            "port": self.port,
            "tokens": TokenSettings(JWKS),
            "allow_anonymous": True,
            # Some 5 s, for the tests of what never comes back.
            "restart_retries": 14,
        }
        return InferenceSettings(**(usual | changed))

    def services(self) -> list[ServiceSettings]:
        names = ("gateway", "contract", "download")
        return [
            *(ServiceSettings(name, self.socket(name)) for name in names),
            ServiceSettings("waker", self.waker.location, http1=True),
        ]

    async def engine(self, name: str = "engine", handler: Handler | None = None) -> StubEngine:
        engine = StubEngine(self.socket(name), name, handler)
        await engine.start()
        self.engines.append(engine)
        return engine

    def serve(
        self,
        server_uuid: str,
        *engines: StubEngine,
        names: tuple[str, ...] = (),
        max_connections: int = 8,
        ask: bool = False,
        **limits: int,
    ) -> None:
        at = tuple(engine.location for engine in engines)
        self.control.set_server(ServerEndpoints(server_uuid, names, at, max_connections, ask, **limits))

    async def start_control(self) -> None:
        self._server = grpc.aio.server()
        self.control.add_to(self._server)
        self._server.add_insecure_port(f"unix:{self.socket('controller')}")
        await self._server.start()

    async def stop_control(self) -> None:
        assert self._server
        await self._server.stop(None)

    async def start(
        self,
        inference: InferenceSettings | None = None,
        management: tuple[ManagementSettings, ...] = (),
        services: list[ServiceSettings] | None = None,
    ) -> None:
        await self.waker.start()
        self.control.set_static(services or self.services(), inference, management)
        await self.start_control()
        self.control.publish()
        bootstrap = templates.render(
            "bootstrap.yaml",
            "envoy.config.bootstrap.v3.Bootstrap",
            {"node_id": "test", "admin_path": self.socket("admin"), "controller_path": self.socket("controller")},
        )
        file = self.folder / "bootstrap.pb"
        file.write_bytes(bootstrap.SerializeToString())
        with (self.folder / "envoy.log").open("wb") as log:
            self._envoy = await asyncio.create_subprocess_exec(
                str(find_envoy()),
                *("-c", str(file), "--concurrency", "2", "--use-dynamic-base-id", "--log-level", "info"),
                stdout=log,
                stderr=log,
            )
        assert await self.control.settled(PATIENCE), self.log()
        await self.until(self._listens, PATIENCE)

    async def stop(self) -> None:
        for connection in self._connections:
            connection.close()
        if self._envoy and self._envoy.returncode is None:
            self._envoy.kill()
            await self._envoy.wait()
        if self._server:
            await self._server.stop(None)
        for engine in (*self.engines, self.waker):
            if Path(engine.location).exists():
                await engine.stop()

    async def _listens(self) -> bool:
        answer = await self.admin("/ready")
        return answer.strip() == "LIVE"

    async def until(self, condition: Callable[[], Awaitable[bool]], timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while True:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    if await condition():
                        return
                await asyncio.sleep(0.02)

    async def admin(self, path: str) -> str:
        reader, writer = await asyncio.open_unix_connection(self.socket("admin"), limit=1 << 24)
        connection = Connection(reader, writer)
        try:
            return (await connection.send("GET", path)).body.decode()
        finally:
            connection.close()

    async def stat(self, name: str) -> int:
        """A counter or gauge of Envoy."""
        lines = dict(line.rsplit(": ", 1) for line in (await self.admin(f"/stats?filter={name}")).splitlines())
        return int(lines[name])

    def log(self) -> str:
        return (self.folder / "envoy.log").read_text()

    async def connect(self, port: int | None = None) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port or self.port, limit=1 << 24))
        self._connections.append(connection)
        return connection

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        port: int | None = None,
        version: str = "1.1",
    ) -> Answer:
        """One request on a connection of its own."""
        connection = await self.connect(port)
        try:
            return await connection.send(method, path, body, headers, version)
        finally:
            connection.close()
            self._connections.remove(connection)

    async def chat(
        self,
        model: str = "smol",
        *,
        path: str = "/v1/chat/completions",
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> Answer:
        return await self.send("POST", path, {"model": model, "messages": []} | fields, headers)


@contextlib.asynccontextmanager
async def front_door(*, running: bool = True, **settings: Any) -> AsyncIterator[FrontDoor]:
    """A front door in a short folder of its own; nothing of it is left."""
    with tempfile.TemporaryDirectory(
        prefix="fd", dir=os.environ.get("LLAMESH_TEST_TMP", tempfile.gettempdir())
    ) as folder:
        door = FrontDoor(Path(folder))
        try:
            if running:
                await door.start(door.inference(**settings))
            yield door
        finally:
            await door.stop()


async def wait_for(condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
    """Return once a condition holds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)
