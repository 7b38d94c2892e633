"""HTTP server that Envoy falls back to while a server has no ready engine: it wakes the server and holds the request.

Envoy sends the head of a request over a Unix socket and keeps the body. The `RequestHolder` decides when the request may go on; the
waker's answer makes Envoy retry the request at the engine. The waker also answers the lists of models. It executes nothing, so if a
request is lost with this process, Envoy may retry it at the next one (envoy/listeners/held.yaml).

Invariant: a list has only the models that the caller may use. Envoy passes them in a request header; without the header the list is empty.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web
from aiohttp.typedefs import Handler

from controller.request_holder import EngineReady, HoldOutcome, Refused, RequestHolder, TooManyHeld, UnknownTarget
from controller.status_cache import StatusCache
from controller.waker_port import WakerPort, only_envoy
from llamesh.kit.inference_errors import error_body
from llamesh.kit.member_tls import MemberTls
from llamesh.kit.socket_watch import SocketWatch
from llamesh.locations import make_private
from llamesh.names import (
    AWAKE_HEADER,
    CLUSTER_HEADER,
    DRAIN_PATH,
    HELD_SINCE_HEADER,
    SCOPES_HEADER,
    model_cluster,
    model_of,
    server_cluster,
)
from llamesh.server_conditions import is_being_removed
from llamesh.v1.server_pb2 import Server

_CHUNK = 1 << 16
_MAX_HEADER_BYTES = 1 << 16
"""Maximum length of a header in bytes: Envoy's own limit."""
_END_SECONDS = 0.1
"""Seconds that a shutdown waits for responses that are being sent. For aiohttp, 0 means no limit."""


class Waker:
    """HTTP server on a Unix socket, and at an address of TCP if the settings have one, that serves until closed."""

    def __init__(
        self,
        holder: RequestHolder,
        statuses: StatusCache,
        socket: Path,
        address: str = "",
        tls: MemberTls | None = None,
    ) -> None:
        self._holder = holder
        self._statuses = statuses
        self._socket = socket
        checks = [only_envoy(tls.domain)] if tls else []
        application = web.Application(middlewares=[*checks, _in_our_shape])
        application.router.add_get("/health", self._health)
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/v1/models/{name:(?s:.+)}", self._model)
        application.router.add_get("/{server}/v1/models", self._models)
        application.router.add_get("/{server}/v1/models/{name:(?s:.+)}", self._model)
        # The supervisor sends this when the mesh stops. Envoy routes no PUT to the waker.
        application.router.add_put(DRAIN_PATH, self._drain)
        application.router.add_post("/{path:(?s:.*)}", self._hold)
        # Cancel the handler when Envoy closes the connection, so that no request is held for a client that is gone.
        # Do not wait for handlers on shutdown: Envoy retries the held requests at the next waker.
        self._runner = web.AppRunner(
            application,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=_END_SECONDS,
            max_field_size=_MAX_HEADER_BYTES,
        )
        self._port = WakerPort(self._runner, address, tls) if tls and address else None
        self._site: web.UnixSite | None = None
        self._watch = SocketWatch(socket, self._listen)

    async def start(self) -> None:
        """Start serving."""
        await self._runner.setup()
        await self._listen()
        if self._port:
            await self._port.start()
        self._watch.start()

    async def close(self) -> None:
        """Stop serving and disconnect held requests."""
        await self._watch.close()
        if self._port:
            await self._port.close()
        await self._runner.cleanup()
        self._socket.unlink(missing_ok=True)

    async def _listen(self) -> None:
        """Listen at the socket's path, or listen again if the socket has vanished. Held requests stay held."""
        # Clear the reference first: if the stop fails, the next attempt must not repeat it.
        site, self._site = self._site, None
        if site:
            await site.stop()
        make_private(self._socket.parent)
        self._socket.unlink(missing_ok=True)
        site = web.UnixSite(self._runner, str(self._socket))
        await site.start()
        self._site = site

    async def _hold(self, request: web.Request) -> web.Response:
        async for _ in request.content.iter_chunked(_CHUNK):
            pass
        cluster = request.headers.get(CLUSTER_HEADER, "")
        return _answer(await self._holder.hold(cluster, _waited(request, time.time())), cluster, request.path)

    async def _drain(self, _request: web.Request) -> web.Response:
        self._holder.refuse_all()
        return web.json_response({})

    async def _health(self, _request: web.Request) -> web.Response:
        """Answer like llama-server. A request that is answered here will also be served by an engine."""
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        servers = self._shown(request)
        if "server" in request.match_info and not servers:
            return _answer(UnknownTarget(), server_cluster(request.match_info["server"]))
        return web.json_response({"object": "list", "data": _listed(servers)})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        found = [model for model in _listed(self._shown(request)) if model["id"] == name]
        return web.json_response(found[0]) if found else _answer(UnknownTarget(), model_cluster(name))

    def _shown(self, request: web.Request) -> list[Server]:
        """Return the servers for a list: the servers whose name the caller may use, or the single server that the path names by id."""
        scopes = _Scopes(frozenset(map(unquote, request.headers.get(SCOPES_HEADER, "").split(","))))
        server_uuid = request.match_info.get("server")
        if server_uuid is None:
            return [
                server
                for server in self._statuses.all()
                if not is_being_removed(server) and scopes.cover(server.model_name)
            ]
        server = self._statuses.get(server_uuid) if scopes.cover(server_uuid) else None
        return [server] if server is not None and not is_being_removed(server) else []


