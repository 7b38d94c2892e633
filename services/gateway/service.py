"""Composition root of the gateway: creates its parts from the settings, serves, and closes them in reverse order."""

from __future__ import annotations

import time
import uuid
from contextlib import AsyncExitStack
from datetime import timedelta

from llamesh.background import BackgroundTask
from llamesh.kit.channels import channel
from llamesh.kit.clock import utc_now
from llamesh.kit.database import open_database
from llamesh.kit.logs import report_failure
from llamesh.kit.member_tls import open_member_tls
from llamesh.kit.pages import open_pages
from llamesh.kit.serving import Member
from llamesh.names import ENVOY_ADMIN, default_namespace
from llamesh.v1 import gateway_pb2_grpc, quant_pb2
from services.gateway.authentication import Authenticator
from services.gateway.feeds import Feeds
from services.gateway.health import HealthReporter
from services.gateway.issuer import Issuer
from services.gateway.members import Members
from services.gateway.mesh_health import MeshHealthServicer
from services.gateway.mesh_metrics import MeshMetrics
from services.gateway.models import Models
from services.gateway.passwords import Passwords
from services.gateway.servers import Servers
from services.gateway.servicer import GatewayServicer, SigningKeyServicer, StandingServicer
from services.gateway.signing_keys import open_signer
from services.gateway.standings import Standings
from services.gateway.throttle import Throttle
from services.gateway.users import Users
from services.gateway.watch import Watches
from services.gateway.watch_cache import WatchCache

ROTATION_CHECK = 600.0
"""Seconds between two runs of the rotation of signing keys and of the pruning of standings."""


async def run(member: Member) -> None:
    """Serve llamesh.v1.GatewayService, SigningKeyService and StandingService until the member is asked to stop."""
    settings = member.settings
    async with AsyncExitStack() as stack:
        database = open_database(settings, "gateway")
        stack.push_async_callback(database.close)
        members = Members(settings)
        stack.push_async_callback(members.close)
        # The gateway follows its own stream of standings through its own socket, as every other member does.
        own = channel(settings, "gateway", member.name)
        stack.push_async_callback(own.close)
        member.follow_rights(own, members.channels["contract"])

        passwords = Passwords()
        standings = Standings(database, utc_now)
        users = Users(database, passwords, standings, open_pages(settings), members.know_contract)
        authenticator = Authenticator(database, passwords, Throttle(time.monotonic))
        signer = open_signer(settings, database, utc_now)
        issuer = Issuer(users, signer, members.admission, timedelta(hours=settings.jwt_expiry_hours))
        cache = WatchCache(uuid.uuid4().hex[:12])
        watches = Watches(cache, time.monotonic, utc_now)
        tls = open_member_tls(settings, member.name)
        health = HealthReporter(
            members, time.monotonic, lambda: member.database_answers, lambda: tls is None or not tls.problem
        )
        models = Models(members)
        servers = Servers(members, settings.drain_seconds, default_namespace(settings.allowed_namespaces))

        elsewhere = bool(settings.listens_at(member.name))
        metrics = MeshMetrics(member.metrics, members, settings.socket(ENVOY_ADMIN), envoy_may_be_elsewhere=elsewhere)

        gateway = GatewayServicer(authenticator, issuer, users, models, servers, watches, health, metrics)
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(gateway, member.server)
        gateway_pb2_grpc.add_SigningKeyServiceServicer_to_server(SigningKeyServicer(issuer), member.server)
        gateway_pb2_grpc.add_StandingServiceServicer_to_server(StandingServicer(standings), member.server)
        MeshHealthServicer(health, member.stopping).add_to(member.server)
        member.announce("llamesh.v1.GatewayService", "llamesh.v1.SigningKeyService", "llamesh.v1.StandingService")
        member.show("llamesh.v1.ContractService", "llamesh.v1.DownloadService")
        if settings.quant:
            member.show(quant_pb2.DESCRIPTOR.services_by_name["QuantService"].full_name)

        feeds = Feeds(members, cache)
        feeds.start()
        stack.push_async_callback(feeds.close)
        # Calls that need no table, such as GetHealth, are answered while the member waits for the database.
        await member.prepare(database, "services.gateway")
        await users.ensure_first(settings)
        await signer.rotate()
        for name, act in (("rotate signing keys", signer.rotate), ("forget old standings", standings.prune)):
            task = BackgroundTask(name, act, report_failure, every=ROTATION_CHECK)
            task.start()
            stack.push_async_callback(task.close)
        await member.serve()
