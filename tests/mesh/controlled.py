"""A real controller, a real Envoy and real engines, with stand-ins for the gateway's keys and the download service's catalogue.

The stand-ins answer exactly what the controller asks: one key set, and the path of the sentence model for every model id but "missing".
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import psutil
from google.protobuf.duration_pb2 import Duration

from controller.xds import templates
from engine import sentence
from llamesh.envoy_binary import find_envoy
from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.serving import Member
from llamesh.locations import make_private
from llamesh.processes import ProcessId
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.admission_pb2 import (
    WatchLimitedContractsRequest,
    WatchLimitedContractsResponse,
    WatchRevocationsRequest,
    WatchRevocationsResponse,
)
from llamesh.v1.admission_pb2_grpc import AdmissionServiceServicer, add_AdmissionServiceServicer_to_server
from llamesh.v1.controller_pb2_grpc import ControllerServiceStub
from llamesh.v1.download_pb2 import LocateModelRequest, LocateModelResponse
from llamesh.v1.download_pb2_grpc import CatalogueServiceServicer, add_CatalogueServiceServicer_to_server
from llamesh.v1.gateway_pb2 import ListSigningKeysRequest, ListSigningKeysResponse
from llamesh.v1.gateway_pb2_grpc import (
    SigningKeyServiceServicer,
    add_SigningKeyServiceServicer_to_server,
    add_StandingServiceServicer_to_server,
)
from llamesh.v1.server_pb2 import RuntimeParameters, Server, ServerChanges, ServerSpec
from tests.mesh.engines import gone
from tests.ports import free_ports
from tests.processes import ProcessSnapshot, snapshots
from tests.standings import FakeStandings

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "sentence"
READY = server_pb2.SERVER_STATE_READY
DEADLINE = 90.0
"""Seconds that anything here may take on a busy machine."""


class Keys(SigningKeyServiceServicer):
    """One symmetric key."""

    async def ListSigningKeys(self, request: ListSigningKeysRequest, context: Any) -> ListSigningKeysResponse:
        key = base64.urlsafe_b64encode(b"0123456789abcdef0123456789abcdef").rstrip(b"=").decode()
        jwks = {"keys": [{"kty": "oct", "alg": "HS256", "kid": "test", "k": key}]}
        return ListSigningKeysResponse(jwks_json=json.dumps(jwks), version="1")


class Catalogue(CatalogueServiceServicer):
    """Every model is the sentence model, but "missing", which is not there, and "broken", which is no model."""

    def __init__(self, folder: Path) -> None:
        self._good = sentence.write(folder / "sentence.gguf")
        self._broken = folder / "broken.gguf"
        self._broken.write_bytes(b"GGUF" + bytes(64))

    async def LocateModel(self, request: LocateModelRequest, context: Any) -> LocateModelResponse:
        if request.model_uuid == "missing":
            raise MeshError(Reason.ERROR_REASON_MODEL_NOT_FOUND, "no model has the id missing", {})
        return LocateModelResponse(path=str(self._broken if request.model_uuid == "broken" else self._good))


class Nothing(AdmissionServiceServicer):
    """FAKE: a contract service without contracts that has never revoked a key."""

    async def WatchRevocations(
        self, request: WatchRevocationsRequest, context: Any
    ) -> AsyncIterator[WatchRevocationsResponse]:
        yield WatchRevocationsResponse(synced=True)
        await asyncio.Event().wait()

    async def WatchLimitedContracts(
        self, request: WatchLimitedContractsRequest, context: Any
    ) -> AsyncIterator[WatchLimitedContractsResponse]:
        yield WatchLimitedContractsResponse()
        await asyncio.Event().wait()


def _add_gateway(server: grpc.aio.Server) -> None:
    add_SigningKeyServiceServicer_to_server(Keys(), server)
    add_StandingServiceServicer_to_server(FakeStandings(), server)


class ControlledMesh:
    """One mesh in a folder of its own, on free ports."""

    def __init__(self, folder: Path, drain_seconds: float, **variables: str) -> None:
        self.folder = folder
        ports = free_ports(4)
        self.variables = {
            "LLAMESH_HOME": str(folder / "home"),
            "LLAMESH_DRAIN_SECONDS": str(drain_seconds),
            "LLAMA_SERVER_BIN": "embedded",
            "LLAMESH_LOG_LEVEL": "debug",
            **{
                f"LLAMESH_{name}_PORT": str(port)
                for name, port in zip(("INFERENCE", "GATEWAY", "CONTRACT", "DOWNLOAD"), ports, strict=True)
            },
            **variables,
        }
        self.settings = Settings(
            home=folder / "home", inference_port=ports[0], drain_seconds=drain_seconds, jwt_secret=None
        )
        self.command = (sys.executable, "-m", "controller")
        self.url = f"http://127.0.0.1:{ports[0]}"
        self._members: list[tuple[Member, asyncio.Task[None]]] = []
        self._channel: grpc.aio.Channel | None = None
        self._controller: asyncio.subprocess.Process | None = None
        self._envoy: asyncio.subprocess.Process | None = None

    @property
    def control(self) -> Any:
        """The controller's stub."""
        if self._channel is None:
            self._channel = channel(self.settings, "controller", "gateway")
        return ControllerServiceStub(self._channel)

    @property
    def controller_pid(self) -> int:
        assert self._controller
        return self._controller.pid

    async def start(self) -> None:
        make_private(self.settings.run_dir)
        catalogue = Catalogue(self.folder)
        await self._serve("gateway", _add_gateway)
        await self._serve("download", lambda server: add_CatalogueServiceServicer_to_server(catalogue, server))
        await self._serve("contract", lambda server: add_AdmissionServiceServicer_to_server(Nothing(), server))
        await self.start_controller()
        await self.start_envoy()

    async def start_controller(self) -> None:
        with (self.folder / "controller.log").open("ab") as log:
            self._controller = await asyncio.create_subprocess_exec(
                *self.command,
                cwd=ROOT,
                env=dict(os.environ) | self.variables,
                stdout=log,
                stderr=log,
            )

        async def answers() -> bool:
            # The first call may still go out on the connection to the controller before it.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.control.GetMeshStatus(pb.GetMeshStatusRequest(), wait_for_ready=True, timeout=DEADLINE)
                return True
            return False

        await until(answers, "the controller to answer")

    async def kill_controller(self) -> None:
        assert self._controller
        self._controller.kill()
        await self._controller.wait()

    async def start_envoy(self) -> None:
        bootstrap = templates.render(
            "bootstrap.yaml",
            "envoy.config.bootstrap.v3.Bootstrap",
            {
                "node_id": "test",
                "admin_path": str(self.settings.socket("admin")),
                "controller_path": str(self.settings.socket("controller")),
            },
        )
        file = self.folder / "bootstrap.pb"
        file.write_bytes(bootstrap.SerializeToString())
        with (self.folder / "envoy.log").open("ab") as log:
            self._envoy = await asyncio.create_subprocess_exec(
                str(find_envoy()),
                *("-c", str(file), "--concurrency", "2", "--use-dynamic-base-id", "--log-level", "warning"),
                stdout=log,
                stderr=log,
            )

        async def answers() -> bool:
            # Until its configuration has come, it refuses connections or answers with a text of its own.
            with contextlib.suppress(aiohttp.ClientError, ValueError):
                return (await self.get("/v1/models"))[0] == 200
            return False

        await until(answers, "Envoy to answer")

    async def stop(self) -> None:
        if self._envoy and self._envoy.returncode is None:
            self._envoy.kill()
            await self._envoy.wait()
        if self._controller and self._controller.returncode is None:
            self._controller.terminate()
            try:
                async with asyncio.timeout(DEADLINE):
                    await self._controller.wait()
            except TimeoutError:
                self._controller.kill()
                await self._controller.wait()
        left = self.engine_pids()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                kill(pid)
        if self._channel:
            await self._channel.close()
        for member, _ in self._members:
            member.stop()
        await asyncio.gather(*(task for _, task in self._members))
        assert not left, f"engines outlived an orderly end: {left}\n{self.log()}"

    async def serve(self, model: str = MODEL, name: str = "smol", *, wait: bool = True, **spec: Any) -> Server:
        """Declare a server, and wait until it is ready."""
        parameters = spec.pop("parameters", RuntimeParameters(ctx_size=2048, warmup=False))
        for field in ("idle_sleep", "wake_budget"):
            if field in spec:
                spec[field] = _duration(spec[field])
        request = pb.DeclareServerRequest(
            spec=ServerSpec(model_uuid=model, model_name=name, parameters=parameters, **spec)
        )
        server: Server = await self.control.DeclareServer(request)
        return await self.until_state(server.server_uuid, READY) if wait else server

    async def server(self, server_uuid: str) -> Server:
        found: Server = await self.control.GetDeclaredServer(pb.GetDeclaredServerRequest(server_uuid=server_uuid))
        return found

    async def until_state(self, server_uuid: str, *states: int) -> Server:
        """Wait for one of these states."""

        async def there() -> Server | None:
            server = await self.server(server_uuid)
            return server if server.state in states else None

        try:
            return await until(there, f"state {states}")
        except TimeoutError:
            raise AssertionError(f"{await self.server(server_uuid)}\n{self.log()}") from None

    async def get(self, path: str) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            return answer.status, await answer.json(content_type=None)

    async def chat(self, path: str = "/v1/chat/completions", model: str = "smol", **fields: Any) -> tuple[int, Any]:
        """One chat request on a connection of its own."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}
        async with aiohttp.ClientSession() as session, session.post(self.url + path, json=body) as answer:
            return answer.status, await answer.json(content_type=None)

    async def says(self, path: str = "/v1/chat/completions", model: str = "smol") -> str:
        """What the model answers; fails for any other answer."""
        status, body = await self.chat(path, model)
        assert status == 200, body
        return str(body["choices"][0]["message"]["content"])

    def engine_pids(self) -> list[int]:
        """The engines that run, as their records say."""
        found = []
        for path in (self.settings.run_dir / "engines").glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                record = json.loads(path.read_text())
                if ProcessId(record["pid"], record["started"]).alive:
                    found.append(record["pid"])
        return sorted(found)

    def engine_processes(self) -> list[ProcessSnapshot]:
        """The engines that run, as their command lines say, whatever files are there."""
        folder = f"{self.settings.run_dir / 'engines'}/"
        return snapshots(lambda words: words[-2:-1] == ("engine",) and words[-1].startswith(folder))

    def llamas(self) -> list[psutil.Process]:
        """The llama.cpp of each engine that runs."""
        return [child for engine in self.engine_processes() for child in engine.children]

    def starts(self) -> int:
        """How many engines have been started in all."""
        return len(self.logged("engine started"))

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The controller's log lines of one event."""
        found = []
        for line in self.log().splitlines():
            # Libraries write other lines, and the last line may be half-written.
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [each for each in found if isinstance(each, dict) and each.get("event") == event]

    def held(self) -> int:
        """How many requests the waker holds: the connections of Envoy to its socket."""
        path = str(self.settings.socket("waker"))
        rows = Path("/proc/net/unix").read_text().splitlines()
        return sum(row.endswith(f" {path}") and " 03 " in row for row in rows)

    async def until_held(self, count: int) -> None:
        """Wait until the waker holds this many requests."""

        async def there() -> bool:
            return self.held() == count

        await until(there, f"{count} held requests")

    async def until_withdrawn(self, socket: str) -> None:
        """Wait until Envoy sends no more requests to an engine's socket. The server's status changes before that."""

        async def withdrawn() -> bool:
            connector = aiohttp.UnixConnector(str(self.settings.socket("admin")))
            async with (
                aiohttp.ClientSession("http://envoy", connector=connector) as client,
                client.get("/clusters") as answer,
            ):
                return socket not in await answer.text()

        await until(withdrawn, f"Envoy to send nothing to {socket}")

    async def change(self, server: Server, **changes: Any) -> None:
        """Change the declaration of a server. `idle_sleep`: in seconds."""
        if "idle_sleep" in changes:
            changes["idle_sleep"] = _duration(changes["idle_sleep"])
        request = pb.UpdateDeclaredServerRequest(server_uuid=server.server_uuid, changes=ServerChanges(**changes))
        await self.control.UpdateDeclaredServer(request)

    def log(self) -> str:
        return (self.folder / "controller.log").read_text()

    async def _serve(self, name: str, register: Callable[[grpc.aio.Server], None]) -> None:
        member = Member(name, self.settings)
        register(member.server)
        task = asyncio.create_task(member.serve())
        self._members.append((member, task))
        await member.started.wait()


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(int(seconds * 1000))
    return duration


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)


