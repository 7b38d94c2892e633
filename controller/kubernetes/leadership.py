"""Elects the controller that may write: the holder of a Lease of the cluster.

The holder renews it every RENEW_SECONDS. Another controller takes it over once it has seen no renewal for LEASE_SECONDS by its own clock;
clocks of different machines are never compared. The package's own election compares wall clocks and ends with the first broken connection.

Invariant: `leads` is false before another controller can take over, also while the API server cannot be reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from llamesh.background import BackgroundTask, Report
from llamesh.kit.clock import utc_now
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object
from llamesh.kit.logs import log

LEASE_SECONDS = 15.0
RENEW_SECONDS = 3.0
_MARGIN_SECONDS = 5.0
"""Seconds before its end at which a holder that could not renew the lease stops to write."""


class Leadership:
    """One candidate. `on_change` is called when it has become or is no longer the leader."""

    def __init__(
        self,
        api: KubernetesApi,
        namespace: str,
        name: str,
        identity: str,
        report: Report,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._identity = identity
        self._on_change = on_change
        self._clock = clock
        self._until = 0.0
        self._led = False
        self._seen: tuple[str, float] = ("", 0.0)
        """The last version of another's lease, and when it was seen first."""
        self._task = BackgroundTask(
            "hold the lease of the leader", self._renew, report, every=RENEW_SECONDS, longest=RENEW_SECONDS
        )

    @property
    def leads(self) -> bool:
        """Whether this controller may write now."""
        return self._clock() < self._until

    def start(self) -> None:
        """Stand for election until closed."""
        self._task.start()

    async def close(self) -> None:
        """Leave, and release the lease, so that another controller leads at once."""
        await self._task.close()
        if not self.leads:
            return
        self._until = 0.0
        with suppress(ClusterError):
            if (lease := await self._api.get(f"{self._leases}/{self._name}")) and _holder(lease) == self._identity:
                await self._write(lease, {"holderIdentity": ""})

    async def _renew(self) -> None:
        began = self._clock()
        try:
            lease = await self._api.get(f"{self._leases}/{self._name}")
            if lease is None or self._may_take(lease):
                await self._take(lease)
                self._until = began + LEASE_SECONDS - _MARGIN_SECONDS
        except ClusterError as error:
            if not error.is_conflict:
                raise
        finally:
            self._tell()

    def _may_take(self, lease: Object) -> bool:
        """Return whether the lease is this controller's, nobody's, or one that nobody has renewed for its whole length."""
        if _holder(lease) in ("", self._identity):
            return True
        version = lease["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, self._clock())
        return self._clock() - self._seen[1] >= LEASE_SECONDS

    async def _take(self, lease: Object | None) -> None:
        now = utc_now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: Object = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(LEASE_SECONDS),
            "renewTime": now,
        }
        if lease is None:
            manifest = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name},
                "spec": {**spec, "acquireTime": now},
            }
            await self._api.create(self._leases, manifest)
        else:
            await self._write(lease, spec if _holder(lease) == self._identity else {**spec, "acquireTime": now})

    async def _write(self, lease: Object, spec: Object) -> None:
        metadata = {"resourceVersion": lease["metadata"]["resourceVersion"]}
        await self._api.merge(f"{self._leases}/{self._name}", {"metadata": metadata, "spec": spec})

    def _tell(self) -> None:
        if self.leads != self._led:
            self._led = self.leads
            log.info("leads" if self._led else "no longer leads", identity=self._identity)
            self._on_change()


def _holder(lease: Object) -> str:
    return (lease.get("spec") or {}).get("holderIdentity") or ""
