"""The TCP port of the waker, for an Envoy on another machine: mutual TLS, and only Envoy's certificate is accepted.

A context of Python's TLS cannot forget an authority. So each version of the certificate files has a context and a site of its own, and all
sites accept from one listening socket: the new site listens before the earlier one stops, and connections that exist stay.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from llamesh.addresses import host_and_port
from llamesh.background import BackgroundTask
from llamesh.kit.errors import StartRefused
from llamesh.kit.inference_errors import error_body
from llamesh.kit.logs import log, report_failure
from llamesh.kit.member_port import cannot_listen
from llamesh.kit.member_tls import LOOK_SECONDS, MemberTls
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY, MemberCertificate, identity, present
from llamesh.names import ENVOY

_BACKLOG = 1024


class WakerPort:
    """Serves a runner at an address, host:port, until closed."""

    def __init__(self, runner: web.AppRunner, address: str, tls: MemberTls) -> None:
        self._runner = runner
        self._address = address
        self._tls = tls
        self._listener: socket.socket | None = None
        self._site: web.SockSite | None = None
        self._served: MemberCertificate | None = None
        self._task = BackgroundTask("listen for Envoy", self._listen, report_failure, every=LOOK_SECONDS)

    async def start(self) -> None:
        """Start listening. Raises StartRefused if this machine cannot listen there."""
        host, port = host_and_port(self._address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise StartRefused(cannot_listen(self._address)) from error
        await self._listen()
        log.info("listening with mutual TLS", address=self._address)
        self._task.start()

    async def close(self) -> None:
        """Stop listening."""
        await self._task.close()
        if self._listener:
            self._listener.close()

    async def _listen(self) -> None:
        """Listen with the present certificate files, if they have changed."""
        found = self._tls.look()
        if found is self._served or self._listener is None:
            return
        context = await asyncio.to_thread(_context, self._tls)
        site = web.SockSite(self._runner, self._listener.dup(), ssl_context=context)
        await site.start()
        before, self._site, self._served = self._site, site, found
        if before:
            await before.stop()


def only_envoy(domain: str) -> Middleware:
    """Return a middleware that answers callers over TCP only if they have shown Envoy's certificate and it is still valid."""
    expected = identity(domain, ENVOY)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        shown = transport.get_extra_info("peercert") if transport else None
        on_this_machine = transport is not None and transport.get_extra_info("sslcontext") is None
        if not on_this_machine and not _is(expected, shown or {}):
            log.warning("refused a member", path=request.path, peer=request.remote)
            body = error_body(request.path, 403, "Only Envoy calls here.", "permission_error", "member_refused")
            return web.json_response(body, status=403)
        return await handler(request)

    return check


def _is(expected: str, shown: dict[str, object]) -> bool:
    """Whether a certificate has this one identity and has not expired since the connection was made."""
    names = shown.get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"] if isinstance(names, tuple) else []
    return uris == [expected] and ssl.cert_time_to_seconds(str(shown.get("notAfter"))) > time.time()


def _context(tls: MemberTls) -> ssl.SSLContext:
    """Make a context of the files; ssl.SSLError or OSError while they are being replaced, and then they are read again."""
    place = present(tls.folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(place / CERTIFICATE, place / KEY)
    context.load_verify_locations(place / AUTHORITIES)
    return context
