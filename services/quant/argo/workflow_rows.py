"""Which workflow of the cluster belongs to which job, in the jobs' rows.

Invariant: a row has the name of its workflow before the workflow exists, and until it has ended and the objects that it may have left are
in the rows of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from llamesh.kit.database import Database
from llamesh.kit.logs import log
from services.quant.jobs import Job
from services.quant.states import ACTIVE
from services.quant.tables import QuantJobRow, QuantStepRow


class WorkflowRows:
    """Writes the names of workflows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def name(self, job: Job, workflow: str) -> None:
        """Write the workflow of a job, unless the job was cancelled or restarted in the meantime."""
        async with self._database.begin() as session:
            row = await session.get(QuantJobRow, job.row.job_id, with_for_update=True)
            if row is not None and row.state in ACTIVE and row.attempt == job.row.attempt:
                row.workflow = workflow

    async def settle(self, job: Job, workflow: str, keys: dict[int, str]) -> None:
        """Write that a workflow has ended. `keys`: the objects that it may have left, by the position of their step."""
        async with self._database.begin() as session:
            row = await session.get(QuantJobRow, job.row.job_id, with_for_update=True)
            if row is None or row.workflow != workflow:
                return
            for position, key in keys.items():
                step = await session.get(QuantStepRow, (row.job_id, position))
                if step is not None:
                    step.object_key = key
            row.workflow = ""

    async def abandon(self) -> None:
        """Forget all workflows: this service has no cluster any more. Each ends by its own deadline."""
        async with self._database.begin() as session:
            for row in await session.scalars(select(QuantJobRow).where(QuantJobRow.workflow != "")):
                log.warning("a workflow is left to its cluster", workflow=row.workflow, job_id=row.job_id)
                row.workflow = ""

    async def unsettled(self) -> Sequence[str]:
        """Return the ids of the ended jobs whose workflow is not settled, the oldest first."""
        query = select(QuantJobRow.job_id).where(QuantJobRow.state.not_in(ACTIVE), QuantJobRow.workflow != "")
        async with self._database.read() as session:
            return (await session.scalars(query.order_by(QuantJobRow.update_time, QuantJobRow.job_id))).all()
