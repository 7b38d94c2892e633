"""The gateway's process: wires its parts and serves until asked to stop."""

from __future__ import annotations

import secrets
import time
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial

from llamesh.background import BackgroundTask
from llamesh.kit.channels import channel
from llamesh.kit.database import open_database
from llamesh.kit.logs import report_failure
from llamesh.kit.pages import open_pages
from llamesh.kit.serving import Member, run
from llamesh.v1 import gateway_pb2_grpc
from services.gateway.feeds import Feeds
from services.gateway.health import Health
from services.gateway.hub import Hub
from services.gateway.mesh_health import MeshHealth
from services.gateway.models import Models
from services.gateway.passwords import Passwords
from services.gateway.servers import Servers
from services.gateway.servicer import GatewayServicer, Parts, SigningKeyServicer, StandingServicer
from services.gateway.siblings import Siblings
from services.gateway.signing_keys import open_signer
from services.gateway.standings import Standings
from services.gateway.throttle import Throttle
from services.gateway.tokens import Tokens
from services.gateway.users import Users
from services.gateway.watch import Watches

ROTATION_CHECK = 600.0
"""Seconds between looks at whether a signing key is due for replacement."""

AGAIN_SECONDS = 1.0
"""How long a transaction that gives a contract to a user waits for the contract service, which has answered a moment before."""


async def main(member: Member) -> None:
    """Serve llamesh.v1.GatewayService, SigningKeyService and StandingService."""
    settings = member.settings
    database = open_database(settings, "gateway")
    standings = Standings(database, _now)
    signer = open_signer(settings, database, _now)
    tokens = Tokens(signer, _now, lambda: str(uuid.uuid4()))

    siblings = Siblings(settings)
    know_contract = partial(siblings.know_contract, deadline=AGAIN_SECONDS)
    users = Users(database, Passwords(), Throttle(time.monotonic), standings, _now, _new_uid, know_contract)
    hub = Hub(uuid.uuid4().hex[:12])
    feeds = Feeds(siblings, hub)
    health = Health(siblings, time.monotonic, lambda: member.database_answers)
    parts = Parts(
        siblings=siblings,
        users=users,
        tokens=tokens,
        token_lifetime=timedelta(hours=settings.jwt_expiry_hours),
        models=Models(siblings),
        servers=Servers(siblings, settings.drain_seconds),
        watches=Watches(hub, time.monotonic, _now),
        health=health,
        pages=open_pages(settings),
    )
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(GatewayServicer(parts), member.server)
    gateway_pb2_grpc.add_SigningKeyServiceServicer_to_server(SigningKeyServicer(tokens, users), member.server)
    gateway_pb2_grpc.add_StandingServiceServicer_to_server(StandingServicer(standings), member.server)
    MeshHealth(health, member.stopping).add_to(member.server)
    member.announce("llamesh.v1.GatewayService", "llamesh.v1.SigningKeyService", "llamesh.v1.StandingService")
    member.show("llamesh.v1.ContractService", "llamesh.v1.DownloadService")
    # Its own stream, through its own socket: told like every other member, at the same time.
    own = channel(settings, "gateway")
    member.follow_rights(own, siblings.channels["contract"])

    feeds.start()
    rotation = BackgroundTask("rotate signing keys", signer.rotate, report_failure, every=ROTATION_CHECK)
    pruning = BackgroundTask("forget old standings", standings.prune, report_failure, every=ROTATION_CHECK)
    try:
        # What needs no table, such as the health of the mesh, is answered while the database is waited for.
        await member.prepare(database, "services.gateway")
        await users.ensure_first(settings)
        await signer.rotate()
        rotation.start()
        pruning.start()
        await member.serve()
    finally:
        await rotation.close()
        await pruning.close()
        await feeds.close()
        await own.close()
        await siblings.close()
        await database.close()


def _new_uid() -> str:
    return f"usr_{secrets.token_hex(8)}"


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    run("gateway", main)
