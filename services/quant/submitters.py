"""Decides whether a job may go on, from the present rights of the user whose rights it has: who started or retried it last. No I/O.

Rights are decided at use, not at issue (ADR 17): a job takes hours, and its user may be disabled, removed or lose a right meanwhile. The
rights are those that this process mirrors from the gateway.

Invariant: no job ends because the gateway does not answer. Until its first list every job goes on; during an outage the last list counts.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.rights import MANAGE, Rights, role_grants

REASONS = ("USER_DISABLED", "USER_NOT_FOUND", "SCOPE_MISSING")
"""The reasons with which a job ends that its user may not have any more. They say nothing about its files."""


class StartedJob(Protocol):
    """The fields of a job that decide."""

    owner: str
    requester_uid: str
    create_time: datetime


def refusal(job: StartedJob, rights: Rights) -> MeshError | None:
    """Return why a job may not go on; None if it may, or if no users are known yet."""
    if not rights.knows_users:
        return None
    user = rights.owner(job.requester_uid, job.owner, job.create_time.timestamp())
    if user is None:
        words = "the user whose rights this job has was removed: another user may retry it"
        return MeshError(Reason.ERROR_REASON_USER_NOT_FOUND, words)
    name = {"username": user.username}
    if user.disabled:
        words = f"the user {user.username}, whose rights this job has, is disabled: another user may retry it"
        return MeshError(Reason.ERROR_REASON_USER_DISABLED, words, name)
    if not role_grants(user.role, MANAGE):
        words = (
            f"the user {user.username}, whose rights this job has, may not run jobs any more: another user may retry it"
        )
        return MeshError(Reason.ERROR_REASON_SCOPE_MISSING, words, {"scope": MANAGE})
    return None
