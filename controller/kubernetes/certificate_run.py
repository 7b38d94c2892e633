"""One run that keeps the certificates of members as Secrets; `controller.kubernetes.certificates` composes it.

A pass reads the Secrets, lets `llamesh.member_authority` issue what is due in a folder in memory, and writes the Secrets that have changed,
the authority first. Each write names the version that was read. After a conflict with another run, or an answer that did not come,
everything is read again: what was written counts. So a run that was interrupted anywhere is continued by the next one.

Invariant: two runs at once never make two authorities, and nothing of a key is in a log or in a message.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from controller.kubernetes.certificate_secrets import (
    Files,
    UnusableSecretError,
    changed_secret,
    files_of,
    new_secret,
    secret_of,
    unusable,
)
from llamesh.certificates import CertificateError
from llamesh.kit.clock import utc_now
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object
from llamesh.kit.logs import log
from llamesh.member_authority import AUTHORITY, MemberAuthority, replace_files
from llamesh.member_certificates import AUTHORITIES, present

RIGHTS = "deploy/kubernetes/certificate-rights.yaml"
MAX_PASSES = 10
"""Most passes of one run. A conflict means that another run has written one of at most seven Secrets, which is not due again."""
FIRST_PAUSE = 0.25
"""Seconds before the second pass, doubled with each one up to MAX_PAUSE: 40 seconds in all."""
MAX_PAUSE = 8.0
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder in memory, in which a private one is made

Pause = Callable[[float], Awaitable[None]]


class RefusedError(Exception):
    """The cluster does not answer or refuses. The text names the remedy."""


class _ReadAgainError(Exception):
    """A write or an answer failed that a later pass may get."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run keeps."""

    members: tuple[str, ...]
    domain: str
    life: timedelta | None = None
    """Life of new certificates; None: that of the ones before, or 24 hours."""
    new_authority: bool = False


class MemberSecrets:
    """The Secrets of members and of their authority in one namespace."""

    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/secrets"

    async def read(self, place: str) -> Object | None:
        """Return the Secret of a member, or of the authority; None if there is none."""
        with self._said("get", place):
            return await self._api.get(f"{self._path}/{secret_of(place)}")

    async def write(self, place: str, before: Object | None, files: Files) -> None:
        """Create a Secret, or change the one that was read."""
        if before is None:
            with self._said("create", place):
                await self._api.create(self._path, new_secret(place, files))
        else:
            with self._said("patch", place):
                await self._api.merge(f"{self._path}/{secret_of(place)}", changed_secret(before, files))

    @contextmanager
    def _said(self, verb: str, place: str) -> Iterator[None]:
        """Say in words how a call failed. The text of an answer is never shown: it may repeat what was sent."""
        name = f"secrets/{secret_of(place)}"
        what = f"{verb} {name} in the namespace {self._namespace}"
        try:
            yield
        except ClusterError as error:
            if error.is_conflict or (verb == "patch" and error.status == 404):
                raise _ReadAgainError(f"{name} has changed meanwhile") from None
            if error.status == 403 and f"cannot {verb} resource" in str(error):
                words = f"no right to {what}: apply {RIGHTS} there, and run as its ServiceAccount"
            elif error.status == 403:
                words = (
                    f"the cluster forbids to {what}: look for a quota, an admission rule, and the end of the namespace"
                )
            elif error.may_pass:
                why = f"it answers {error.status}" if error.status else str(error)
                raise _ReadAgainError(f"the API server did not {what}: {why}") from None
            else:
                more = ": is the namespace there?" if error.status == 404 else ""
                words = f"the API server refuses to {what} with status {error.status}{more}"
            raise RefusedError(words) from None


async def keep(
    secrets: MemberSecrets, wanted: Wanted, clock: Callable[[], datetime] = utc_now, pause: Pause = asyncio.sleep
) -> None:
    """Issue what is due. RefusedError, UnusableSecretError, or OSError of the folder in words; what was written until then stays."""
    why = ""
    for number in range(MAX_PASSES):
        if number:
            await pause(min(MAX_PAUSE, FIRST_PAUSE * 2 ** (number - 1)))
        try:
            return await _keep_once(secrets, wanted, clock())
        except _ReadAgainError as error:
            why = str(error)
            log.warning("reads the Secrets again", why=why)
    raise RefusedError(f"gave up after {MAX_PASSES} attempts: {why}; the next run goes on")


async def _keep_once(secrets: MemberSecrets, wanted: Wanted, now: datetime) -> None:
    """Make one pass. A Secret of a member that cannot be used does not keep the others from being renewed."""
    # The authority is read last: then no certificate that was read is of a later one, and no member goes back to one that was replaced.
    found = {place: await secrets.read(place) for place in (*wanted.members, AUTHORITY)}
    files: dict[str, Files] = {}
    wrong: dict[str, UnusableSecretError] = {}
    for place, item in found.items():
        try:
            if item is not None:
                files[place] = files_of(place, item)
        except UnusableSecretError as error:
            wrong[place] = error
    if AUTHORITY in wrong:
        raise wrong[AUTHORITY]
    made = issue(files, tuple(each for each in wanted.members if each not in wrong), wanted, now)
    for place, content in made.items():
        if content != files.get(place):
            await secrets.write(place, found[place], content)
            log.info("wrote a Secret", secret=secret_of(place))
    if wrong:
        raise UnusableSecretError("\n".join(map(str, wrong.values())))


def issue(files: Mapping[str, Files], members: Sequence[str], wanted: Wanted, now: datetime) -> dict[str, Files]:
    """Return the files of the authority, then of members, after what is due has been issued.

    They are in a private folder meanwhile, in memory if this machine has such a place.
    """
    memory = _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="llamesh-", dir=memory) as name:
        folder = Path(name)
        for place, content in files.items():
            replace_files(folder / place, content)
        authority = MemberAuthority(folder, wanted.domain)
        # False after a rotation that was interrupted. A member that does not trust the new authority yet refuses what that has signed.
        newest = files.get(AUTHORITY, {}).get(AUTHORITIES)
        spread = all(files[each][AUTHORITIES] == newest for each in members if each in files)
        try:
            if wanted.new_authority:
                authority.replace_authority(now)
            for member in members:
                authority.issue(member, now, wanted.life, spread=spread)
        except CertificateError as error:
            # Its words name the folder.
            raise unusable(AUTHORITY, str(error).replace(str(folder / AUTHORITY), "it").splitlines()[0]) from error
        there = [place for place in (AUTHORITY, *members) if (folder / place).exists()]
        return {place: {file.name: file.read_bytes() for file in present(folder / place).iterdir()} for place in there}
