"""Starts the controller: `python -m controller`.

Order matters. The lock: two controllers would fight over the engines. Then what is declared and what runs is learned,
then the signing keys; only then does Envoy get its first configuration, which is thus never less than what it may have
from before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from controller import front
from controller.activity import Activity
from controller.board import Board
from controller.declared import DeclaredServers
from controller.demand import Demand
from controller.lock import exclusive
from controller.models import Models
from controller.reconcile import Reconciler
from controller.runtimes.process import ProcessRuntime
from controller.servicer import ControllerServicer
from controller.signing import SigningKeys
from controller.waker import Waker
from controller.waking import Waking
from controller.xds.server import ControlPlane
from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.logs import log
from llamesh.kit.revocations import Revocations
from llamesh.kit.serving import Member, run
from llamesh.v1.controller_pb2_grpc import add_ControllerServiceServicer_to_server

_REVOCATIONS_SECONDS = 5.0
"""How long the list of revoked keys is waited for."""


async def main(member: Member) -> None:
    """Wire the parts, serve, and end what was started."""
    settings = member.settings
    async with exclusive(settings.run_dir), _controller(settings, member):
        await member.serve()


@asynccontextmanager
async def _controller(settings: Settings, member: Member) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        database = open_database(settings, "controller")
        stack.push_async_callback(database.close)
        await database.migrate("controller")
        download, gateway, contract = (channel(settings, name) for name in ("download", "gateway", "contract"))
        for each in (download, gateway, contract):
            stack.push_async_callback(each.close)

        store, board, control = DeclaredServers(database), Board(), ControlPlane()
        runtime = ProcessRuntime(settings)
        demand = Demand()
        reconciler = Reconciler(settings, store, runtime, control, board, demand=demand)
        models = Models(download, reconciler.model_changed)
        stack.push_async_callback(models.close)
        stack.push_async_callback(runtime.close)
        await reconciler.open(models)
        # An orderly end is the end of the mesh of this machine: engines finish their requests and go. One that is killed leaves them.
        stack.push_async_callback(runtime.stop_all, settings.drain_seconds)
        stack.push_async_callback(reconciler.close)

        waking = Waking(board, reconciler.wake, reconciler.touch, demand=demand)
        stack.push_async_callback(waking.close)
        waker = Waker(waking, board, settings.socket("waker"))
        await waker.start()
        stack.push_async_callback(waker.close)
        activity = Activity(board, runtime, reconciler)
        activity.start()
        stack.push_async_callback(activity.close)

        def take_keys(jwks: str) -> None:
            front.listen(control, settings, jwks)
            control.publish()

        keys = SigningKeys(gateway, take_keys)
        keys.start()
        stack.push_async_callback(keys.close)
        revocations = Revocations(contract, control.set_revoked)
        revocations.start()
        stack.push_async_callback(revocations.close)
        # Envoy has the list of our predecessor until we serve: it is not replaced by an empty one.
        if not await revocations.first(_REVOCATIONS_SECONDS):
            log.warning("the contract service does not say which keys are revoked: they count until it does")

        control.add_to(member.server)
        servicer = ControllerServicer(store, reconciler, board, runtime, control, settings.memory_reserve_bytes)
        add_ControllerServiceServicer_to_server(servicer, member.server)
        member.announce("llamesh.v1.ControllerService")
        yield


if __name__ == "__main__":
    run("controller", main)
