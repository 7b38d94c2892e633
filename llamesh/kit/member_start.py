"""Starts the process of a member: imports it without looking for garbage, then runs it.

Importing a member makes a hundred thousand objects that stay until its end. Python would search them for garbage some dozens of times
while they are made, and again in every full collection later: a fifth of the time of a start.
"""

from __future__ import annotations

import gc
from importlib import import_module


def start(name: str, module: str) -> None:
    """Run the coroutine function `run` of a module as the member `name`, to its end. See `llamesh.kit.serving.run_member`."""
    gc.disable()
    from llamesh.kit.serving import run_member

    run = import_module(module).run
    gc.freeze()
    gc.enable()
    run_member(name, run)
