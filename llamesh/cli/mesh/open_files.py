"""The limit of open files of a process. A mesh needs one for each connection, and shells often allow only 256 or 1024."""

from __future__ import annotations

import contextlib
import resource

RECOMMENDED = 20_000
"""Recommended limit: Envoy accepts 10,000 connections and opens as many to engines."""
MAX_LIMIT = 1 << 20
"""Highest limit that is set: some systems have no limit, and some programs loop over every possible descriptor."""


def raise_limit() -> int:
    """Raise the soft limit of this process, which its children inherit, to the hard limit. Return the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_LIMIT if hard == resource.RLIM_INFINITY else min(hard, MAX_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS refuses values above kern.maxfilesperproc, although its hard limit is "unlimited".
        for limit in (wanted, 10_240):
            with contextlib.suppress(OSError, ValueError):
                if limit > soft:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                    return limit
    return soft


def attainable() -> int:
    """Return the limit of a mesh that is started from this shell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_LIMIT if resource.RLIM_INFINITY in (soft, hard) else max(soft, min(hard, MAX_LIMIT))
