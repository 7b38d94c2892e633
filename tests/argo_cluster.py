"""A STAND-IN for a cluster with Argo Workflows: it keeps workflows and ConfigMaps, and is spoken to over HTTP as an API server is.

What Argo's controller would write into a workflow, the test writes with `set_task`, in the form of Argo 4.0: a node `Retry` per task, whose
children are the pods of its tries.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
CONFIG_MAPS = "/api/v1/namespaces/{namespace}/configmaps"
ENDED = ("Succeeded", "Failed", "Error")


class ArgoCluster:
    """One cluster. `fault`: status and message of the answer to every call, while it is set; `refusal`: why it takes no object."""

    def __init__(self) -> None:
        self.workflows: dict[str, dict[str, Any]] = {}
        self.config_maps: dict[str, dict[str, Any]] = {}
        self.fault: tuple[int, str] | None = None
        self.refusal = ""
        self.address = ""

    @property
    def workflow(self) -> dict[str, Any]:
        """The workflow that was created last."""
        return list(self.workflows.values())[-1]

    def write_kubeconfig(self, path: Path) -> Path:
        """Write the file that leads clients here."""
        named = {"clusters": {"cluster": {"server": self.address}}, "users": {"user": {"token": "of-the-service"}}}
        config = {key: [{"name": "here", **value}] for key, value in named.items()}
        config["contexts"] = [{"name": "here", "context": {"cluster": "here", "user": "here"}}]
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "here", **config}))
        return path

    def tasks(self) -> dict[str, str]:
        """The tasks of the workflow, each with what it depends on."""
        (dag,) = (each["dag"] for each in self.workflow["spec"]["templates"] if "dag" in each)
        return {task["name"]: task.get("depends", "") for task in dag["tasks"]}

    def set_phase(self, phase: str, message: str = "") -> None:
        """Let the workflow have a phase."""
        self.workflow.setdefault("status", {}).update(phase=phase, message=message)

    def set_task(
        self,
        name: str,
        phase: str,
        outcome: dict[str, Any] | None = None,
        *,
        pod: str = "",
        tries: int = 1,
        progress: str = "",
        message: str = "",
    ) -> None:
        """Let a task have a phase. `pod` is the phase of its last pod, if it is another one."""
        nodes = self.workflow.setdefault("status", {"phase": "Running"}).setdefault("nodes", {})
        children = [f"{name}({number})" for number in range(tries)]
        nodes[name] = {"id": name, "type": "Retry", "displayName": name, "phase": phase, "children": children}
        for child in children:
            nodes[child] = {"id": child, "type": "Pod", "displayName": child, "phase": "Failed"}
        last = nodes[children[-1]] if children else nodes[name]
        last["phase"] = pod or phase
        last.update({"message": message} if message else {}, progress=progress or "0/1")
        if outcome is not None:
            self.set_output(name, tries, json.dumps(outcome))

    def set_output(self, name: str, tries: int, outcome: str) -> None:
        """Let the pod of a try have written its outcome, or nothing."""
        pod = self.workflow["status"]["nodes"][f"{name}({tries - 1})" if tries else name]
        pod["outputs"] = {"parameters": [{"name": "outcome", "value": outcome}]}


def _status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.json_response(body, status=code)


def _application(cluster: ArgoCluster) -> web.Application:
    @web.middleware
    async def faulty(request: web.Request, handler: Any) -> web.StreamResponse:
        if cluster.fault:
            return _status(*cluster.fault)
        if request.headers.get("authorization") != "Bearer of-the-service":
            return _status(401, "Unauthorized")
        response: web.StreamResponse = await handler(request)
        return response

    async def create(request: web.Request) -> web.Response:
        kept = cluster.workflows if "workflows" in request.path else cluster.config_maps
        body = await request.json()
        name = body["metadata"]["name"]
        if cluster.refusal:
            return _status(422, cluster.refusal)
        if name in kept:
            return _status(409, f'"{name}" already exists')
        body["metadata"]["uid"] = str(uuid.uuid4())
        kept[name] = body
        return web.json_response(body, status=201)

    async def read(request: web.Request) -> web.Response:
        found = cluster.workflows.get(request.match_info["name"])
        return web.json_response(found) if found else _status(404, "not found")

    async def patch(request: web.Request) -> web.Response:
        assert request.content_type == "application/merge-patch+json"
        found = cluster.workflows.get(request.match_info["name"])
        if found is None:
            return _status(404, "not found")
        found["spec"].update((await request.json())["spec"])
        return web.json_response(found)

    application = web.Application(middlewares=[faulty])
    application.router.add_post(WORKFLOWS, create)
    application.router.add_post(CONFIG_MAPS, create)
    application.router.add_get(f"{WORKFLOWS}/{{name}}", read)
    application.router.add_patch(f"{WORKFLOWS}/{{name}}", patch)
    return application


@asynccontextmanager
async def argo_cluster() -> AsyncIterator[ArgoCluster]:
    """Start a cluster on a free port."""
    cluster = ArgoCluster()
    runner = web.AppRunner(_application(cluster))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    cluster.address = f"http://{host}:{port}"
    try:
        yield cluster
    finally:
        await runner.cleanup()
