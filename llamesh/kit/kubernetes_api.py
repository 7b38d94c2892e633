"""The API of a Kubernetes cluster on raw JSON objects: calls with deadlines, and watches.

The package's typed objects cost several times the processor time of the JSON that they are made from, so they are not used here.
Invariant: every call ends within CALL_SECONDS, and a watch that is silent for SILENCE_SECONDS ends: bookmarks come more often.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config

CALL_SECONDS = 10.0
SILENCE_SECONDS = 150.0
WATCH_SECONDS = 300
"""Seconds after which the server ends a watch, so that watches spread over its replicas again."""
PAGE_SIZE = 500
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
_JSON = "application/json"
_GONE = 410

Object = dict[str, Any]
"""An object of the cluster as JSON."""


class ClusterError(Exception):
    """A call failed. `status` is that of the answer; 0 if there was none. The text is for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether a later try may succeed: the cluster does not answer, is overloaded, or does not let this process in (yet)."""
        return self.status in (0, 401, 403, 408, 429) or self.status >= 500

    @property
    def is_conflict(self) -> bool:
        """Whether the object exists already, or has changed since it was read."""
        return self.status == 409

    @property
    def is_gone(self) -> bool:
        """Whether the version that a watch should continue at is too old: the list must be read again."""
        return self.status == _GONE


class NoClusterError(Exception):
    """No cluster is configured. The text names the remedy."""


async def configuration() -> client.Configuration:
    """Return how to reach the cluster: by KUBECONFIG, or as a pod of it. Raises NoClusterError."""
    found = client.Configuration()
    # Each watch and each reader of a log holds a connection: with a limit, they would keep the leader from renewing its lease.
    found.connection_pool_maxsize = 0
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
        else:
            place = os.environ.get("KUBECONFIG", config.KUBE_CONFIG_DEFAULT_LOCATION)
            await config.load_kube_config(config_file=place, client_configuration=found)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise NoClusterError(f"no cluster is configured: {error}; set KUBECONFIG") from error
    return found


class KubernetesApi:
    """Calls of one cluster. Connects with the first call."""

    def __init__(self, manager: str) -> None:
        """`manager` names the writer in the managed fields of objects."""
        self._manager = manager
        self._client: client.ApiClient | None = None
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

    async def get(self, path: str) -> Object | None:
        """Return an object; None if there is none."""
        try:
            return await self._call("GET", path)
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def all(self, path: str, selector: str = "") -> tuple[list[Object], str]:
        """Return all objects of a path, read in pages, and the version of the list."""
        found: list[Object] = []
        query = {"limit": str(PAGE_SIZE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self._call("GET", path, query)
            found += page.get("items") or []
            if not (token := page["metadata"].get("continue")):
                return found, page["metadata"]["resourceVersion"]
            query["continue"] = token

    async def create(self, path: str, manifest: Object) -> Object:
        """Create an object. Unknown fields are refused."""
        query = {"fieldManager": self._manager, "fieldValidation": "Strict"}
        return await self._call("POST", path, query, manifest)

    async def apply(self, path: str, manifest: Object, manager: str = "") -> Object:
        """Make the object have the fields of the manifest (server-side apply), whoever set them before.

        What this manager set before and the manifest lacks is removed. `manager`: another one than that of the other calls.
        """
        query = {"fieldManager": manager or self._manager, "force": "true", "fieldValidation": "Strict"}
        return await self._call("PATCH", path, query, manifest, APPLY)

    async def merge(self, path: str, patch: Object) -> Object:
        """Change the fields of a patch. With metadata.resourceVersion in it, only if the object has not changed since: else a conflict."""
        return await self._call("PATCH", path, {"fieldManager": self._manager}, patch, MERGE)

    async def delete(self, path: str, *, uid: str, foreground: bool = False) -> None:
        """Delete an object with this uid. Harmless if it has gone; a conflict if it is another."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground" if foreground else "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._call("DELETE", path, {}, options)
        except ClusterError as error:
            if error.status != 404:
                raise

    async def watch(self, path: str, version: str, selector: str = "") -> AsyncIterator[tuple[str, Object]]:
        """Yield type and object of every change after a version, until the server ends the watch. ClusterError if it fails."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
            **({"labelSelector": selector} if selector else {}),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_SECONDS, sock_read=SILENCE_SECONDS)
        response = await self._request("GET", path, query, None, _JSON, timeout)
        try:
            # A line may be longer than the buffer of the stream's own reader of lines.
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ClusterError(
                            event["object"].get("code", 0), event["object"].get("message", "the watch failed")
                        )
                    yield event["type"], event["object"]
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise ClusterError(0, f"the watch of {path} broke: {error or type(error).__name__}") from error
        finally:
            response.close()

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[list[str]]:
        """Yield the lines of a text that grows, such as a log, as they come."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_SECONDS)
        response = await self._request("GET", path, query, None, _JSON, timeout)
        try:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if lines:
                    yield [line.decode(errors="replace") for line in lines]
            if rest:
                yield [rest.decode(errors="replace")]
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise ClusterError(0, f"{path} broke off: {error or type(error).__name__}") from error
        finally:
            response.close()

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        kind: str = _JSON,
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        response = await self._request(method, path, query or {}, body, kind, timeout)
        try:
            answer: Object = json.loads(await response.read())
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ClusterError(0, f"the cluster does not answer: {error or type(error).__name__}") from error
        finally:
            response.release()
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None,
        kind: str,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> aiohttp.ClientResponse:
        """Send a request; return the answer, whose body was not read. Raises ClusterError for every other answer than success."""
        connected = await self._connected()
        headers = {"Accept": _JSON, "Content-Type": kind}
        pairs: list[tuple[str, str]] = list(query.items())
        await connected.update_params_for_auth(headers, pairs, ["BearerToken"], path, method, body)
        url = f"{connected.configuration.host}{path}?{urlencode(pairs)}"
        try:
            answer = await connected.rest_client.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise ClusterError(0, f"the cluster does not answer: {error or type(error).__name__}") from error
        response: aiohttp.ClientResponse = answer.response
        if response.status >= 300:
            raise await self._refusal(response)
        return response

    async def _refusal(self, response: aiohttp.ClientResponse) -> ClusterError:
        """Return what an answer means. After 401 the next call connects anew: a token of KUBECONFIG may have expired."""
        words = response.reason or ""
        with suppress(OSError, aiohttp.ClientError, TimeoutError, ValueError, AttributeError):
            words = str(json.loads(await response.read()).get("message") or words)[:1000]
        response.release()
        if response.status == 401:
            async with self._connecting:
                await self.close()
        return ClusterError(response.status, words)

    async def _connected(self) -> client.ApiClient:
        async with self._connecting:
            if self._client is None:
                self._client = client.ApiClient(await configuration())
            return self._client
