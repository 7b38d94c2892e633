"""The nodes of the cluster, as far as the estimate of memory needs them."""

from __future__ import annotations

import re

from llamesh.background import BackgroundTask, Report
from llamesh.kit.kubernetes_api import KubernetesApi, Object
from llamesh.kit.machine_memory import MachineMemory

POLL_SECONDS = 30.0
_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}


class Nodes:
    """The memory of the largest node that takes pods, read again every POLL_SECONDS."""

    def __init__(self, api: KubernetesApi, report: Report) -> None:
        self._api = api
        self._largest = 0
        self._task = BackgroundTask("read the nodes of the cluster", self._read, report, every=POLL_SECONDS)

    def start(self) -> None:
        """Start to read."""
        self._task.start()

    async def close(self) -> None:
        """Stop reading."""
        await self._task.close()

    def memory(self) -> MachineMemory:
        """Return the memory of the largest node. What pods have taken of it is not known here: the scheduler decides."""
        return MachineMemory(self._largest, self._largest)

    async def _read(self) -> None:
        found, _ = await self._api.all("/api/v1/nodes")
        self._largest = max((allocatable(node) for node in found), default=0)


def allocatable(node: Object) -> int:
    """Return the bytes of memory of a node that pods may use; 0 if it takes no pods."""
    if node.get("spec", {}).get("unschedulable"):
        return 0
    return quantity(node.get("status", {}).get("allocatable", {}).get("memory", "0"))


def quantity(words: str) -> int:
    """Return a number of bytes that is written as Kubernetes writes quantities; 0 if it is not."""
    found = re.fullmatch(r"(\d+)([kMGT]|[KMGT]i)?", words)
    return int(found[1]) * _UNITS[found[2] or ""] if found else 0
