"""Keeps a duplicate of llama.cpp's listening socket and hands another one to the controller.

llama.cpp may die at any moment, with requests in the backlog of its socket that it has not accepted. The duplicate keeps them; once
llama.cpp has ended they are answered so that Envoy retries them elsewhere. The controller holds another duplicate, because this process
may be killed too.

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

_HAND_OVER_SECONDS = 10.0
"""How long after it is ready the embedded engine may take to send its socket."""
_MOST_ASKING = 16
"""Connections that may wait for the duplicate: the controller needs one."""


class Listener:
    """Duplicate of the listening socket. Does nothing where none can be had (TCP, no Linux, a kernel that does not allow it)."""

    def __init__(self, path: Path | None, hand_over: Path | None, say: Callable[[str], None]) -> None:
        """`path`: socket of llama.cpp; `hand_over`: socket on which the controller asks for a duplicate."""
        self._path = path
        self._hand_over = hand_over if path is not None else None
        self._say = say
        self._socket: socket.socket | None = None
        self._settled = False
        self._door: socket.socket | None = None
        self._asking: list[socket.socket] = []

    def open(self) -> None:
        """Accept requests for a duplicate. Early requests are answered once it exists."""
        if self._hand_over is None:
            return
        self._hand_over.unlink(missing_ok=True)
        self._door = socket.socket(socket.AF_UNIX)
        self._door.setblocking(False)
        self._door.bind(str(self._hand_over))
        self._hand_over.chmod(0o600)
        self._door.listen(_MOST_ASKING)
        asyncio.get_running_loop().add_reader(self._door, self._admit)

    async def obtain(self, child: Child, *, embedded: bool) -> None:
        """Get the duplicate from llama.cpp, which is ready, and raise the length of the backlog."""
        if self._path is None:
            return
        try:
            self._socket = await self._duplicate(child, embedded)
            self._socket.listen(listeners.BACKLOG)
        except (OSError, TimeoutError, listeners.NoListenerError) as error:
            self._say(
                f"no duplicate of llama.cpp's listening socket ({error or 'it was not sent in time'}): "
                "requests that it has not accepted are lost if it dies"
            )
        self._settled = True
        self._answer()

    async def close(self) -> None:
        """Stop accepting clients, and answer the connections that llama.cpp has not accepted before its end."""
        if self._door is not None:
            asyncio.get_running_loop().remove_reader(self._door)
            self._door.close()
        if self._hand_over is not None:
            self._hand_over.unlink(missing_ok=True)
        self._settled = True
        waiting, self._socket = self._socket, None
        self._answer()
        if waiting is not None and (count := await listeners.turn_away(waiting)):
            self._say(f"{count} requests that llama.cpp had not accepted are sent again")

    async def _duplicate(self, child: Child, embedded: bool) -> socket.socket:
        if not embedded:
            return listeners.of_process(child.pid, str(self._path))
        async with asyncio.timeout(_HAND_OVER_SECONDS):
            await listeners.readable(child.channel.fileno())
        sent = listeners.taken(child.channel)
        if sent is None:
            raise listeners.NoListenerError("llama.cpp ended")
        return sent

    def _admit(self) -> None:
        assert self._door is not None
        with contextlib.suppress(OSError):
            connection, _ = self._door.accept()
            if len(self._asking) < _MOST_ASKING:
                self._asking.append(connection)
            else:
                connection.close()
        if self._settled:
            self._answer()

    def _answer(self) -> None:
        """Send the duplicate to every requester, or end the connection if there is none."""
        for connection in self._asking:
            with connection, contextlib.suppress(OSError):
                if self._socket is not None:
                    listeners.hand_over(connection, self._socket)
        self._asking.clear()
