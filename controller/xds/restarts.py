"""Envoy's limits for retries at a member of the mesh that restarts.

Invariant: Envoy retries for longer than the supervisor waits before it restarts a member.
"""

from __future__ import annotations

RESTART_BUDGET_SECONDS = 60
"""Seconds that Envoy waits for a member that restarts. The supervisor waits at most 30 s before it restarts a member
(llamesh/cli/mesh/restarts.py), and a start takes a few seconds."""
MAX_RESTART_RETRIES = 120
"""Maximum number of tries at a member that does not listen."""
RESTART_BACKOFF = {"base_interval": "0.02s", "max_interval": "1s"}
"""Envoy waits for a random part of the interval, which doubles up to the maximum. 120 retries take 57 s on average, with a standard
deviation of 3 s, so practically never less than 45 s."""

MAX_HEALTH_RETRIES = 8
"""Maximum number of tries of a health check, which must answer soon: in about 3 s."""
HEALTH_TIMEOUT = "3s"
"""Longer than the gateway waits for the other members. If the gateway itself is stopped, Envoy then answers 504."""
