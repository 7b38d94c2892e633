"""The Quant service: jobs that make quantised variants of a model, check them and publish them (docs/adr/0036-quant-jobs.md).

`servicer` -> `submission` (may this job run?) -> `jobs` (the rows) -> `worker` -> `job_run` -> `step_process` (one program for each step,
see `step`) -> `step_rows` (the result of a step, and the published model).
"""

import os

# gRPC's fork handlers sometimes crash the child. Children of this process execute another program at once and do not need the handlers.
# gRPC reads the variable when it is imported, so the variable must be set before all imports.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
