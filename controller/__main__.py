"""Starts the controller: `python -m controller`.

Order matters. On PostgreSQL the lease comes first: of several meshes on one database one runs the engines. Then what is declared and
what runs is learned, then the signing keys; only then does Envoy get its first configuration, which is thus never less than what it
may have from before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from controller import envoy_listeners
from controller.activity import ActivityPoller
from controller.declared import DeclaredServers
from controller.demand import Demand
from controller.limited import LimitedContractReflector
from controller.metrics import ServerMetrics
from controller.model_files import ModelFiles
from controller.reconcile import Reconciler
from controller.request_holder import RequestHolder
from controller.runtimes.process import ProcessRuntime
from controller.servicer import ControllerServicer
from controller.signing import SigningKeys
from controller.status_cache import StatusCache
from controller.waker import Waker
from controller.xds.serving import ControlPlane
from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.leases import LEASE_SECONDS, Lease, LeaseHeldError
from llamesh.kit.logs import log
from llamesh.kit.ownership import owner_of
from llamesh.kit.pages import open_pages
from llamesh.kit.reflector import Reflector
from llamesh.kit.revocations import RevocationReflector
from llamesh.kit.serving import Member, StartRefused, run_member
from llamesh.kit.standings import StandingReflector
from llamesh.v1.controller_pb2_grpc import add_ControllerServiceServicer_to_server
from llamesh.waiting import Wait

_ONE_MESH = "end it there with `llamesh down`, or set DATABASE_URL to a database of its own"
_LISTS_SECONDS = 5.0
"""How long the lists of what Admission must be asked about are waited for."""


async def main(member: Member) -> None:
    """Wire the parts, serve, and end what was started."""
    async with _controller(member.settings, member) as followers:
        await member.serve()
    if followers:
        raise StartRefused(f"the mesh of {followers[0]} has taken over this database: {_ONE_MESH}")


@asynccontextmanager
async def _controller(settings: Settings, member: Member) -> AsyncIterator[list[str]]:
    """A controller ready to serve; yields who took its lease over, nobody as a rule."""
    followers: list[str] = []
    async with AsyncExitStack() as stack:
        database = open_database(settings, "controller")
        stack.push_async_callback(database.close)
        await member.prepare(database, "controller")

        def end(follower: str) -> None:
            followers.append(follower)
            member.stop()

        lease = None
        if database.schema is not None:
            lease = Lease(database, "controller", owner_of(settings.home, "controller"), end)
            await _become_owner(lease, member)
            lease.start()
            stack.push_async_callback(lease.close)
        download, gateway, contract = (channel(settings, name) for name in ("download", "gateway", "contract"))
        for each in (download, gateway, contract):
            stack.push_async_callback(each.close)

        store, statuses, control = _declared(database, lease), StatusCache(), ControlPlane()
        runtime = ProcessRuntime(settings)
        demand = Demand()
        reconciler = Reconciler(settings, store, runtime, control, statuses, demand=demand)
        models = ModelFiles(download, reconciler.model_changed)
        stack.push_async_callback(models.close)
        stack.push_async_callback(runtime.close)
        await reconciler.open(models)
        # An orderly end is the end of the mesh of this machine: engines finish their requests and go. One that is killed leaves them.
        stack.push_async_callback(runtime.stop_all, settings.drain_seconds)
        stack.push_async_callback(reconciler.close)

        holder = RequestHolder(statuses, reconciler.wake, reconciler.touch, demand=demand)
        stack.push_async_callback(holder.close)
        waker = Waker(holder, statuses, settings.socket("waker"))
        await waker.start()
        stack.push_async_callback(waker.close)
        activity = ActivityPoller(statuses, runtime, reconciler)
        activity.start()
        stack.push_async_callback(activity.close)

        def take_keys(jwks: str) -> None:
            envoy_listeners.configure(control, settings, jwks)
            control.publish()

        keys = SigningKeys(gateway, take_keys)
        keys.start()
        stack.push_async_callback(keys.close)
        asked: list[Reflector[Any]] = [
            RevocationReflector(contract, partial(control.set_asked, "keys")),
            StandingReflector(gateway, lambda _users, ended: control.set_asked("standings", frozenset(ended))),
            LimitedContractReflector(contract, partial(control.set_asked, "contracts")),
        ]
        for following in asked:
            following.start()
            stack.push_async_callback(following.close)
        # Envoy has what our predecessor told it until we serve: it is not replaced by less than is known a moment later.
        if not all(await asyncio.gather(*(following.first(_LISTS_SECONDS) for following in asked))):
            log.warning(
                "gateway or contract service do not say which tokens have changed: Admission is asked about all until they do"
            )

        control.add_to(member.server)
        pages = open_pages(settings)
        servicer = ControllerServicer(
            store, reconciler, statuses, runtime, control, settings.memory_reserve_bytes, pages
        )
        add_ControllerServiceServicer_to_server(servicer, member.server)
        member.announce("llamesh.v1.ControllerService")
        member.metrics.add(ServerMetrics(statuses.all, runtime).read)
        yield followers


async def _become_owner(lease: Lease, member: Member) -> None:
    def tell(owner: str) -> None:
        words = f"the end of another mesh on this database, {owner}"
        member.wait_for(Wait(words, f"if it is over, this one goes on within {LEASE_SECONDS:g} s; else {_ONE_MESH}"))

    try:
        await lease.acquire(member.stopping, tell)
    except LeaseHeldError as held:
        raise StartRefused(f"a mesh runs on this database already, {held}: {_ONE_MESH}") from held
    finally:
        member.wait_for(None)


def _declared(database: Database, lease: Lease | None) -> DeclaredServers:
    return DeclaredServers(database, guard=lease.guard) if lease else DeclaredServers(database)


if __name__ == "__main__":
    run_member("controller", main)
