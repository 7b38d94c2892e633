"""The place of a mesh on one machine: declared servers in a table, engines as processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc

from controller.declared_servers import DeclaredServers
from controller.model_files import ModelFiles
from controller.ownership import Ownership
from controller.runtimes.process import ProcessRuntime
from controller.status_cache import StatusCache
from llamesh.kit.database import open_database
from llamesh.kit.serving import Member


class MachinePlace:
    """Store and runtime of this machine."""

    def __init__(self, store: DeclaredServers, runtime: ProcessRuntime, ownership: Ownership) -> None:
        self.store = store
        self.runtime = runtime
        self._ownership = ownership

    async def open(self, changed: Callable[[str], None]) -> None:
        """Do nothing: only the controller itself changes the table."""

    def start(self, statuses: StatusCache) -> None:
        """Do nothing: the lease is held already."""

    def check(self) -> None:
        """Raise StartRefused if another mesh has taken the database over."""
        self._ownership.check()


async def open_machine(stack: AsyncExitStack, member: Member, download: grpc.aio.Channel) -> MachinePlace:
    """Open the parts; the stack closes them. Raises StartRefused if another mesh owns the database."""
    settings = member.settings
    database = open_database(settings, "controller")
    stack.push_async_callback(database.close)
    await member.prepare(database, "controller")
    ownership = Ownership(member, database)
    await ownership.acquire()
    stack.push_async_callback(ownership.close)
    runtime = ProcessRuntime(settings, models=ModelFiles(download))
    stack.push_async_callback(runtime.close)
    return MachinePlace(DeclaredServers(database, guard=ownership.guard), runtime, ownership)
