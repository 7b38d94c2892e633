"""The program of a pod: runs one step of a job as on one machine, and writes its outcome where Argo finds it.

`python -m services.quant.argo.pod FOLDER OUTCOME STEP JOB [TYPE]`: the description of the job is in FOLDER, and OUTCOME is the file for the
outcome. LLAMESH_HOME is on a volume that all pods of the job share. Exit codes are those of the step, and 70 for one that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from llamesh.kit.config_loading import load_settings
from services.quant.argo.pod_files import CALIBRATION, JOB_FILE
from services.quant.states import StepKind
from services.quant.step_process import CRASHED, MAX_LOG, OUTAGE, Outcome, StepProcess
from services.quant.workspace import JobSpec, Workspace


def main(words: list[str]) -> int:
    """Run the step and return its exit code."""
    if len(words) not in (4, 5) or words[2] not in set(StepKind):
        sys.stderr.write("usage: python -m services.quant.argo.pod FOLDER OUTCOME STEP JOB [TYPE]\n")
        return 2
    folder, path, kind, job_id, of_type = Path(words[0]), Path(words[1]), words[2], words[3], "".join(words[4:])
    # Python's own exit code would mean that the step is refused for good.
    try:
        outcome = _run(folder, kind, job_id, of_type)
    except OSError as error:
        outcome = Outcome(OUTAGE, message=f"the volume or the description of the job cannot be used: {error}")
    except Exception:
        outcome = Outcome(CRASHED, message="the program of the pod failed", log=traceback.format_exc())
    sys.stderr.write(f"{outcome.words()}\n{outcome.log}\n" if outcome.code else "")
    with contextlib.suppress(OSError):
        _write(outcome, path)
    return outcome.code if outcome.code >= 0 else CRASHED


def _run(folder: Path, kind: str, job_id: str, of_type: str) -> Outcome:
    settings = load_settings()
    workspace = Workspace(settings.home, job_id)
    workspace.prepare(JobSpec.read((folder / JOB_FILE).read_text(encoding="utf-8")))
    if kind == StepKind.IMATRIX:
        workspace.keep_calibration((folder / CALIBRATION).read_text(encoding="utf-8"))
    return asyncio.run(StepProcess(settings, kind, job_id, of_type).run(lambda done, total: None))


def _write(outcome: Outcome, path: Path) -> None:
    report = {**asdict(outcome), "log": outcome.log[-MAX_LOG:], "message": outcome.message[:MAX_LOG]}
    path.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