@web.middleware
async def _in_our_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Convert aiohttp's own errors (unknown path or method) to the error format of the called API."""
    try:
        return await handler(request)
    except web.HTTPException as refused:
        # Envoy has already checked the method: here POST stands for every path that waits for an engine.
        status = 404 if refused.status == 405 else refused.status
        text = f"Nothing is served at this path for {request.method}."
        return _error(request.path, status, text, "invalid_request_error", "not_found")


@dataclass(frozen=True, slots=True)
class _Scopes:
    """Models and servers that a caller may use."""

    scopes: frozenset[str]

    def cover(self, name: str) -> bool:
        """Return whether the caller may use the model of this name or the server of this id."""
        return not self.scopes.isdisjoint(("infer:*", f"infer:{name}"))


def _waited(request: web.Request, now: float) -> float:
    """Return the seconds that Envoy has already held a request; 0 if the header is missing."""
    try:
        return max(0.0, now - float(request.headers.get(HELD_SINCE_HEADER, "")))
    except ValueError:
        return 0.0


def _listed(servers: Iterable[Server]) -> list[dict[str, object]]:
    """Return each model name once, with the creation time of its oldest server."""
    created: dict[str, int] = {}
    for server in servers:
        seconds = server.create_time.seconds
        created[server.model_name] = min(created.get(server.model_name, seconds), seconds)
    return [
        {"id": name, "object": "model", "created": seconds, "owned_by": "llamesh"}
        for name, seconds in sorted(created.items())
    ]


def _answer(verdict: HoldOutcome, cluster: str, path: str = "") -> web.Response:
    match verdict:
        case EngineReady():
            response = _error(
                path, 503, "The engine is ready now: send the request again.", "server_error", "engine_ready", 1
            )
            response.headers[AWAKE_HEADER] = "1"
            return response
        case Refused(message, retry_after):
            return _error(path, 503, message, "server_error", "engine_not_ready", retry_after)
        case TooManyHeld():
            return _error(
                path, 429, "Too many requests wait for engines that start.", "rate_limit_error", "too_many_waiting", 1
            )
        case UnknownTarget():
            if (name := model_of(cluster)) is not None:
                text = f"No model is served under the name {name}. GET /v1/models lists those that are."
                return _error(path, 404, text, "invalid_request_error", "model_not_found", param="model")
            text = "There is no server of this id. GET /status of the management API lists the servers."
            return _error(path, 404, text, "invalid_request_error", "server_not_found")


def _error(
    path: str, status: int, message: str, kind: str, code: str, retry_after: int | None = None, param: str | None = None
) -> web.Response:
    """Build an error response in the format of the called API."""
    body = error_body(path, status, message, kind, code, param)
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return web.json_response(body, status=status, headers=headers)
