"""Keeps declared servers running and configures Envoy with the addresses of their engines.

`reconcile` is one straight line from the desired state to the status: `declared_store` -> `observer` -> `plan` (no I/O) -> `start_gate` ->
`actuator` (`runtimes`) -> `reporter` (`xds`, then `status`). It runs for one server at a time, whenever something may have changed.
"""

import os

# gRPC's fork handlers sometimes crash the child. Children of this process execute another program at once and do not need the handlers.
# gRPC reads the variable when it is imported, so the variable must be set before all imports.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
