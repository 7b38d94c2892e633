"""The Envoys of the inference comparison: plain proxies, and the mesh's own listener with the mesh's own filters.

All use one worker and the same stub. There are three plain proxies: with one request for each connection, which is the correct setting in
front of llama.cpp (it closes after a stream without announcing it) and that of the mesh; with pooled connections, the usual setting, which
fails after streams; and pooled over TCP. The mesh's Envoy gets its configuration from the controller's own control plane (in this process)
and asks the real contract service (a process of its own) about the token whose contract limits something.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import jwt
import yaml

from benchmarks import processes
from controller.xds import templates
from controller.xds.clusters import ServerEndpoints, ServiceSettings
from controller.xds.inference import InferenceSettings
from controller.xds.intent import ADMISSION_ID_KINDS
from controller.xds.serving import ControlPlane
from controller.xds.tokens import TokenSettings
from llamesh.envoy_binary import find_envoy
from llamesh.names import CLAIMS_HEADER
from llamesh.v1 import contract_pb2, contract_pb2_grpc, gateway_pb2_grpc
from tests.ports import free_ports
from tests.standings import FakeStandings, uid_of

SECRET = "benchmark-benchmark-benchmark-benchmark"
MODEL = "m1"
SERVER = "11111111-1111-4111-8111-111111111111"
ONE, POOLED, TCP = "plain Envoy, one request a connection", "plain Envoy, pooled", "plain Envoy, pooled, TCP"


@dataclass(frozen=True)
class Proxy:
    """An Envoy under test."""

    port: int
    pid: int


@dataclass(frozen=True)
class Front:
    """The Envoys under test, and a token of each kind."""

    plain: dict[str, Proxy]
    mesh: Proxy
    contract_pid: int
    unmetered: str
    asked: str


@contextlib.asynccontextmanager
async def fronts(folder: Path) -> AsyncIterator[Front]:
    """Start the stub, the Envoys and the contract service, and stop them afterwards."""
    stub, waker = folder / "stub.sock", folder / "waker.sock"
    home = folder / "home"
    stub_port, mesh_port, *plain_ports = free_ports(5)
    stub_command = [sys.executable, "-m", "benchmarks.stub", str(stub), str(stub_port)]
    started = [processes.start(stub_command, folder / "stub.log")]
    environment = {"LLAMESH_HOME": str(home), "LLAMESH_LOG_LEVEL": "warning"}
    contract = processes.start([sys.executable, "-m", "services.contract"], folder / "contract.log", environment)
    started.append(contract)
    contract_socket = home / "run" / "contract.sock"
    server, gateway = grpc.aio.server(), grpc.aio.server()
    gateway_pb2_grpc.add_StandingServiceServicer_to_server(FakeStandings(), gateway)
    (home / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    gateway.add_insecure_port(f"unix:{home / 'run' / 'gateway.sock'}")
    try:
        processes.wait_for(
            lambda: stub.exists() and contract_socket.exists(), 30, f"the stub and {folder}/contract.log"
        )
        await gateway.start()
        contract_id = await _contract(contract_socket)
        control = ControlPlane()
        for kind in ADMISSION_ID_KINDS:
            control.set_admission_ids(kind, [contract_id] if kind == "contracts" else [])
        control.add_to(server)
        server.add_insecure_port(f"unix:{folder / 'controller.sock'}")
        await server.start()
        services = [ServiceSettings("contract", str(contract_socket)), ServiceSettings("waker", str(waker), http1=True)]
        control.set_static(services, InferenceSettings(("127.0.0.1",), mesh_port, TokenSettings(_jwks()), True), ())
        control.set_server(ServerEndpoints(SERVER, (MODEL,), (str(stub),), 64))
        control.publish()
        upstreams = {ONE: (_pipe(stub), 1), POOLED: (_pipe(stub), 0), TCP: (_tcp(stub_port), 0)}
        plain = {}
        for (name, (upstream, requests)), port in zip(upstreams.items(), plain_ports, strict=True):
            process = _envoy(folder, _plain_bootstrap(folder, port, upstream, requests))
            started.append(process)
            plain[name] = Proxy(port, process.pid)
        mesh = _envoy(folder, _mesh_bootstrap(folder))
        started.append(mesh)
        if not await control.settled(20):
            raise RuntimeError(f"Envoy did not take the configuration: {folder}/mesh.log")
        for port in (mesh_port, *plain_ports):
            await _listening(port)
        yield Front(plain, Proxy(mesh_port, mesh.pid), contract.pid, _token(""), _token(contract_id))
    finally:
        await server.stop(None)
        await gateway.stop(None)
        processes.end(*started)


async def _contract(socket: Path) -> str:
    """Create a contract whose limit is never reached, so that Admission is asked and allows every request."""
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "root", "scopes": ["admin"]}).encode()).decode().rstrip("=")
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "llamesh")]) as channel:
        answer = await contract_pb2_grpc.ContractServiceStub(channel).CreateContract(
            contract_pb2.CreateContractRequest(display_name="benchmark", max_concurrent_requests=100000),
            metadata=((CLAIMS_HEADER, claims),),
            wait_for_ready=True,
            timeout=20,
        )
    return answer.contract_id


def _token(contract_id: str) -> str:
    now = int(time.time())
    claims = {"iss": "llamesh", "aud": "llamesh", "sub": "ada", "iat": now, "exp": now + 3600}
    more = {"jti": f"key_{contract_id}", "scopes": ["infer:*"], "contract": contract_id, "standing": 1}
    more["uid"] = uid_of("ada")
    return jwt.encode({**claims, **more}, SECRET, "HS256", headers={"kid": "k1"})


def _jwks() -> str:
    secret = base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")
    return json.dumps({"keys": [{"kty": "oct", "alg": "HS256", "kid": "k1", "k": secret}]})


def _mesh_bootstrap(folder: Path) -> Path:
    values = {
        "node_id": "bench",
        "admin_path": str(folder / "admin.sock"),
        "controller_path": str(folder / "controller.sock"),
    }
    target = folder / "mesh.pb"
    bootstrap = templates.render("bootstrap.yaml", "envoy.config.bootstrap.v3.Bootstrap", values)
    target.write_bytes(bootstrap.SerializeToString())
    return target


def _pipe(path: Path) -> dict[str, Any]:
    return {"pipe": {"path": str(path)}}


def _tcp(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _plain_bootstrap(folder: Path, port: int, upstream: dict[str, Any], requests_per_connection: int) -> Path:
    """The plainest proxy: any path to the stub, no filter, no time-out. 0 requests: any number."""
    extension = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{extension}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{extension}.http.router.v3.Router"}}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "stub", "timeout": "0s"}}],
                }
            ]
        },
    }
    listener = {
        "name": "plain",
        "address": _tcp(port),
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }
    endpoint = {"endpoint": {"address": upstream}}
    protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {
        "@type": f"type.googleapis.com/{protocol}",
        "common_http_protocol_options": {"max_requests_per_connection": requests_per_connection},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    cluster = {
        "name": "stub",
        "type": "STATIC",
        "typed_extension_protocol_options": {protocol: options},
        "load_assignment": {"cluster_name": "stub", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    target = folder / f"plain-{port}.yaml"
    target.write_text(
        yaml.safe_dump({"static_resources": {"listeners": [listener], "clusters": [cluster]}}), encoding="utf-8"
    )
    return target


def _envoy(folder: Path, bootstrap: Path) -> subprocess.Popen[bytes]:
    command = [
        str(find_envoy()),
        "-c",
        str(bootstrap),
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "--log-level",
        "error",
    ]
    return processes.start(command, folder / f"{bootstrap.stem}.log")


async def _listening(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
