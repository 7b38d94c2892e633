"""Composition root of the contract service: creates its parts from the settings, serves, and closes them in reverse order."""

from __future__ import annotations

import secrets
import time
from contextlib import AsyncExitStack
from functools import partial

from llamesh.background import BackgroundTask
from llamesh.kit.channels import channel
from llamesh.kit.clock import utc_now
from llamesh.kit.database import open_database
from llamesh.kit.logs import report_failure
from llamesh.kit.pages import open_pages
from llamesh.kit.serving import Member
from llamesh.v1 import (
    admission_pb2_grpc,
    contract_pb2_grpc,
    controller_pb2_grpc,
    download_pb2_grpc,
    gateway_pb2_grpc,
)
from services.contract.access_log import AccessLog
from services.contract.admission import Admission
from services.contract.books import FLUSH_SECONDS, Books
from services.contract.check import Checker
from services.contract.concurrency import ConcurrencyLimiter
from services.contract.contract_users import ContractUsers
from services.contract.contracts import Contracts
from services.contract.decisions import Decisions
from services.contract.ext_authz import ExtAuthz
from services.contract.inventory import Inventory
from services.contract.keys import Keys, key_owner
from services.contract.placement_policy import placement_policy
from services.contract.policy import Policy
from services.contract.revocations import RESYNC_SECONDS, Revocations
from services.contract.servicer import AdmissionServicer, ContractServicer
from services.contract.terms_cache import REFRESH_SECONDS, TERMS_SECONDS, TermsCache
from services.contract.usage import Ledger

PRUNE_SECONDS = 300.0
"""Interval at which old decisions, batches of usage and expired keys are deleted."""


async def run(member: Member) -> None:
    """Serve llamesh.v1.ContractService, AdmissionService and Envoy's two protocols until the member is asked to stop."""
    settings = member.settings
    async with AsyncExitStack() as stack:
        database = open_database(settings, "contract")
        stack.push_async_callback(database.close)
        siblings = ("gateway", "download", "controller", "contract")
        channels = {name: channel(settings, name, member.name) for name in siblings}
        for each in channels.values():
            stack.push_async_callback(each.close)
        # The contract service follows its own stream of revocations through its own socket, as every other member does.
        rights = member.follow_rights(channels["gateway"], channels["contract"])

        terms = TermsCache(database, time.monotonic)
        users = ContractUsers(gateway_pb2_grpc.StandingServiceStub(channels["gateway"]))
        contracts = Contracts(database, utc_now, new_id, terms, users.count, partial(key_owner, rights))
        # A SQLite file belongs to one process: no other process revokes keys in it.
        revocations = Revocations(database, utc_now, RESYNC_SECONDS if database.schema else None)
        signer = gateway_pb2_grpc.SigningKeyServiceStub(channels["gateway"])
        keys = Keys(database, contracts, revocations, signer, rights, utc_now, new_id)
        ledger = Ledger(database, utc_now, new_id)
        decisions = Decisions(database, utc_now, new_id)
        inventory = Inventory(
            download_pb2_grpc.CatalogueServiceStub(channels["download"]),
            controller_pb2_grpc.ControllerServiceStub(channels["controller"]),
        )
        policy = Policy(
            settings.max_replicas,
            settings.allowed_namespaces,
            settings.anonymous_allowed,
            placement_policy(settings),
        )
        checker = Checker(inventory, decisions, policy)
        limiter = ConcurrencyLimiter(time.monotonic)
        admission = Admission(limiter, terms, rights, ledger, decisions)

        calls = ContractServicer(checker, contracts, limiter, keys, ledger, decisions, open_pages(settings))
        contract_pb2_grpc.add_ContractServiceServicer_to_server(calls, member.server)
        telling = AdmissionServicer(contracts, revocations, terms)
        admission_pb2_grpc.add_AdmissionServiceServicer_to_server(telling, member.server)
        ExtAuthz(admission).add_to(member.server)
        AccessLog(admission, member.stopping).add_to(member.server)
        member.announce("llamesh.v1.ContractService", "llamesh.v1.AdmissionService")

        books = Books(ledger, decisions, member.drain_left)
        stack.push_async_callback(books.close)
        # The drain also bounds the last write if the start fails.
        stack.callback(member.stop)
        # Envoy gets answers while the member waits for the database: requests without a contract need no table.
        await member.prepare(database, "services.contract")
        for task in (
            BackgroundTask("write usage and refusals", books.flush, report_failure, every=FLUSH_SECONDS),
            BackgroundTask("delete old decisions", decisions.prune, report_failure, every=PRUNE_SECONDS),
            BackgroundTask("delete old batches of usage", ledger.prune, report_failure, every=PRUNE_SECONDS),
            BackgroundTask("delete expired keys", keys.prune, report_failure, every=PRUNE_SECONDS),
            BackgroundTask("read limits", terms.refresh, report_failure, every=REFRESH_SECONDS, longest=TERMS_SECONDS),
        ):
            task.start()
            stack.push_async_callback(task.close)
        await member.serve()


def new_id(prefix: str) -> str:
    """Return an id that begins with the prefix and cannot be guessed."""
    return prefix + secrets.token_hex(8)
