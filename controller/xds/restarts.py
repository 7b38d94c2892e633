"""How long and how often Envoy tries a member of the mesh that restarts.

Invariant: Envoy tries for longer than the supervisor pauses before it starts a member again.
"""

from __future__ import annotations

RESTART_BUDGET_SECONDS = 60
"""How long Envoy waits for a member that restarts. The supervisor pauses for at most 30 s before it starts a member again
(llamesh/cli/mesh/restarts.py), and a start takes a few seconds."""
RESTART_RETRIES = 120
"""How often a member that does not listen is tried."""
RESTART_BACKOFF = {"base_interval": "0.02s", "max_interval": "1s"}
"""Envoy waits for a random part of the interval, which doubles up to the maximum. 120 retries wait for 57 s on average; with a
standard deviation of 3 s practically never for less than 45 s."""

HEALTH_RETRIES = 8
"""How often a health check is tried: it must answer soon, in about 3 s."""
HEALTH_TIMEOUT = "3s"
"""Longer than the gateway waits for the other members. If the gateway itself is stopped, Envoy then answers 504."""
