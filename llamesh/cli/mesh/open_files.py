"""How many files and sockets a process may have open. A mesh needs one for each connection; shells often allow only 256 or 1024."""

from __future__ import annotations

import contextlib
import resource

ENOUGH = 20_000
"""Envoy accepts 10,000 connections and opens as many to engines."""
MOST = 1 << 20
"""Not raised further: some systems name no limit, and some programs walk through every descriptor they may have."""


def raise_limit() -> int:
    """Raise the soft limit of this process, which its children inherit, to the hard one. Returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS refuses what is above kern.maxfilesperproc although its hard limit says "unlimited".
        for limit in (wanted, 10_240):
            with contextlib.suppress(OSError, ValueError):
                if limit > soft:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                    return limit
    return soft


def attainable() -> int:
    """The limit that a mesh started from here gets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if resource.RLIM_INFINITY in (soft, hard) else max(soft, min(hard, MOST))
