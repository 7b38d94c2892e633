"""`python tools/isolation.py [PYTEST ARGUMENTS]`: run the tests next to listeners on the default ports; fail if anything connects to them.

A test that connects to a default port would use a mesh that the developer happens to run. The listeners accept and record every
connection (when, from which process, its first bytes) and never answer.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PORTS = (8080, 8200, 8201, 8202, 8300)
HOSTS = ("127.0.0.1", "::1")
DEFAULT = ("tests/unit", "tests/contract")


class Listeners:
    """Listens on every default port until closed; `connections` has the clients that connected."""

    def __init__(self) -> None:
        self.connections: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        for host in HOSTS:
            for port in PORTS:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                try:
                    server = socket.create_server((host, port), family=family)
                except OSError as error:
                    if family == socket.AF_INET6:
                        continue  # a machine without IPv6
                    sys.exit(f"cannot listen on port {port} ({error.strerror}): first stop the mesh that uses it")
                self._selector.register(server, selectors.EVENT_READ, f"{host} port {port}")

    def __enter__(self) -> Listeners:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]

    def _accept(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                connection, peer = key.fileobj.accept()  # type: ignore[union-attr]
                with connection:
                    connection.settimeout(0.5)
                    first = b""
                    with contextlib.suppress(OSError):
                        first = connection.recv(200)
                    self.connections.append(
                        f"{time.strftime('%H:%M:%S')} {key.data} from port {peer[1]} ({_owner(peer[1])}): {first!r}"
                    )


def _owner(port: int) -> str:
    """Return the command line of the process with a connection from this local port, if known."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="utf-8").splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(entry.readlink()) in inodes and int(entry.parts[2]) != os.getpid():
                return Path("/proc", entry.parts[2], "cmdline").read_bytes().replace(b"\0", b" ").decode()[:300]
    return "process not found"


def main(arguments: list[str]) -> int:
    """Run the tests; exit 1 if a test failed or anything connected."""
    tests_to_run = () if any(not item.startswith("-") for item in arguments) else DEFAULT
    with Listeners() as listeners:
        tests = subprocess.run([sys.executable, "-m", "pytest", *arguments, *tests_to_run], cwd=ROOT, check=False)
    for line in listeners.connections:
        print(line)
    print(
        f"{len(listeners.connections)} connections to {', '.join(map(str, PORTS))}; the tests ended with {tests.returncode}"
    )
    return 1 if listeners.connections or tests.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
