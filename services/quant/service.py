"""Composition root of the Quant service: creates its parts from the settings, serves, and closes them in reverse order."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc

from llamesh.background import BackgroundTask
from llamesh.kit.channels import channel
from llamesh.kit.clock import utc_now
from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.errors import MeshError, StartRefused
from llamesh.kit.logs import report_failure
from llamesh.kit.member_lease import member_lease
from llamesh.kit.objects import SWEEP_SECONDS
from llamesh.kit.ownership import owner_of
from llamesh.kit.pages import open_pages
from llamesh.kit.serving import Member
from llamesh.v1.quant_pb2_grpc import add_QuantServiceServicer_to_server
from services.quant.argo.workflow_rows import WorkflowRows
from services.quant.job_changes import JobChanges
from services.quant.job_run import JobRuns
from services.quant.job_sources import JobSources
from services.quant.job_watches import JobWatches
from services.quant.jobs import Jobs
from services.quant.servicer import QuantServicer
from services.quant.source_objects import SourceObjects
from services.quant.step_rows import StepRows
from services.quant.submission import check_engine
from services.quant.variant_objects import bucket_of
from services.quant.variants import Variants
from services.quant.worker import JobWorker, Runs


async def run(member: Member) -> None:
    """Serve llamesh.v1.QuantService until the member is asked to stop. A step that the stop interrupts is started again later."""
    settings = member.settings
    async with AsyncExitStack() as stack:
        database = open_database(settings, "quant")
        stack.push_async_callback(database.close)
        await member.prepare(database, "services.quant")
        # The folders of its jobs are on one machine. A process that has lost the lease without noticing writes nothing.
        database.guard_with(
            await stack.enter_async_context(
                member_lease(member, database, "quant", owner_of(settings.home, "quant"), _other)
            )
        )
        store = bucket_of(settings)
        stack.push_async_callback(store.close)
        channels = {name: channel(settings, name, member.name) for name in ("gateway", "contract", "download")}
        for each in channels.values():
            stack.push_async_callback(each.close)
        rights = member.follow_rights(channels["gateway"], channels["contract"])

        changes = JobChanges()
        jobs = Jobs(database, utc_now, changes, _new_id)
        rows = StepRows(database, utc_now, changes)
        variants = Variants(database, store)
        if settings.quant_engine == "argo":
            runs: Runs = await stack.enter_async_context(
                _argo_runs(settings, database, jobs, rows, variants, channels["download"])
            )
        else:
            runs = JobRuns(settings, jobs, rows, variants, changes)
            await WorkflowRows(database).abandon()
        worker = JobWorker(jobs, rows, runs, variants, rights)
        sources = JobSources(settings, channels["download"])
        watches = JobWatches(jobs, changes, worker)
        servicer = QuantServicer(settings, jobs, watches, variants, worker, sources, open_pages(settings))
        add_QuantServiceServicer_to_server(servicer, member.server)
        member.announce("llamesh.v1.QuantService")

        sweep = BackgroundTask("sweep the bucket", store.sweep, report_failure, every=SWEEP_SECONDS)
        sweep.start()
        stack.push_async_callback(sweep.close)
        worker.start()
        stack.push_async_callback(worker.close)
        await member.serve()


@asynccontextmanager
async def _argo_runs(
    settings: Settings, database: Database, jobs: Jobs, rows: StepRows, variants: Variants, download: grpc.aio.Channel
) -> AsyncIterator[Runs]:
    """Open the engine that runs jobs on a cluster. Raises StartRefused if something that it needs is missing."""
    try:
        check_engine(settings)
    except MeshError as error:
        raise StartRefused(error.message) from error
    # Imported only if needed: they are an extra, and take two seconds of CPU.
    from services.quant.argo.cluster import Cluster
    from services.quant.argo.runs import ArgoRuns
    from services.quant.argo.submission import Submission

    cluster = Cluster(settings.argo_namespace)
    try:
        submission = Submission(settings, jobs, cluster, SourceObjects(download), variants)
        yield ArgoRuns(jobs, rows, WorkflowRows(database), cluster, submission, utc_now)
    finally:
        await cluster.close()


def _new_id() -> str:
    return f"job_{uuid.uuid4().hex[:12]}"


def _other(words: object) -> str:
    return (
        f"another mesh runs the Quant service of this database, {words}: use that one, end it with `llamesh down`,"
        " or start this mesh without LLAMESH_QUANT"
    )
