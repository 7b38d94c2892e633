"""The contract service put together: its parts are made here and nowhere else, from settings, a database and the siblings' sockets."""

from __future__ import annotations

import asyncio
import secrets
import time
from datetime import UTC, datetime
from functools import partial

import grpc

from llamesh.background import BackgroundTask
from llamesh.kit.channels import channel
from llamesh.kit.database import Database, open_database
from llamesh.kit.logs import log, report_failure
from llamesh.kit.pages import open_pages
from llamesh.kit.serving import Member
from llamesh.v1 import (
    admission_pb2_grpc,
    contract_pb2_grpc,
    controller_pb2_grpc,
    download_pb2_grpc,
    gateway_pb2_grpc,
)
from services.contract.check import Checker
from services.contract.concurrency import ConcurrencyLimiter
from services.contract.contract_users import ContractUsers
from services.contract.contracts import LIMIT_SECONDS, REFRESH_SECONDS, Contracts, TermsCache
from services.contract.decisions import Decisions
from services.contract.front_door import FrontDoor
from services.contract.inventory import Inventory
from services.contract.keys import RESYNC_SECONDS, Keys, is_owned
from services.contract.policy import ServingLimits
from services.contract.servicer import AdmissionServicer, ContractServicer
from services.contract.usage import Ledger

FLUSH_SECONDS = 1.0
"""How long usage and refusals stay in memory."""
PRUNE_SECONDS = 300.0
"""How often old decisions are forgotten."""
LAST_PAUSE = 0.5
"""Seconds between attempts to write what is left at the end."""


class ContractService:
    """All parts of one process."""

    def __init__(self, member: Member, database: Database) -> None:
        settings = member.settings
        self._member = member
        self._database = database
        self._channels: dict[str, grpc.aio.Channel] = {
            name: channel(settings, name) for name in ("gateway", "download", "controller", "contract")
        }
        inventory = Inventory(
            download_pb2_grpc.CatalogueServiceStub(self._channels["download"]),
            controller_pb2_grpc.ControllerServiceStub(self._channels["controller"]),
        )
        signer = gateway_pb2_grpc.SigningKeyServiceStub(self._channels["gateway"])
        # Its own revocations through its own socket: told like every other member, at the same time.
        self.rights = member.follow_rights(self._channels["gateway"], self._channels["contract"])
        terms = TermsCache(database, time.monotonic)
        users = ContractUsers(gateway_pb2_grpc.StandingServiceStub(self._channels["gateway"]))
        contracts = Contracts(database, utc_now, new_id, terms, users.count, partial(is_owned, self.rights))
        # A SQLite file belongs to one process: nobody else revokes keys in it.
        resync = RESYNC_SECONDS if database.schema else None
        keys = Keys(database, contracts, signer, utc_now, new_id, resync)
        limiter = ConcurrencyLimiter(time.monotonic)
        self._decisions = Decisions(database, utc_now, new_id)
        self._ledger = Ledger(database, utc_now, new_id)
        self._tasks = [
            BackgroundTask("write usage and refusals", self._flush, report_failure, every=FLUSH_SECONDS),
            BackgroundTask("forget old decisions", self._decisions.prune, report_failure, every=PRUNE_SECONDS),
            BackgroundTask("forget old batches of usage", self._ledger.prune, report_failure, every=PRUNE_SECONDS),
            BackgroundTask("read limits", terms.refresh, report_failure, every=REFRESH_SECONDS, longest=LIMIT_SECONDS),
        ]
        checker = Checker(inventory, self._decisions, ServingLimits(settings.max_replicas, settings.allowed_namespaces))
        contract_pb2_grpc.add_ContractServiceServicer_to_server(
            ContractServicer(
                settings,
                checker,
                contracts,
                keys,
                self._ledger,
                self._decisions,
                limiter,
                self.rights,
                utc_now,
                open_pages(settings),
            ),
            member.server,
        )
        admission_pb2_grpc.add_AdmissionServiceServicer_to_server(
            AdmissionServicer(contracts, keys, terms), member.server
        )
        FrontDoor(limiter, terms, self.rights, self._ledger, self._decisions, member.stopping).add_to(member.server)
        member.announce("llamesh.v1.ContractService", "llamesh.v1.AdmissionService")

    def start(self) -> None:
        """Begin to write what is in memory and to forget what is old."""
        for task in self._tasks:
            task.start()

    async def close(self) -> None:
        """Write what is left, trying again within the time of the drain, and give back all connections."""
        await asyncio.gather(*(task.close() for task in self._tasks))
        try:
            await self._last_flush()
        finally:
            await asyncio.gather(*(own.close() for own in self._channels.values()))
            await self._database.close()

    async def _flush(self) -> None:
        await self._ledger.flush()
        await self._decisions.flush()

    async def _last_flush(self) -> None:
        while (error := await self._failure_of_flush()) is not None:
            left = self._member.drain_left()
            if left <= 0:
                accounts, refusals = self._ledger.pending, self._decisions.pending
                log.error("books not written", accounts=accounts, refusals=refusals, error=str(error))
                return
            await asyncio.sleep(min(LAST_PAUSE, left))

    async def _failure_of_flush(self) -> Exception | None:
        try:
            await self._flush()
        except Exception as error:
            return error
        return None


async def serve(member: Member) -> None:
    """Run the contract service until it is asked to stop."""
    database = open_database(member.settings, "contract")
    service = ContractService(member, database)
    try:
        # Envoy is answered from the first moment on: requests without a contract need no table.
        await member.prepare(database, "services.contract")
        service.start()
        await member.serve()
    finally:
        member.stop()
        await service.close()


def utc_now() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


def new_id(prefix: str) -> str:
    """An id that cannot be guessed."""
    return prefix + secrets.token_hex(8)
