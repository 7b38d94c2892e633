"""`python -m engine SPEC.json`: one engine, from its start to its end.

This process checks the spec, starts llama.cpp as its only child, and polls /health until llama.cpp is ready. Then it waits for one of two
events: llama.cpp ends (the failure is explained and published), or a signal or the end of the lifeline requests a stop. To stop, it renames
the socket so that no new client connects, waits until llama.cpp is idle or the grace period ends, and terminates llama.cpp.

SIGINT requests a stop. Without a supervisor SIGTERM does too, and a second signal stops at once. With a supervisor SIGTERM is ignored
(llamesh/shutdown.py), and only the end of the lifeline or SIGKILL stops at once. `python -m engine --check` prints which llama.cpp would
be used. Exit codes: 0, or a value of `engine.failure.FailureReason`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import devices
from engine.child import Child
from engine.cores import threads
from engine.endpoint import Endpoint
from engine.failure import REPORT_PREFIX, EngineError, FailureReason, explain
from engine.launch import Program, arguments, computing, find_program, scrubbed
from engine.listener import Listener
from engine.model_files import held_models
from engine.readiness import until_idle, until_ready
from engine.spec import EngineSpec
from engine.state import ReportedPhase, StateFile
from llamesh.cores import cores
from llamesh.names import LIFELINE
from llamesh.shutdown import ignore_sigterm, is_supervised, stop_signals

_UNUSED_DRAFT = (
    "--model-draft: llama.cpp does not use this draft model, because its vocabulary differs from the model's; "
    "choose one of the same family"
)


class StopRequest:
    """A request to stop: the first one waits for running requests, a repeated one stops at once."""

    def __init__(self, *, repeated_is_forced: bool) -> None:
        self._repeated_is_forced = repeated_is_forced
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()

    def ask(self) -> None:
        """Handle a signal."""
        if self.requested.is_set() and self._repeated_is_forced:
            self.forced.set()
        self.requested.set()

    def force(self) -> None:
        """Stop at once, because the mesh has ended and no client waits for answers."""
        self.requested.set()
        self.forced.set()


async def run(spec: EngineSpec, spec_file: Path, environment: Mapping[str, str]) -> int:
    """Run one engine to its end and return the exit code."""
    stop = StopRequest(repeated_is_forced=not is_supervised(environment))
    state = StateFile(spec.state_file, "", time.time)
    try:
        _watch_stop_requests(stop, environment)
        with held_models(spec):
            return await _run(spec, spec_file, environment, stop, state)
    except EngineError as failure:
        return _fail(state, failure, ())


async def _run(
    spec: EngineSpec, spec_file: Path, environment: Mapping[str, str], stop: StopRequest, state: StateFile
) -> int:
    program, state.engine = find_program(environment)
    command = _command(program, spec, spec_file)
    endpoint = Endpoint(spec.listen, spec.api_key)
    endpoint.claim_path()
    listener = Listener(spec.listen.socket, spec.hand_over, _report)
    state.publish(ReportedPhase.STARTING)
    passed = scrubbed(environment, spec.api_key if program else "") | computing(environment, program)
    child = await Child.start(command, passed)
    _report(f"starting {spec.alias} with {state.engine}")
    ready = asyncio.Event()
    obtaining = asyncio.create_task(listener.obtain(child, ready, embedded=program is None))
    try:
        listener.open()
        return await _live(spec, endpoint, child, stop, state, ready)
    finally:
        child.kill()
        obtaining.cancel()
        await listener.close()
        endpoint.release_path()


async def _live(
    spec: EngineSpec,
    endpoint: Endpoint,
    child: Child,
    stop: StopRequest,
    state: StateFile,
    ready: asyncio.Event,
) -> int:
    started = time.monotonic()
    ended = asyncio.create_task(child.wait())
    polling = asyncio.create_task(until_ready(endpoint))
    stop_requested = asyncio.create_task(stop.requested.wait())
    await _first(ended, polling, stop_requested)
    if polling.done() and spec.files and not await endpoint.speculates():
        child.kill()
        await ended
        return _fail(state, EngineError(FailureReason.BAD_SPEC, _UNUSED_DRAFT), child.log)
    if polling.done() and not ended.done():
        state.publish(ReportedPhase.READY)
        ready.set()
        _report(f"ready on {spec.listen} after {time.monotonic() - started:.2f} s")
        await _first(ended, stop_requested)
    polling.cancel()
    if ended.done():
        return _fail(state, explain(ended.result(), child.log), child.log)
    # Clients may use llama.cpp before the readiness poll sees that it is ready, and the poll fails if the socket's path was removed.
    if ready.is_set() or await endpoint.serves(child.pid):
        await _drain(spec, endpoint, child, stop, state)
    else:
        child.kill()
    await child.stop()
    state.publish(ReportedPhase.STOPPED)
    _report("stopped")
    return 0


async def _drain(spec: EngineSpec, endpoint: Endpoint, child: Child, stop: StopRequest, state: StateFile) -> None:
    state.publish(ReportedPhase.DRAINING)
    hidden = endpoint.stop_accepting()
    idle = asyncio.create_task(until_idle(hidden, endpoint, child.pid, spec.grace_seconds))
    await _first(idle, asyncio.create_task(stop.forced.wait()), asyncio.create_task(child.wait()))
    if stop.forced.is_set():
        child.kill()
    elif idle.done() and not idle.result():
        _report(f"requests were still running after {spec.grace_seconds:g} s; they are cut off")
    idle.cancel()
    if hidden is not endpoint and hidden.address.socket is not None:
        hidden.address.socket.unlink(missing_ok=True)


def _command(program: Program | None, spec: EngineSpec, spec_file: Path) -> list[str]:
    if program is None:
        # -B: the umask is for the socket; with it, compiled modules would be unreadable for other users.
        return [sys.executable, "-B", "-m", "engine.embedded", str(spec_file)]
    # Imported late: the embedded engine's supervisor does not need protobuf, which would double its memory.
    from engine.parameters import launch_settings

    return arguments(program, spec, launch_settings(spec, threads(cores(), yields=False)))


def _watch_stop_requests(stop: StopRequest, environment: Mapping[str, str]) -> None:
    loop = asyncio.get_running_loop()
    for number in stop_signals(environment):
        loop.add_signal_handler(number, stop.ask)
    lifeline = environment.get(LIFELINE, "")
    if lifeline:
        try:
            descriptor = int(lifeline)
            os.set_inheritable(descriptor, False)
        except (ValueError, OSError) as error:
            raise EngineError(FailureReason.BAD_SPEC, f"{LIFELINE}={lifeline} is not an open descriptor") from error

        def on_lifeline() -> None:
            if not os.read(descriptor, 1):
                loop.remove_reader(descriptor)
                stop.force()

        loop.add_reader(descriptor, on_lifeline)


async def _first(*awaited: asyncio.Task[Any]) -> None:
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)


def _fail(state: StateFile, failure: EngineError, log: Sequence[str]) -> int:
    state.publish(ReportedPhase.FAILED, failure, log)
    _report(f"{failure} ({failure.reason.name})")
    return failure.reason.value


def _report(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{REPORT_PREFIX}{text}\n".encode())


def check(environment: Mapping[str, str]) -> int:
    """Print, as JSON, which llama.cpp would be used, or why none is usable and the remedy."""
    try:
        program, words = find_program(environment)
        found = devices.of(program, environment)
        if program is None:
            from engine.embedded import library

            words = f"{words} (xllamacpp {library().__version__})"
    except EngineError as failure:
        return _answer(failure.reason.value, {"usable": False, "engine": "", "problem": str(failure)})
    return _answer(0, {"usable": True, "engine": words, "problem": "", "devices": found})


def _answer(exit_code: int, document: Mapping[str, object]) -> int:
    sys.stdout.write(json.dumps(document) + "\n")
    return exit_code


def main(arguments_given: list[str]) -> int:
    """Run the command."""
    environment = dict(os.environ)
    if arguments_given == ["--check"]:
        return check(environment)
    if is_supervised(environment):
        ignore_sigterm()
    if len(arguments_given) != 1:
        _report("usage: python -m engine SPEC.json | --check")
        return FailureReason.BAD_SPEC.value
    spec_file = Path(arguments_given[0])
    try:
        spec = EngineSpec.read(spec_file)
    except EngineError as failure:
        _report(f"{failure} ({failure.reason.name})")
        return failure.reason.value
    return asyncio.run(run(spec, spec_file, environment))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
