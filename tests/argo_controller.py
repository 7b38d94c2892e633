"""A STAND-IN for Argo's workflow controller: runs the pods of a workflow as processes, and writes their nodes as Argo 4.0 does.

It follows what the manifest says: the order of the tasks, their commands and environment, the Secret, the mounted volumes, the outputs and
the retries (without their pauses).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from tests.argo_cluster import ArgoCluster
from tests.mesh.running import ROOT


class ArgoController:
    """Runs the workflow that was created last in a folder. `secret` holds the data of the Secret that pods may read."""

    def __init__(self, cluster: ArgoCluster, folder: Path, secret: dict[str, str]) -> None:
        self._cluster = cluster
        self._folder = folder
        self._secret = secret
        self.pods: list[str] = []
        """The tasks whose pods were started, one entry for each try."""

    async def run(self) -> None:
        """Run all tasks, those of different types side by side."""
        workflow = self._cluster.workflow
        templates = {each["name"]: each for each in workflow["spec"]["templates"]}
        tasks = {task["name"]: task for task in templates[workflow["spec"]["entrypoint"]]["dag"]["tasks"]}
        self._write_files(workflow["metadata"]["name"])
        limit = asyncio.Semaphore(workflow["spec"]["parallelism"])
        done: dict[str, asyncio.Task[bool]] = {}

        async def run_task(task: dict[str, Any]) -> bool:
            if (before := task.get("depends")) and not await done[before]:
                self._cluster.set_task(task["name"], "Omitted", tries=0)
                return False
            async with limit:
                return await self._run_pods(task["name"], templates[task["template"]])

        for name, task in tasks.items():
            done[name] = asyncio.create_task(run_task(task))
        succeeded = all(await asyncio.gather(*done.values()))
        self._cluster.set_phase("Succeeded" if succeeded else "Failed")

    def _write_files(self, name: str) -> None:
        for each in ("work", "job", "tmp"):
            (self._folder / each).mkdir(parents=True, exist_ok=True)
        for file, text in self._cluster.config_maps[name]["data"].items():
            (self._folder / "job" / file).write_text(text, encoding="utf-8")

    async def _run_pods(self, name: str, template: dict[str, Any]) -> bool:
        tries = 0
        while True:
            tries += 1
            self._cluster.set_task(name, "Running", tries=tries)
            self.pods.append(name)
            code, outcome = await self._run_pod(name, template["container"])
            again = code not in (0, 1) and tries <= template["retryStrategy"]["limit"]
            phase = "Running" if again else "Succeeded" if code == 0 else "Failed"
            self._cluster.set_task(name, phase, pod="Succeeded" if code == 0 else "Failed", tries=tries)
            self._cluster.set_output(name, tries, outcome)
            if not again:
                return code == 0

    async def _run_pod(self, name: str, container: dict[str, Any]) -> tuple[int, str]:
        outcome = self._folder / "tmp" / f"{name}.json"
        places = {each["mountPath"]: str(self._folder / each["name"]) for each in container["volumeMounts"]}
        (written,) = (each for each in container["args"] if each.startswith("/tmp/"))
        places[written] = str(outcome)
        assert container["command"][0] == "python"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *container["command"][1:],
            *(places.get(each, each) for each in container["args"]),
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                **{each["name"]: places.get(self._value(each), self._value(each)) for each in container["env"]},
            },
            cwd=self._folder,
        )
        code = await process.wait()
        return code, outcome.read_text(encoding="utf-8") if outcome.exists() else ""

    def _value(self, variable: dict[str, Any]) -> str:
        if "value" in variable:
            return str(variable["value"])
        return self._secret.get(variable["valueFrom"]["secretKeyRef"]["key"], "")
