"""Duplicates of a listening Unix socket, so that its backlog outlives the process that serves it.

When a process dies, its listening socket closes, and the kernel resets every connection in the backlog, although no process has accepted
it. If another process holds a duplicate of the socket, the backlog stays. `turn_away` answers its connections with a retry.

Invariant: only one process accepts a connection, so a connection that `turn_away` answers was never seen by the process that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from llamesh.names import RETRY_HEADER

BACKLOG = 1024
"""Length of the backlog, limited by net.core.somaxconn. cpp-httplib asks for 5."""
_LINGER_SECONDS = 1.0
"""Seconds to wait until the client closes a connection that was turned away."""
_MAX_BATCH = 64
"""Maximum number of connections that are turned away at the same time; each needs a file descriptor."""
_SYS_PIDFD_GETFD = 438
"""The same number on every architecture of Linux."""
_UNIX_TABLE = Path("/proc/net/unix")
_LISTENING = 0x10000
"""Flag of a listening socket in the kernel's table."""
_CONNECTED = "03"
"""State of a connected socket in the kernel's table."""
_BODY = (
    b'{"error": {"message": "The engine ended before it took the request: send it again.", '
    b'"type": "server_error", "param": null, "code": "service_unavailable"}}'
)
_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    + f"{RETRY_HEADER}: 1\r\nretry-after: 1\r\ncontent-type: application/json\r\n".encode()
    + f"content-length: {len(_BODY)}\r\nconnection: close\r\n\r\n".encode()
    + _BODY
)


class NoListenerError(Exception):
    """A listening socket cannot be duplicated; the message has the reason."""


class NotListeningError(NoListenerError):
    """The process has no such listening socket, or none yet."""


def own(path: str) -> socket.socket:
    """Duplicate the socket on which this process listens at `path`; NotListeningError."""
    return socket.socket(fileno=os.dup(_descriptor(os.getpid(), path)))


def of_process(pid: int, path: str) -> socket.socket:
    """Duplicate the socket on which process `pid` listens at `path`. The process must be a child, or one that this process may trace.

    Raises NotListeningError, or NoListenerError if the kernel does not permit it.
    """
    descriptor = _descriptor(pid, path)
    if sys.platform != "linux":
        raise NoListenerError("only Linux can duplicate another process's socket")
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise NoListenerError(f"pidfd_open: {error.strerror}") from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        duplicate = int(libc.syscall(_SYS_PIDFD_GETFD, process, descriptor, 0))
        if duplicate < 0:
            raise NoListenerError(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(process)
    return socket.socket(fileno=duplicate)


def hand_over(to: socket.socket, listener: socket.socket | None) -> None:
    """Send a duplicate of a listener, or that there is none, through a connected Unix socket; OSError if the other end has closed."""
    socket.send_fds(to, [b"L"], [] if listener is None else [listener.fileno()])


def taken(sender: socket.socket) -> socket.socket | None:
    """Receive what `hand_over` sent at the other end of a connected Unix socket; None if it sent no listener or has closed."""
    _, descriptors, _, _ = socket.recv_fds(sender, 1, 1)
    return socket.socket(fileno=descriptors[0]) if descriptors else None


async def readable(descriptor: int) -> None:
    """Wait until the descriptor is readable or its other end has closed."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


def has_vanished(path: Path, pid: int) -> bool:
    """Whether process `pid` listens at a Unix socket whose path was removed, so that no client can connect. False without /proc.

    A listener of an earlier process at the same path does not count: its duplicates stay open while `turn_away` answers its backlog.
    """
    if path.exists():
        return False
    listening = _listening(str(path))
    listens = bool(listening) and not listening.isdisjoint(open_sockets(pid))
    # Check again: the socket may have been bound in between.
    return listens and not path.exists()


def connections() -> Mapping[str, set[str]] | None:
    """Return the inode numbers of accepted connections by the path of their Unix socket; None without /proc."""
    if not _UNIX_TABLE.exists():
        return None
    found: dict[str, set[str]] = {}
    for path, inode, state, _ in _rows():
        if state == _CONNECTED:
            found.setdefault(path, set()).add(inode)
    return found


def open_sockets(pid: int) -> dict[str, int]:
    """Return the sockets of a process: descriptor by inode number. Empty if the process has ended."""
    found = {}
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                name = str(descriptor.readlink())
                if name.startswith("socket:["):
                    found[name[len("socket:[") : -1]] = int(descriptor.name)
    return found


async def turn_away(listener: socket.socket) -> int:
    """Stop new connections, answer every connection in the backlog with a retry, and close the listener. Return how many there were.

    Several processes may call it at once, even while the process that served is still ending.
    """
    with contextlib.suppress(OSError):
        # New connections are now refused at every duplicate and path; those in the backlog stay.
        listener.shutdown(socket.SHUT_RDWR)
    listener.setblocking(False)
    count = 0
    while waiting := _accept(listener):
        count += len(waiting)
        await asyncio.gather(*(_refuse(connection) for connection in waiting))
    listener.close()
    return count


def _accept(listener: socket.socket) -> list[socket.socket]:
    accepted: list[socket.socket] = []
    with contextlib.suppress(
        OSError
    ):  # the backlog is empty, or descriptors have run out: the accepted connections free some
        while len(accepted) < _MAX_BATCH:
            accepted.append(listener.accept()[0])
    return accepted


async def _refuse(connection: socket.socket) -> None:
    """Answer, then wait for the client to close: a client that is still sending would otherwise fail before it reads the answer."""
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(sock=connection)
            try:
                writer.write(_ANSWER)
                writer.write_eof()
                while await reader.read(65536):
                    pass
            finally:
                writer.close()
    except (OSError, TimeoutError):
        connection.close()


def _descriptor(pid: int, path: str) -> int:
    listening = _listening(path)
    for inode, descriptor in open_sockets(pid).items():
        if inode in listening:
            return descriptor
    raise NotListeningError(f"process {pid} has no socket that listens at {path}, or the system does not show it")


def _listening(path: str) -> set[str]:
    """Return the inode numbers of the sockets that listen at a path, or did when it was removed."""
    return {inode for where, inode, _, flags in _rows() if where == path and flags & _LISTENING}


def _rows() -> Iterator[tuple[str, str, str, int]]:
    """Yield path, inode, state and flags of every Unix socket with a path. The kernel keeps the original path of a renamed socket."""
    if _UNIX_TABLE.exists():
        for line in _UNIX_TABLE.read_text(errors="replace", encoding="utf-8").splitlines()[1:]:
            row = line.split(maxsplit=7)
            if len(row) == 8:
                yield row[7], row[6], row[5], int(row[3], 16)
