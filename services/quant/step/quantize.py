"""The step `quantize`: runs the quantiser, reports its progress and translates its last messages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from typing import Any

from llamesh.cores import usable_cores
from llamesh.disk_space import free_bytes
from llamesh.kit.config import Settings
from llamesh.processes import exit_words
from llamesh.sizes import size
from services.quant.step.failure_messages import translate
from services.quant.step.report import StepCrashedError, StepRefusedError, report_progress
from services.quant.workspace import Workspace, finish

_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_NOISE = re.compile(r"^llama_model_loader: - (kv|type)|^\[\s*\d+/")
_REASON = re.compile(r"fail|error|requir|disabled")
_MAX_LINE = 500
_KEPT = frozenset(
    {"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"}
)
_MIN_FREE = 64 << 20
"""If the disk has less free space than this, a failed write counts as a full disk."""


def quantize(workspace: Workspace, of_type: str, settings: Settings) -> dict[str, Any]:
    """Make the variant of a type."""
    spec = workspace.spec()
    target = workspace.variant(of_type)
    unfinished = target.with_suffix(".part")
    options = [
        *(["--allow-requantize"] if spec.allow_requantize else []),
        *(["--pure"] if spec.pure else []),
    ]
    command = [str(workspace.sources[0]), str(unfinished), of_type, str(usable_cores()), *options]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "services.quant.step.quantiser", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(settings),
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=30)
    for line in process.stdout:
        if found := _TENSOR.match(line):
            report_progress(int(found[1]), int(found[2]))
        # The reason may be at the end of a line about a tensor.
        if not _NOISE.match(line) or _REASON.search(line):
            last.append(line[:_MAX_LINE].rstrip())
            sys.stderr.write(f"{last[-1]}\n")
    code = process.wait()
    if code == 0 and unfinished.exists():
        finish(unfinished, target)
        return {"size": target.stat().st_size}
    unfinished.unlink(missing_ok=True)
    left = free_bytes(workspace.folder)
    if left < _MIN_FREE:
        raise StepRefusedError("STORE_UNAVAILABLE", f"the disk of LLAMESH_HOME is full: {size(left)} are free")
    if code < 0:
        raise StepCrashedError(f"the quantiser {exit_words(code)}")
    raise StepRefusedError("QUANTISATION_FAILED", translate(list(last)) or f"the quantiser {exit_words(code)}")


def _environment(settings: Settings) -> dict[str, str]:
    """Return the environment of llama.cpp: no secrets, because llama.cpp parses untrusted files."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    return kept | {"LLAMA_QUANTIZE_BIN": settings.llama_quantize_bin}
