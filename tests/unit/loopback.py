"""Web servers of tests, on a free port of loopback."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ALL_PATHS = "/{path:.*}"
MAX_BYTES = 1 << 30
"""Largest body of a request."""


@asynccontextmanager
async def serving(routes: Mapping[str, Handler], tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run a web server with a handler for each path, whatever the method. Gives its host:port."""
    app = web.Application(client_max_size=MAX_BYTES)
    for path, handler in routes.items():
        app.router.add_route("*", path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