async def kill_engine(pid: int) -> None:
    """kill -9, and wait until llama.cpp has ended with it: what reaches it before is in flight on a killed process, and may fail."""
    children = psutil.Process(pid).children()
    assert children, "an engine has llama.cpp as its child"
    kill(pid)
    for child in children:
        assert await gone(child.pid)


async def until(condition: Callable[[], Awaitable[Any]], what: str, seconds: float = DEADLINE) -> Any:
    """The first true value of a condition; TimeoutError where there is none."""
    deadline = time.monotonic() + seconds
    while not (value := await condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain for {what}")
        await asyncio.sleep(0.02)
    return value


@contextlib.asynccontextmanager
async def controlled_mesh(drain_seconds: float = 5, **variables: str) -> AsyncIterator[ControlledMesh]:
    """A mesh for a `with` block, its controller with these settings; no process of it is left."""
    with tempfile.TemporaryDirectory(prefix="cm") as folder:
        mesh = ControlledMesh(Path(folder), drain_seconds, **variables)
        try:
            await mesh.start()
            yield mesh
        finally:
            await mesh.stop()
            # pytest shows it if the test fails. Each wait makes hundreds of calls.
            lines = [line for line in mesh.log().splitlines() if '"event": "call"' not in line]
            sys.stdout.write("\n".join(lines)[-20_000:])
