"""The Quant service: jobs that make quantised variants of a model, check them and publish them (docs/adr/0036-quant-jobs.md).

`servicer` -> `submission` (may this be?) -> `jobs` (the rows) -> `worker` -> `job_run` -> `step_process` (one program for each step, see
`step`) -> `step_rows` (how it ended, and the published model).
"""

import os

# gRPC's fork handlers sometimes crash the child. Children of this process execute another program at once and do not need them.
# gRPC reads the variable when it is loaded, so it must be set before every import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
