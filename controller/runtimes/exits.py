"""Explains the end of an engine of this machine. No I/O."""

from __future__ import annotations

from controller.runtimes import EngineExit, Liveness
from controller.runtimes.liveness import Assessment
from llamesh.processes import exit_words


def explain_exit(
    code: int | None, requested: bool, report: tuple[str, str] | None, assessment: Assessment
) -> EngineExit:
    """Return the exit of an engine: from its own report, else from its liveness, else from its exit code (None: unknown)."""
    if report is not None:
        reason, message = report
        return EngineExit("".join(word.capitalize() for word in reason.split("_")), message, requested)
    if assessment.liveness is Liveness.STUCK:
        return EngineExit("InferenceStuck", f"the engine was killed: {assessment.message}", requested)
    if code is not None and code < 0:
        return EngineExit("EngineKilled", f"the engine {exit_words(code)}", requested)
    if code:
        return EngineExit("EngineExited", f"the engine {exit_words(code)}", requested)
    return EngineExit("EngineExited", "the engine ended" if requested else "the engine ended by itself", requested)
