"""Keeps a duplicate of llama.cpp's listening socket and sends another one to the controller.

llama.cpp may die at any moment, with connections in the backlog of its socket that it has not accepted. The duplicate keeps them; once
llama.cpp has ended, they are answered so that Envoy retries the requests elsewhere. The controller holds another duplicate, because this
process may be killed too. It sends llama.cpp no requests before it has received the duplicate or the answer that there is none.

Invariant: once `close` has returned, no client can connect through any duplicate.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from engine.child import Child
from llamesh import listeners

_POLL_SECONDS = 0.1
"""Seconds between two attempts to find the program's listening socket: the program does not report when it listens."""
_MAX_WAITING = 16
"""Maximum number of connections that wait for the duplicate: the controller needs one."""


class Listener:
    """Duplicate of the listening socket. Does nothing if none is possible (TCP, no Linux, or a kernel that does not allow it)."""

    def __init__(self, path: Path | None, hand_over: Path | None, say: Callable[[str], None]) -> None:
        """`path` is the socket of llama.cpp; on the socket `hand_over` the controller requests a duplicate."""
        self._path = path
        self._hand_over = hand_over if path is not None else None
        self._say = say
        self._socket: socket.socket | None = None
        self._settled = False
        self._server: socket.socket | None = None
        self._waiting: list[socket.socket] = []

    def open(self) -> None:
        """Accept requests for a duplicate. Early requests are answered once there is one."""
        if self._hand_over is None:
            return
        self._hand_over.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.setblocking(False)
        self._server.bind(str(self._hand_over))
        self._hand_over.chmod(0o600)
        self._server.listen(_MAX_WAITING)
        asyncio.get_running_loop().add_reader(self._server, self._admit)

    async def obtain(self, child: Child, ready: asyncio.Event, *, embedded: bool) -> None:
        """Get the duplicate as soon as llama.cpp listens, and increase the backlog. `ready` is set if llama.cpp is known to listen."""
        if self._path is None:
            return
        try:
            self._socket = await (_sent(child) if embedded else _of_program(child, str(self._path), ready))
            if self._socket is not None:
                self._socket.listen(listeners.BACKLOG)
        except (OSError, listeners.NoListenerError) as error:
            self._say(
                f"no duplicate of llama.cpp's listening socket ({error}): requests that it has not accepted are lost if it dies"
            )
        self._settled = True
        self._answer()

    async def close(self) -> None:
        """Stop accepting clients, and answer the connections that llama.cpp did not accept before its end."""
        if self._server is not None:
            asyncio.get_running_loop().remove_reader(self._server)
            self._server.close()
        if self._hand_over is not None:
            self._hand_over.unlink(missing_ok=True)
        self._settled = True
        waiting, self._socket = self._socket, None
        self._answer()
        if waiting is not None and (count := await listeners.turn_away(waiting)):
            self._say(f"{count} requests that llama.cpp had not accepted are sent again")

    def _admit(self) -> None:
        assert self._server is not None
        with contextlib.suppress(OSError):
            connection, _ = self._server.accept()
            if len(self._waiting) < _MAX_WAITING:
                self._waiting.append(connection)
            else:
                connection.close()
        if self._settled:
            self._answer()

    def _answer(self) -> None:
        """Send the duplicate to every requester, or close the connection if there is none."""
        for connection in self._waiting:
            with connection, contextlib.suppress(OSError):
                if self._socket is not None:
                    listeners.hand_over(connection, self._socket)
        self._waiting.clear()


async def _sent(child: Child) -> socket.socket | None:
    """Receive the duplicate that the embedded engine sends once it listens. None if the engine has ended first."""
    await listeners.readable(child.channel.fileno())
    if not child.channel.recv(1, socket.MSG_PEEK):
        return None
    sent = listeners.taken(child.channel)
    if sent is None:
        raise listeners.NoListenerError("llama.cpp sent none")
    return sent


async def _of_program(child: Child, path: str, ready: asyncio.Event) -> socket.socket:
    """Duplicate the socket of a program once it listens."""
    while True:
        last = ready.is_set()
        try:
            return listeners.of_process(child.pid, path)
        except listeners.NotListeningError:
            if last:
                raise
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await ready.wait()
