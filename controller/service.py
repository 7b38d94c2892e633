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
from typing import TYPE_CHECKING, Any

import grpc

from controller import envoy_listeners
from controller.activity import ActivityPoller
from controller.demand import Demand
from controller.limited import LimitedContractReflector
from controller.machine import MachinePlace, open_machine
from controller.metrics import ServerMetrics
from controller.reconcile import Reconciler
from controller.request_holder import RequestHolder
from controller.servicer import ControllerServicer
from controller.signing import SigningKeys
from controller.status_cache import StatusCache
from controller.wake_tasks import WakeTasks
from controller.waker import Waker
from controller.xds.serving import ControlPlane
from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.logs import log
from llamesh.kit.member_tls import open_member_tls
from llamesh.kit.reflector import Reflector
from llamesh.kit.revocations import RevocationReflector
from llamesh.kit.serving import Member
from llamesh.kit.standings import StandingReflector
from llamesh.names import WAKER
from llamesh.v1.controller_pb2_grpc import add_ControllerServiceServicer_to_server

if TYPE_CHECKING:
    from controller.kubernetes.cluster import ClusterPlace

_MAX_LISTS_SECONDS = 5.0
"""Longest wait for the lists of ids that Envoy must ask Admission about, in seconds."""


async def run(member: Member) -> None:
    """Serve llamesh.v1.ControllerService, Envoy's control plane and the waker until the member is asked to stop."""
    settings = member.settings
    async with AsyncExitStack() as stack:
        siblings = ("download", "gateway", "contract")
        download, gateway, contract = (channel(settings, name, member.name) for name in siblings)
        for each in (download, gateway, contract):
            stack.push_async_callback(each.close)
        statuses, control, demand = StatusCache(), ControlPlane(), Demand()
        place = await _open_place(stack, member, download, contract)
        reconciler = Reconciler(settings, place.store, place.runtime, control, statuses, demand)
        await place.open(reconciler.changed)
        await reconciler.open()
        # An orderly end of the controller is the end of the mesh on this machine. A killed controller leaves its engines running.
        stack.push_async_callback(place.runtime.stop_all, settings.drain_seconds)
        stack.push_async_callback(reconciler.close)
        place.start(statuses)

        wakes = WakeTasks(reconciler.wake, demand)
        stack.push_async_callback(wakes.close)
        holder = RequestHolder(statuses, demand, wakes, reconciler.touch)
        tls = open_member_tls(settings, member.name)
        waker = Waker(holder, statuses, settings.socket(WAKER), settings.listens_at(WAKER), tls)
        await waker.start()
        stack.push_async_callback(waker.close)
        activity = ActivityPoller(statuses, place.runtime, reconciler)
        activity.start()
        stack.push_async_callback(activity.close)

        keys = SigningKeys(gateway, partial(_take_keys, control, settings))
        keys.start()
        stack.push_async_callback(keys.close)
        await _follow_lists(stack, _reflectors(control, gateway, contract))

        member.metrics.add(ServerMetrics(statuses.all, place.runtime).read)
        control.add_to(member.server)
        servicer = ControllerServicer(settings, place.store, reconciler, statuses, place.runtime, control)
        add_ControllerServiceServicer_to_server(servicer, member.server)
        member.announce("llamesh.v1.ControllerService")
        await member.serve()
    place.check()


async def _open_place(
    stack: AsyncExitStack, member: Member, download: grpc.aio.Channel, contract: grpc.aio.Channel
) -> MachinePlace | ClusterPlace:
    """Open the place where engines run, with its store of declared servers."""
    if member.settings.runtime == "process":
        return await open_machine(stack, member, download)
    # The package `kubernetes` is an extra.
    from controller.kubernetes.cluster import open_cluster

    return await open_cluster(stack, member.settings, download, contract)


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
