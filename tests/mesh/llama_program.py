"""FAKE: llama.cpp as a program of another make. It listens as llama-server does and knows nothing of handing a socket over.

With a gate it loads no model before the gate's file exists, so no engine that runs it becomes ready before that.
"""

from __future__ import annotations

import sys
from pathlib import Path

_PROGRAM = """#!{python} -B
import os
import select
import sys
if "--version" in sys.argv:
    print("version: 0 (build 11434, commit fake)")
    sys.exit()
while not os.path.exists({gate!r}):
    if select.select([sys.stdin], [], [], 0.02)[0]:
        sys.exit()
import xllamacpp
told = dict(zip(sys.argv[1:], sys.argv[2:]))
params = xllamacpp.CommonParams()
params.model.path = told["--model"]
params.hostnames = [told["--host"]]
params.endpoint_metrics = True
params.ui = False
server = xllamacpp.Server(params)
sys.stdin.buffer.read()
"""


def write_program(path: Path, gate: Path | None = None) -> Path:
    """Write the program; without a gate it loads its model at once."""
    path.write_text(_PROGRAM.format(python=sys.executable, gate=str(gate or path)))
    path.chmod(0o700)
    return path
