"""Composition root of the controller: creates its parts from the settings, serves, and closes them in reverse order.

The order of the steps matters. On PostgreSQL the lease comes first, because only one of the meshes on a database may run engines. Then the
declared servers, the running engines and the signing keys are read. Envoy gets its first configuration last, so that it contains at least
the resources that Envoy may have from an earlier controller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import grpc

from controller import envoy_listeners
from controller.activity import ActivityPoller
from controller.declared_store import DeclaredServers
from controller.demand import Demand
from controller.limited import LimitedContractReflector
from controller.metrics import ServerMetrics
from controller.model_files import ModelFiles
from controller.ownership import Ownership
from controller.reconcile import Reconciler
from controller.request_holder import RequestHolder
from controller.runtimes.process import ProcessRuntime
from controller.servicer import ControllerServicer
from controller.signing import SigningKeys
from controller.status_cache import StatusCache
from controller.wake_tasks import WakeTasks
from controller.waker import Waker
from controller.xds.serving import ControlPlane
from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.logs import log
from llamesh.kit.member_tls import open_member_tls
from llamesh.kit.reflector import Reflector
from llamesh.kit.revocations import RevocationReflector
from llamesh.kit.serving import Member
from llamesh.kit.standings import StandingReflector
from llamesh.names import WAKER
from llamesh.v1.controller_pb2_grpc import add_ControllerServiceServicer_to_server

_MAX_LISTS_SECONDS = 5.0
"""Longest wait for the lists of ids that Envoy must ask Admission about, in seconds."""


async def run(member: Member) -> None:
    """Serve llamesh.v1.ControllerService, Envoy's control plane and the waker until the member is asked to stop."""
    settings = member.settings
    async with AsyncExitStack() as stack:
        database = open_database(settings, "controller")
        stack.push_async_callback(database.close)
        await member.prepare(database, "controller")
        ownership = Ownership(member, database)
        await ownership.acquire()
        stack.push_async_callback(ownership.close)
        siblings = ("download", "gateway", "contract")
        download, gateway, contract = (channel(settings, name, member.name) for name in siblings)
        for each in (download, gateway, contract):
            stack.push_async_callback(each.close)

        store = DeclaredServers(database, guard=ownership.guard)
        statuses, control, demand = StatusCache(), ControlPlane(), Demand()
        runtime = ProcessRuntime(settings, models=ModelFiles(download))
        stack.push_async_callback(runtime.close)
        reconciler = Reconciler(settings, store, runtime, control, statuses, demand)
        await reconciler.open()
        # An orderly end of the controller is the end of the mesh on this machine. A killed controller leaves its engines running.
        stack.push_async_callback(runtime.stop_all, settings.drain_seconds)
        stack.push_async_callback(reconciler.close)

        wakes = WakeTasks(reconciler.wake, demand)
        stack.push_async_callback(wakes.close)
        holder = RequestHolder(statuses, demand, wakes, reconciler.touch)
        tls = open_member_tls(settings, member.name)
        waker = Waker(holder, statuses, settings.socket(WAKER), settings.listens_at(WAKER), tls)
        await waker.start()
        stack.push_async_callback(waker.close)
        activity = ActivityPoller(statuses, runtime, reconciler)
        activity.start()
        stack.push_async_callback(activity.close)

        keys = SigningKeys(gateway, partial(_take_keys, control, settings))
        keys.start()
        stack.push_async_callback(keys.close)
        await _follow_lists(stack, _reflectors(control, gateway, contract))

        member.metrics.add(ServerMetrics(statuses.all, runtime).read)
        control.add_to(member.server)
        servicer = ControllerServicer(settings, store, reconciler, statuses, runtime, control)
        add_ControllerServiceServicer_to_server(servicer, member.server)
        member.announce("llamesh.v1.ControllerService")
        await member.serve()
    ownership.check()


def _take_keys(control: ControlPlane, settings: Settings, jwks: str) -> None:
    envoy_listeners.configure(control, settings, jwks)
    control.publish()


def _reflectors(
    control: ControlPlane, gateway: grpc.aio.Channel, contract: grpc.aio.Channel
) -> Sequence[Reflector[Any]]:
    """Create the reflectors of the lists of tokens that Envoy must ask Admission about."""
    return (
        RevocationReflector(contract, partial(control.set_admission_ids, "keys")),
        StandingReflector(gateway, lambda _users, ended: control.set_admission_ids("standings", frozenset(ended))),
        LimitedContractReflector(contract, partial(control.set_admission_ids, "contracts")),
    )


async def _follow_lists(stack: AsyncExitStack, reflectors: Sequence[Reflector[Any]]) -> None:
    """Follow the lists and wait for the first version of each, so that Envoy keeps the ids that an earlier controller sent."""
    for reflector in reflectors:
        reflector.start()
        stack.push_async_callback(reflector.close)
    if not all(await asyncio.gather(*(reflector.first(_MAX_LISTS_SECONDS) for reflector in reflectors))):
        log.warning(
            "no list of changed tokens from the gateway or the contract service: Envoy asks Admission about all tokens until it arrives"
        )
