"""Keeps declared servers running and tells Envoy where they are.

A straight line: `declared` (the wish) -> `plan` (pure) -> `runtimes` (engines) -> `status` and `board` (what is) -> `xds` (Envoy).
`reconcile` walks it for one server at a time, whenever something may have changed.
"""

import os

# gRPC prepares each fork for use of gRPC in the child, and now and then crashes the child doing so. Our children become other
# programs at once. It reads this when it is loaded, so it stands before every import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
