"""The Kubernetes API, as far as jobs need it: workflows, and the ConfigMaps of their pods.

Invariant: a call that may succeed later raises ClusterOutageError, and only one that the cluster refuses for good raises
ClusterRefusedError.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, NoClusterError, Object

T = TypeVar("T")
_MANAGER = "llamesh-quant"
_REFUSED = (400, 413, 422)


class ClusterOutageError(Exception):
    """The cluster does not answer, or does not let the service in: a later try may succeed. The text is for people."""


class ClusterRefusedError(Exception):
    """The cluster refuses an object for good. The text is for people."""


class Cluster:
    """The namespace of the jobs' workflows. Connects with the first call, by KUBECONFIG or as a pod of the cluster."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._workflows = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
        self._api = KubernetesApi(_MANAGER)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def workflow(self, name: str) -> Object | None:
        """Return a workflow; None if there is none."""
        return await self._asked(self._api.get(f"{self._workflows}/{name}"), "read workflows")

    async def submit(self, manifest: Object) -> Object:
        """Create a workflow and return it; return the present one if its name is taken."""
        name = manifest["metadata"]["name"]
        created = await self._created(self._workflows, manifest, "workflows", "Argo Workflows is not installed there")
        found = created or await self.workflow(name)
        if found is None:
            raise ClusterOutageError(f"the workflow {name} has vanished")
        return found

    async def keep(self, config_map: Object) -> None:
        """Create a ConfigMap, unless it is there."""
        path = f"/api/v1/namespaces/{self._namespace}/configmaps"
        await self._created(path, config_map, "configmaps", "the namespace does not exist")

    async def terminate(self, name: str) -> None:
        """Stop a workflow: its pods are killed, and no other begins. Nothing if there is none."""
        call = self._api.merge(f"{self._workflows}/{name}", {"spec": {"shutdown": "Terminate"}})
        await self._asked(call, "stop workflows", absent=404)

    async def _created(self, path: str, manifest: Object, what: str, missing: str) -> Object | None:
        """Return a created object; None if its name is taken. `missing` says what an answer of 404 means."""

        async def judged() -> Object:
            try:
                return await self._api.create(path, manifest)
            except ClusterError as error:
                if error.status in _REFUSED:
                    raise ClusterRefusedError(f"the cluster refuses it: {error}") from error
                if error.status == 404:
                    words = f"the cluster knows no {what} in the namespace {self._namespace}: {missing}"
                    raise ClusterOutageError(words) from error
                raise

        return await self._asked(judged(), f"create {what}", absent=409)

    async def _asked(self, call: Awaitable[T], what: str, *, absent: int = 0) -> T | None:
        """Return the answer to a call; None if the status of the answer is `absent`. `what` names the call."""
        try:
            return await call
        except NoClusterError as error:
            raise ClusterOutageError(str(error)) from error
        except ClusterError as error:
            if error.status == absent != 0:
                return None
            if not error.status:
                raise ClusterOutageError(str(error)) from error
            if error.status in (401, 403):
                raise ClusterOutageError(f"the cluster does not let this service {what}: {error}") from error
            raise ClusterOutageError(f"the cluster answers {error.status}: {error}") from error
