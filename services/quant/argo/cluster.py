"""The Kubernetes API, as far as jobs need it: workflows, and the ConfigMaps of their pods.

Every call has a deadline. Invariant: a call that may succeed later raises ClusterOutageError, and only one that the cluster refuses for
good raises ClusterRefusedError.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar, cast

import aiohttp
from kubernetes.aio import client, config

T = TypeVar("T")
_WORKFLOWS = ("argoproj.io", "v1alpha1")
_SECONDS = 10.0
_MERGE = "application/merge-patch+json"


class ClusterOutageError(Exception):
    """The cluster does not answer, or does not let the service in: a later try may succeed. The text is for people."""


class ClusterRefusedError(Exception):
    """The cluster refuses an object for good. The text is for people."""


class Cluster:
    """The namespace of the jobs' workflows. Connects with the first call, by KUBECONFIG or as a pod of the cluster."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._client: client.ApiClient | None = None
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

    async def workflow(self, name: str) -> dict[str, Any] | None:
        """Return a workflow; None if there is none."""
        api = client.CustomObjectsApi(await self._connected())
        call = api.get_namespaced_custom_object(
            *_WORKFLOWS, self._namespace, "workflows", name, _request_timeout=_SECONDS
        )
        return cast("dict[str, Any] | None", await self._asked(call, "read workflows", absent=404))

    async def submit(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Create a workflow and return it; return the present one if its name is taken."""
        name = manifest["metadata"]["name"]
        api = client.CustomObjectsApi(await self._connected())
        call = api.create_namespaced_custom_object(
            *_WORKFLOWS,
            self._namespace,
            "workflows",
            manifest,
            # A field that this version of Argo does not know would silently be dropped.
            field_validation="Strict",
            _request_timeout=_SECONDS,
        )
        created = await self._created(call, "workflows", "Argo Workflows is not installed there")
        found = cast("dict[str, Any] | None", created) or await self.workflow(name)
        if found is None:
            raise ClusterOutageError(f"the workflow {name} has vanished")
        return found

    async def keep(self, config_map: Any) -> None:
        """Create a ConfigMap, unless it is there."""
        api = client.CoreV1Api(await self._connected())
        call = api.create_namespaced_config_map(self._namespace, config_map, _request_timeout=_SECONDS)
        await self._created(call, "configmaps", "the namespace does not exist")

    async def terminate(self, name: str) -> None:
        """Stop a workflow: its pods are killed, and no other begins. Nothing if there is none."""
        api = client.CustomObjectsApi(await self._connected())
        call = api.patch_namespaced_custom_object(
            *_WORKFLOWS,
            self._namespace,
            "workflows",
            name,
            {"spec": {"shutdown": "Terminate"}},
            _content_type=_MERGE,
            _request_timeout=_SECONDS,
        )
        await self._asked(call, "stop workflows", absent=404)

    async def _created(self, call: Awaitable[T], what: str, missing: str) -> T | None:
        """Return a created object; None if its name is taken. `missing` says what an answer of 404 means."""

        async def judged() -> T:
            try:
                return await call
            except client.ApiException as error:
                if error.status in (400, 413, 422):
                    raise ClusterRefusedError(f"the cluster refuses it: {_message(error)}") from error
                if error.status == 404:
                    words = f"the cluster knows no {what} in the namespace {self._namespace}: {missing}"
                    raise ClusterOutageError(words) from error
                raise

        return await self._asked(judged(), f"create {what}", absent=409)

    async def _asked(self, call: Awaitable[T], what: str, *, absent: int) -> T | None:
        """Return the answer to a call; None if the status of the answer is `absent`. `what` names the call."""
        try:
            return await call
        except client.ApiException as error:
            if error.status == absent:
                return None
            raise await self._outage(error, what) from error
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise ClusterOutageError(f"the cluster does not answer: {error or type(error).__name__}") from error

    async def _connected(self) -> client.ApiClient:
        async with self._connecting:
            if self._client is None:
                self._client = client.ApiClient(await _configuration())
            return self._client

    async def _outage(self, error: client.ApiException, what: str) -> ClusterOutageError:
        """Return what an answer means. After 401 the next call connects anew: a token of KUBECONFIG may have expired."""
        if error.status == 401:
            async with self._connecting:
                await self.close()
        if error.status in (401, 403):
            return ClusterOutageError(f"the cluster does not let this service {what}: {_message(error)}")
        return ClusterOutageError(f"the cluster answers {error.status}: {_message(error)}")


async def _configuration() -> client.Configuration:
    found = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
        else:
            place = os.environ.get("KUBECONFIG", config.KUBE_CONFIG_DEFAULT_LOCATION)
            await config.load_kube_config(config_file=place, client_configuration=found)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise ClusterOutageError(f"no cluster is configured: {error}; set KUBECONFIG") from error
    return found


def _message(error: client.ApiException) -> str:
    with suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(error.body or "").get("message") or error.reason)[:500]
    return str(error.reason)
