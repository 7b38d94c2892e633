"""What tests of the certificates in Secrets share: runs, what they leave, and calls that are disturbed."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from controller.kubernetes.certificate_run import MemberSecrets, Wanted, keep
from controller.kubernetes.certificate_secrets import secret_of
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object
from llamesh.member_authority import AUTHORITY, replace_files
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, MemberCertificate, read
from llamesh.names import MEMBERS, QUANT
from tests.kubernetes_cluster import StandIn

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DUE = NOW + 17 * HOUR
PLACE = "/api/v1/namespaces/mesh/secrets"
RUNNING = tuple(member for member in MEMBERS if member != QUANT)
WANTED = Wanted(RUNNING, "mesh.test")
ROTATION = Wanted(RUNNING, "mesh.test", new_authority=True)


class Killed(BaseException):
    """FAKE: the end of a process, which no code handles."""


class Disturbed(KubernetesApi):
    """An API whose call with the number `at` is disturbed before or after it reaches the cluster. Reads and writes are counted apart."""

    def __init__(self, method: str, at: int, disturb: Callable[[], Awaitable[None]], *, after: bool = False) -> None:
        super().__init__("test")
        self._method, self._at, self._disturb, self._after = method, at, disturb, after

    async def _call(self, method: str, *rest: Any) -> Object:
        if (method == "GET") != (self._method == "GET"):
            return await super()._call(method, *rest)
        self._at -= 1
        if self._at == 0 and not self._after:
            await self._disturb()
        answer = await super()._call(method, *rest)
        if self._at == 0 and self._after:
            await self._disturb()
        return answer


async def kill() -> None:
    raise Killed


async def lose_the_answer() -> None:
    raise ClusterError(0, "the cluster does not answer")


async def no_pause(_: float) -> None:
    """Go on at once."""


async def run(api: KubernetesApi, wanted: Wanted = WANTED, now: datetime = NOW) -> None:
    await keep(MemberSecrets(api, "mesh"), wanted, lambda: now, no_pause)


def content(cluster: StandIn, place: str) -> dict[str, bytes]:
    data = cluster.objects[f"{PLACE}/{secret_of(place)}"]["data"]
    return {name: b64decode(value) for name, value in data.items()}


def mounted(cluster: StandIn, member: str, folder: Path, now: datetime) -> MemberCertificate:
    """What a member reads from its Secret after the kubelet has mounted it."""
    replace_files(folder / member, content(cluster, member))
    return read(folder / member, "mesh.test", member, now)


def authorities(cluster: StandIn) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(content(cluster, AUTHORITY)[AUTHORITIES])


def signed_by(cluster: StandIn, member: str, authority: x509.Certificate) -> bool:
    leaf = x509.load_pem_x509_certificate(content(cluster, member)[CERTIFICATE])
    try:
        leaf.verify_directly_issued_by(authority)
    except Exception:
        return False
    return True


def check_whole(cluster: StandIn, folder: Path, now: datetime) -> None:
    """Every member has a certificate of the one authority, and trusts all that the authority's Secret names."""
    trusted = content(cluster, AUTHORITY)[AUTHORITIES]
    assert [mounted(cluster, member, folder, now).authorities for member in RUNNING] == [trusted] * len(RUNNING)


def writes(cluster: StandIn) -> list[tuple[str, str]]:
    return [call for call in cluster.calls if call[0] != "GET"]
