"""Keeps declared servers running and tells Envoy where their engines are.

`reconcile` is the straight line from the desired state to the status: `declared_store` -> `observer` -> `plan` (pure) -> `start_gate` ->
`actuator` (`runtimes`) -> `reporter` (`xds`, then `status`). It runs for one server at a time whenever something may have changed.
"""

import os

# gRPC's fork handlers sometimes crash the child. Children of this process execute another program at once and do not need them.
# gRPC reads the variable when it is loaded, so it must be set before every import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
