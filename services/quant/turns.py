"""Chooses the job that runs next. No I/O.

Invariant: users take turns, so the jobs of one user do not stop those of others; a job is that of the user whose rights it has. The jobs of
one user run in the order in which they were submitted, and a job that was interrupted goes on before others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from services.quant.states import JobState


class WaitingJob(Protocol):
    """The fields of a job that decide."""

    job_id: str
    state: str
    requester_uid: str


J = TypeVar("J", bound=WaitingJob)


def next_job(
    active: Sequence[J], busy: Collection[str], served: Mapping[str, int], begun: Collection[str] = ()
) -> J | None:
    """Return the job that runs next; None if there is none.

    Args:
        active: the jobs that have not ended, in the order in which they were submitted.
        busy: the ids of the jobs that run, or wait for their next try.
        served: for each user the number of the turn in which a job of theirs began last, 0 or more.
        begun: the ids of the jobs that this process has begun. A job that runs by its row and was not is one that was interrupted.
    """

    def order(job: J) -> tuple[bool, int]:
        interrupted = job.state == JobState.RUNNING and job.job_id not in begun
        return not interrupted, served.get(job.requester_uid, -1)

    # min returns the first of equal jobs, which was submitted first.
    return min((job for job in active if job.job_id not in busy), key=order, default=None)
