"""Shares one TLS context between the HTTP clients of a test process.

httpx and others read the certificates of 150 authorities for each client, also if it connects without TLS: a third of the time of the
processors in the tests of the mesh. Contexts with other authorities are made as ever.
"""

from __future__ import annotations

import ssl
from functools import cache
from typing import Any

import certifi


def share_trust_store() -> None:
    """Let `ssl.create_default_context` return the same context each time that it is asked for the authorities of `certifi`."""
    create = ssl.create_default_context

    @cache
    def of_certifi() -> ssl.SSLContext:
        return create(cafile=certifi.where())

    def shared(*purpose: Any, **trusted: Any) -> ssl.SSLContext:
        only_certifi = not purpose and trusted == {"cafile": certifi.where()}
        return of_certifi() if only_certifi else create(*purpose, **trusted)

    ssl.create_default_context = shared
