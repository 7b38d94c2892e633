"""Lists the devices that llama.cpp computes on, as llama.cpp describes them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from engine.launch import Program, scrubbed

SECONDS = 10.0
"""Seconds that a llama-server may take: it loads the drivers of GPUs for the list."""

_LINE = re.compile(r"^\s+(\S+): (.+?)(?: \((\d+) MiB, (\d+) MiB free\))?$", re.MULTILINE)


def of(program: Program | None, environment: Mapping[str, str]) -> list[str]:
    """Return one text for each device; empty if llama.cpp lists none. Raises EngineError if the embedded library is missing."""
    if program is None:
        from engine.embedded import library

        described = library().get_device_info()
        return [
            _words(item["name"], item["description"], item["memory_total"], item["memory_free"]) for item in described
        ]
    try:
        answer = subprocess.run(
            [program.path, "--list-devices"],
            env=scrubbed(environment),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed(answer.stdout)


def listed(text: str) -> list[str]:
    """Parse the output of `llama-server --list-devices`."""
    _, _, lines = text.partition("Available devices:")
    return [
        _words(name, description, int(total or 0) << 20, int(free or 0) << 20)
        for name, description, total, free in _LINE.findall(lines)
    ]


def _words(name: str, description: str, total: int, free: int) -> str:
    memory = f" ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free)" if total else ""
    return f"{name} {description}{memory}"
