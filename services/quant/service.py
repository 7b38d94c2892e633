"""Composition root of the Quant service: creates its parts from the settings, serves, and closes them in reverse order."""

from __future__ import annotations

import uuid
from contextlib import AsyncExitStack

from llamesh.kit.channels import channel
from llamesh.kit.clock import utc_now
from llamesh.kit.database import open_database
from llamesh.kit.member_lease import member_lease
from llamesh.kit.ownership import owner_of
from llamesh.kit.pages import open_pages
from llamesh.kit.serving import Member
from llamesh.v1.quant_pb2_grpc import add_QuantServiceServicer_to_server
from services.quant.job_changes import JobChanges
from services.quant.job_run import JobRuns
from services.quant.job_sources import JobSources
from services.quant.job_watches import JobWatches
from services.quant.jobs import Jobs
from services.quant.servicer import QuantServicer
from services.quant.step_rows import StepRows
from services.quant.variant_objects import bucket_of
from services.quant.variants import Variants
from services.quant.worker import JobWorker


async def run(member: Member) -> None:
    """Serve llamesh.v1.QuantService until the member is asked to stop. A step that the stop interrupts is started again later."""
    settings = member.settings
    async with AsyncExitStack() as stack:
        database = open_database(settings, "quant")
        stack.push_async_callback(database.close)
        await member.prepare(database, "services.quant")
        # The folders of its jobs are on one machine.
        await stack.enter_async_context(
            member_lease(member, database, "quant", owner_of(settings.home, "quant"), _other)
        )
        store = bucket_of(settings)
        stack.push_async_callback(store.close)
        channels = {name: channel(settings, name) for name in ("gateway", "contract", "download")}
        for each in channels.values():
            stack.push_async_callback(each.close)
        member.follow_rights(channels["gateway"], channels["contract"])

        changes = JobChanges()
        jobs = Jobs(database, utc_now, changes, _new_id)
        rows = StepRows(database, utc_now, changes)
        variants = Variants(database, store)
        worker = JobWorker(settings.home, jobs, rows, JobRuns(settings, jobs, rows, variants, changes), variants)
        sources = JobSources(settings, channels["download"])
        watches = JobWatches(jobs, changes, worker)
        servicer = QuantServicer(settings, jobs, watches, variants, worker, sources, open_pages(settings))
        add_QuantServiceServicer_to_server(servicer, member.server)
        member.announce("llamesh.v1.QuantService")

        worker.start()
        stack.push_async_callback(worker.close)
        await member.serve()


def _new_id() -> str:
    return f"job_{uuid.uuid4().hex[:12]}"


def _other(words: object) -> str:
    return (
        f"another mesh runs the Quant service of this database, {words}: use that one, end it with `llamesh down`,"
        " or start this mesh without LLAMESH_QUANT"
    )
