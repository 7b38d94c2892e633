"""Refuses a job because of those that there are: too many of its user, or one that makes or has made the same variant.

Invariant: the caller holds the lock under which jobs are created, so what was not there stays away until the job is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.errors import MeshError, Reason
from services.quant.states import ACTIVE, StepKind
from services.quant.tables import QuantJobRow, QuantModelRow, QuantStepRow
from services.quant.variant_objects import variant_uuid

MAX_ACTIVE = 100
"""Maximum number of jobs of one user that have not ended."""


async def refuse_too_many(session: AsyncSession, requester_uid: str) -> None:
    """Raise TOO_MANY_JOBS if as many jobs that have not ended have the rights of a user as may."""
    query = select(func.count()).where(QuantJobRow.state.in_(ACTIVE), QuantJobRow.requester_uid == requester_uid)
    if (await session.scalar(query) or 0) >= MAX_ACTIVE:
        raise MeshError(
            Reason.ERROR_REASON_TOO_MANY_JOBS,
            f"{MAX_ACTIVE} of your jobs have not ended, which is the most that one user may have",
            {"limit": str(MAX_ACTIVE)},
        )


async def refuse_present(session: AsyncSession, name: str, types: Sequence[str]) -> None:
    """Raise QUANT_MODEL_EXISTS if one of these variants exists, or an active job makes it."""
    for each in types:
        uuid = variant_uuid(name, each)
        model = await session.get(QuantModelRow, uuid)
        if model is not None:
            raise _exists(f"the model {uuid} exists already", uuid, model.job_id, "exists")
    query = (
        select(QuantStepRow)
        .join(QuantJobRow, QuantJobRow.job_id == QuantStepRow.job_id)
        .where(
            QuantJobRow.state.in_(ACTIVE),
            QuantJobRow.name == name,
            QuantStepRow.kind == StepKind.PUBLISH,
            QuantStepRow.type.in_(types),
        )
    )
    step = (await session.scalars(query)).first()
    if step is not None:
        uuid = variant_uuid(name, step.type)
        raise _exists(f"the job {step.job_id} is making the model {uuid}", uuid, step.job_id, "making")


def _exists(message: str, model_uuid: str, job_id: str, rule: str) -> MeshError:
    known = {"modelUuid": model_uuid, "jobId": job_id, "rule": rule}
    return MeshError(Reason.ERROR_REASON_QUANT_MODEL_EXISTS, message, known)
