"""The nodes of the cluster, as far as the estimate of memory needs them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llamesh.background import BackgroundTask, Report
from llamesh.kit.kubernetes_api import KubernetesApi, Object
from llamesh.kit.machine_memory import MachineMemory

POLL_SECONDS = 30.0
_UNITS = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
}


class Nodes:
    """The memory of the nodes that take pods, read again every POLL_SECONDS."""

    def __init__(self, api: KubernetesApi, report: Report) -> None:
        self._api = api
        self._memory: dict[str, int] = {}
        self._task = BackgroundTask("read the nodes of the cluster", self._read, report, every=POLL_SECONDS)

    def start(self) -> None:
        """Start to read."""
        self._task.start()

    async def close(self) -> None:
        """Stop reading."""
        await self._task.close()

    def memory(self) -> MachineMemory:
        """Return the memory of the largest node. What pods have taken of it is not known here: the scheduler decides."""
        largest = max(self._memory.values(), default=0)
        return MachineMemory(largest, largest)

    def each(self) -> Mapping[str, int]:
        """Return the bytes of memory for pods of each node by its name; none if they are not known yet."""
        return self._memory

    async def _read(self) -> None:
        found, _ = await self._api.all("/api/v1/nodes")
        sizes = {node["metadata"]["name"]: allocatable(node) for node in found}
        self._memory = {name: size for name, size in sizes.items() if size}


def allocatable(node: Object) -> int:
    """Return the bytes of memory of a node that pods may use; 0 if it takes no pods."""
    if node.get("spec", {}).get("unschedulable"):
        return 0
    return quantity(node.get("status", {}).get("allocatable", {}).get("memory", "0"))


def quantity(words: str) -> int:
    """Return a number of bytes that is written as Kubernetes writes quantities; 0 if it is not."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mkMGTP]|[KMGTP]i)?", words)
    return int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
