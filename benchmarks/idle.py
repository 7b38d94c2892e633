"""Measures the cost of an idle mesh, and the duration of a second start."""

from __future__ import annotations

import time

from benchmarks import processes
from tests.mesh.running import RunningMesh
from tests.processes import mesh_processes


def measure(mesh: RunningMesh, *, seconds: float) -> str:
    """Measure memory (PSS) and CPU of each process of an idle mesh, then the time from `llamesh up` to health and to an answer."""
    found = mesh.processes()
    everything = {process.pid: process for process in [*mesh_processes(mesh.home), *found.values()]}
    names = {process.pid: name for name, process in found.items()}
    before = {pid: processes.cpu_seconds([pid]) for pid in everything}
    time.sleep(seconds)
    lines = ["### The idle mesh, one sleeping server declared", "", "| process | memory MB | CPU % |", "|---|---|---|"]
    total_memory, total_cpu = 0.0, 0.0
    for pid in everything:
        memory = processes.memory_bytes([pid]) / 1e6
        share = (processes.cpu_seconds([pid]) - before[pid]) / seconds * 100
        total_memory, total_cpu = total_memory + memory, total_cpu + share
        lines.append(f"| {names.get(pid, 'other')} | {memory:.0f} | {share:.1f} |")
    lines.append(f"| **all** | **{total_memory:.0f}** | **{total_cpu:.1f}** |")
    return "\n".join([*lines, ""])


def second_start(mesh: RunningMesh, model: str) -> str:
    """Restart the mesh; return the times from the command to health, and to the first answer of a sleeping model."""
    assert mesh.process is not None
    mesh.process.terminate()
    mesh.process.wait(30)
    started = time.perf_counter()
    mesh.start()
    healthy = time.perf_counter() - started
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
    answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body)
    answered = time.perf_counter() - started
    return f"### Second start\n\nHealthy after {healthy:.1f} s, first answer (status {answer.status_code}) after {answered:.1f} s.\n"
