"""A STAND-IN for a Kubernetes cluster: objects of any kind over HTTP as an API server keeps them, and pods of Deployments.

It knows versions, generations, uids, label selectors, watches and their end (410), merge patches, server-side apply by field managers
(lists are replaced whole, conditions are merged by their type), status subresources, deletion with owners, pods that terminate or have
failed. It knows no validation and no rights. What the Deployment controller would do, `settle` does when the test says so; what a kubelet
would do, the test does with `set_pod`.
tests/cluster runs the same parts against the real programs.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

Object = dict[str, Any]
TOKEN = "of-the-controller"
ROUTED = "llamesh.dev/routed"
_KINDS = ("pods", "modelserves", "deployments", "leases", "services", "nodes", "secrets", "poddisruptionbudgets")
_VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


class StandIn:
    """One cluster. `fault`: status and message of the answer to every call, while it is set."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        """Objects by their paths."""
        self.fault: tuple[int, str] | None = None
        self.refused: dict[str, int] = {}
        """Parts of paths whose writes are answered with a status."""
        self.address = ""
        self.calls: list[tuple[str, str]] = []
        self._applied: dict[tuple[str, str], Object] = {}
        self._version = 0
        self._events: list[tuple[int, str, str, Object]] = []
        self._oldest = 0
        self._news = asyncio.Condition()
        self._cut = 0

    def write_kubeconfig(self, path: Path) -> Path:
        """Write the file that leads clients here."""
        named = {"clusters": {"cluster": {"server": self.address}}, "users": {"user": {"token": TOKEN}}}
        config = {key: [{"name": "here", **value}] for key, value in named.items()}
        config["contexts"] = [{"name": "here", "context": {"cluster": "here", "user": "here"}}]
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "here", **config}))
        return path

    def of(self, kind: str) -> list[Object]:
        """Return the objects of a plural kind, the oldest first."""
        return [item for path, item in self.objects.items() if f"/{kind}/" in path]

    def put(self, path: str, item: Object) -> Object:
        """Create or replace an object, as somebody else would."""
        before = self.objects.get(path)
        item = copy.deepcopy(item)
        metadata = item["metadata"]
        metadata.setdefault("name", path.rsplit("/", 1)[1])
        if "/namespaces/" in path:
            metadata.setdefault("namespace", path.split("/namespaces/")[1].split("/")[0])
        if before is None:
            metadata["uid"] = str(uuid.uuid4())
            metadata["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata["generation"] = 1
        else:
            for name in ("uid", "creationTimestamp"):
                metadata[name] = before["metadata"][name]
            changed = before.get("spec") != item.get("spec")
            metadata["generation"] = before["metadata"]["generation"] + changed
            if _without_version(before) == _without_version(item):
                return before
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        self.objects[path] = item
        self._tell("MODIFIED" if before else "ADDED", path, item)
        return item

    def remove(self, path: str) -> None:
        """Remove an object, and everything that it owns."""
        item = self.objects.pop(path)
        self._version += 1
        item = copy.deepcopy(item)
        item["metadata"]["resourceVersion"] = str(self._version)
        self._tell("DELETED", path, item)
        for other, owned in list(self.objects.items()):
            owners = {each["uid"] for each in owned["metadata"].get("ownerReferences", [])}
            if item["metadata"]["uid"] in owners:
                self.remove(other)

    def cut_watches(self, *, forget: bool = False) -> None:
        """End every watch. With `forget`, the versions so far cannot be continued at."""
        self._cut += 1
        if forget:
            self._oldest = self._version
        self._wake()

    def settle(self) -> None:
        """Do what the Deployment controller would: one pod more than wanted while pods are replaced, none fewer that gets requests."""
        for path, deployment in list(self.objects.items()):
            if "/deployments/" in path:
                self._settle(path, deployment)

    def set_pod(self, name: str, *, ready: bool = True, ip: str = "127.0.0.1", **status: Any) -> None:
        """Let the containers of a pod be ready or not, with further fields of its status."""
        path = next(path for path in self.objects if path.endswith(f"/pods/{name}"))
        pod = copy.deepcopy(self.objects[path])
        kept = [each for each in pod["status"].get("conditions", []) if each["type"] != "ContainersReady"]
        conditions = [*kept, {"type": "ContainersReady", "status": str(ready)}]
        pod["status"] = {**pod["status"], "phase": "Running", "podIP": ip, "conditions": conditions, **status}
        self.put(path, pod)

    def _settle(self, path: str, deployment: Object) -> None:
        template, namespace = deployment["spec"]["template"], deployment["metadata"]["namespace"]
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
        owned = {
            name: item
            for name, item in self.objects.items()
            if "/pods/" in name
            and f"/{namespace}/" in name
            and deployment["metadata"]["uid"] in {each["uid"] for each in item["metadata"].get("ownerReferences", [])}
        }
        for name, item in list(owned.items()):
            # A pod that has ended stays for people to look at; one that is deleted takes a while to go.
            if item["status"]["phase"] == "Failed" or "deletionTimestamp" in item["metadata"]:
                del owned[name]
                if "deletionTimestamp" in item["metadata"]:
                    self.remove(name)
        fresh = [name for name, item in owned.items() if item["metadata"]["labels"]["pod-template-hash"] == digest]
        old = [name for name in owned if name not in fresh]
        wanted = deployment["spec"]["replicas"]
        serving = [name for name in fresh if _is_ready(owned[name])]
        for name in fresh[wanted:]:
            self._terminate(name)
        while len(fresh) < wanted and len(fresh) + len(old) < wanted + 1:
            self._version += 1
            name = f"/api/v1/namespaces/{namespace}/pods/{deployment['metadata']['name']}-{digest}-{self._version}"
            metadata = copy.deepcopy(template["metadata"])
            metadata["labels"]["pod-template-hash"] = digest
            replica_set = f"{deployment['metadata']['name']}-{digest}"
            metadata["ownerReferences"] = [
                {"uid": deployment["metadata"]["uid"], "kind": "ReplicaSet", "name": replica_set, "controller": True}
            ]
            self.put(name, {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})
            fresh.append(name)
        for name in old[: max(0, len(old) + len(serving) - wanted)]:
            self._terminate(name)

    def _terminate(self, path: str) -> None:
        """Begin to delete a pod; the next `settle` ends that."""
        pod = self.objects[path]
        self.put(path, {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})

    def _tell(self, kind: str, path: str, item: Object) -> None:
        self._events.append((self._version, kind, path, item))
        self._wake()

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._news:
                self._news.notify_all()

        self._waking = asyncio.ensure_future(wake())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one call."""
        path, query = request.path, request.query
        self.calls.append((request.method, path))
        if self.fault:
            return _refused(*self.fault)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _refused(401, "Unauthorized")
        if request.method == "GET" and query.get("watch"):
            return await self._watch(request)
        body = await request.json() if request.can_read_body else {}
        if request.method == "GET":
            return self._read(path, query.get("labelSelector", ""))
        for part, status in self.refused.items():
            if part in path:
                verb, kind = _VERBS[request.method], "secrets" if "/secrets" in path else "objects"
                return _refused(status, f'{path} is forbidden: User "test" cannot {verb} resource "{kind}"')
        if request.method == "POST":
            place = f"{path}/{body['metadata']['name']}"
            if place in self.objects:
                return _refused(409, f"{place} already exists")
            return web.json_response(self.put(place, body), status=201)
        if request.method == "DELETE":
            return self._delete(path, body)
        if request.content_type == "application/apply-patch+yaml":
            return self._apply(path, body, query["fieldManager"])
        assert request.content_type == "application/merge-patch+json"
        return self._merge(path, body)

    def _read(self, path: str, selector: str) -> web.Response:
        if path in self.objects:
            return web.json_response(self.objects[path])
        if path.rsplit("/", 2)[-2] in _KINDS:
            return _refused(404, "not found")
        found = [item for name, item in self.objects.items() if _is_in(name, path) and _matches(item, selector)]
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": found})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        path, selector = request.path, request.query.get("labelSelector", "")
        seen, cut = int(request.query["resourceVersion"]), self._cut
        response = web.StreamResponse()
        await response.prepare(request)

        async def send(kind: str, item: Object) -> None:
            await response.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")

        if seen < self._oldest:
            await send("ERROR", {"code": 410, "message": "too old resource version"})
            return response
        while self._cut == cut and not self.fault:
            for version, kind, place, item in [event for event in self._events if event[0] > seen]:
                seen = version
                if _is_in(place, path) and _matches(item, selector):
                    await send(kind, item)
            async with self._news:
                if self._cut == cut and seen >= max((event[0] for event in self._events), default=0):
                    await self._news.wait()
        return response

    def _delete(self, path: str, options: Object) -> web.Response:
        found = self.objects.get(path)
        if found is None:
            return _refused(404, "not found")
        conditions = options.get("preconditions", {})
        if conditions.get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
            return _refused(409, "the uid differs")
        if options.get("propagationPolicy") == "Foreground" and any(
            found["metadata"]["uid"] in {each["uid"] for each in item["metadata"].get("ownerReferences", [])}
            for item in self.objects.values()
        ):
            self.put(path, {**found, "metadata": {**found["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})
        else:
            self.remove(path)
        return web.json_response({"status": "Success"})

    def _apply(self, path: str, body: Object, manager: str) -> web.Response:
        place, _, _ = path.partition("/status")
        found = self.objects.get(place)
        if found is None and path != place:
            return _refused(404, "not found")
        if found and body["metadata"].get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
            return _refused(409, "the uid differs")
        before = self._applied.get((path, manager), {})
        merged = _applied(found or {"metadata": {}}, before, body)
        self._applied[path, manager] = body
        return web.json_response(self.put(place, merged))

    def _merge(self, path: str, body: Object) -> web.Response:
        found = self.objects.get(path)
        if found is None:
            return _refused(404, "not found")
        metadata = body.get("metadata", {})
        for name in ("uid", "resourceVersion"):
            if metadata.get(name, found["metadata"][name]) != found["metadata"][name]:
                return _refused(409, f"the {name} differs")
        return web.json_response(self.put(path, _patched(found, body)))


def _without_version(item: Object) -> Object:
    metadata = {key: value for key, value in item["metadata"].items() if key not in ("resourceVersion", "generation")}
    return {**item, "metadata": metadata}


def _is_ready(pod: Object) -> bool:
    states = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
    return states.get("ContainersReady") == "True" and states.get(ROUTED) == "True"


def _is_in(place: str, path: str) -> bool:
    return place.rsplit("/", 1)[0] == path


def _matches(item: Object, selector: str) -> bool:
    labels = item["metadata"].get("labels", {})
    return all(
        labels.get(key) == value for key, _, value in (part.partition("=") for part in selector.split(",") if part)
    )


def _refused(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code)


def _patched(value: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    made = dict(value) if isinstance(value, dict) else {}
    for key, each in patch.items():
        if each is None:
            made.pop(key, None)
        else:
            made[key] = _patched(made.get(key), each)
    return made


def _applied(value: Any, before: Any, wanted: Any) -> Any:
    """Merge what a manager applies; remove what it applied before and does not any more."""
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], dict) and "type" in wanted[0]:
        gone = {each["type"] for each in before or []} - {each["type"] for each in wanted}
        made = {each["type"]: each for each in value or [] if each["type"] not in gone}
        return list((made | {each["type"]: each for each in wanted}).values())
    if not isinstance(wanted, dict):
        return wanted
    made = dict(value) if isinstance(value, dict) else {}
    earlier = before if isinstance(before, dict) else {}
    for key in earlier.keys() - wanted.keys():
        made.pop(key, None)
    for key, each in wanted.items():
        made[key] = _applied(made.get(key), earlier.get(key), each)
    return made


@asynccontextmanager
async def stand_in() -> AsyncIterator[StandIn]:
    """Start a cluster on a free port."""
    cluster = StandIn()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", cluster.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    cluster.address = f"http://{host}:{port}"
    try:
        yield cluster
    finally:
        cluster.cut_watches()
        await runner.cleanup()
