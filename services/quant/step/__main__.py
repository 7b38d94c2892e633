"""Runs one step of a job: `python -m services.quant.step STEP JOB [TYPE]`.

Exit codes: 0 done, 1 refused for good, 70 crashed, 75 an outage; 2 for a wrong command line. `report` has the format of the output; ADR 36
has the rest.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from llamesh.kit.config import Settings
from llamesh.kit.machine_memory import machine_memory
from llamesh.sizes import size
from services.quant.states import StepKind
from services.quant.step import report
from services.quant.step.memory_limit import limit_memory, limit_of
from services.quant.step.step_lock import take_lock
from services.quant.step_process import CRASHED, DONE, OUTAGE, REFUSED
from services.quant.workspace import Workspace

_NICE = 10
"""Lower priority than engines, which answer people."""
_OOM_SCORE = 800
"""If the system runs out of memory, it kills a step rather than an engine or a service."""


def main(words: list[str]) -> int:
    """Run the step and return the exit code."""
    if len(words) not in (2, 3) or words[0] not in set(StepKind):
        sys.stderr.write(
            "usage: python -m services.quant.step fetch|convert|imatrix|quantize|verify|publish JOB [TYPE]\n"
        )
        return 2
    kind, job_id, of_type = words[0], words[1], "".join(words[2:])
    _lower_priority()
    _end_with_service()
    limit = 0
    try:
        # The service gives each step the settings that it needs. A file of settings has secrets that it does not need.
        settings = Settings(_env_file=None)  # type: ignore[call-arg]
        workspace = Workspace(settings.home, job_id)
        limit = limit_of(machine_memory())
        limit_memory(limit)
        # Held until this process ends.
        take_lock(workspace.lock(kind, of_type))
        result = _done(kind, of_type, workspace, settings)
    except report.StepRefusedError as error:
        report.report_error(error.reason, str(error))
        return REFUSED
    except (report.StepOutageError, report.StepCrashedError) as error:
        report.report_error(error.reason, str(error))
        return OUTAGE if isinstance(error, report.StepOutageError) else CRASHED
    except MemoryError:
        refusal = f"the step needs more than {size(limit)} of memory, which is all that it may have on this machine"
        report.report_error("QUANT_REFUSED", refusal)
        return REFUSED
    except Exception:
        # A bug. Python's own exit code would mean that the step is refused.
        traceback.print_exc()
        return CRASHED
    report.report_result(result)
    return DONE


def _done(kind: str, of_type: str, workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Return the result of the step: of an earlier run whose end the service missed, or of this run."""
    if (found := workspace.result(kind, of_type)) is not None:
        return found
    # Imported only if needed: each step needs other libraries.
    match kind:
        case StepKind.FETCH:
            from services.quant.step.fetch import fetch

            result = fetch(workspace, settings)
        case StepKind.CONVERT:
            from services.quant.step.convert import convert

            result = convert(workspace, settings)
        case StepKind.IMATRIX:
            from services.quant.step.imatrix import imatrix

            result = imatrix(workspace, settings)
        case StepKind.QUANTIZE:
            from services.quant.step.quantize import quantize

            result = quantize(workspace, of_type, settings)
        case StepKind.VERIFY:
            from services.quant.step.verify import verify

            result = verify(workspace, of_type)
        case _:
            from services.quant.step.publish import publish

            return publish(workspace, of_type, settings)
    workspace.keep_result(kind, of_type, result)
    return result


def _lower_priority() -> None:
    """Lower the CPU priority, let the kernel kill this process first if memory is short, and write no core dumps."""
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="utf-8")


def _end_with_service() -> None:
    """Kill this process group when the service ends: then the other end of the pipe on standard input is closed."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode) and not stat.S_ISSOCK(os.fstat(0).st_mode):
        return

    def watch() -> None:
        while os.read(0, 1):
            continue
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
