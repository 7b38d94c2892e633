"""Shares one TLS context between the HTTP clients of a test process.

httpx and others read the certificates of 150 authorities for each client, also if it connects without TLS: a third of the time of the
processors in the tests of the mesh. Contexts with authorities of a test are made as ever.
"""

from __future__ import annotations

import os
import ssl
from functools import cache
from typing import Any

import certifi


def share_trust_store() -> None:
    """Let `ssl.create_default_context` return the same context each time that it is asked for the usual authorities.

    These are the file of `certifi`, or that of this machine in SSL_CERT_FILE.
    """
    create = ssl.create_default_context
    usual = {certifi.where(), os.environ.get("SSL_CERT_FILE", "")}

    @cache
    def of(file: str) -> ssl.SSLContext:
        return create(cafile=file)

    def shared(*purpose: Any, **trusted: Any) -> ssl.SSLContext:
        file = trusted.get("cafile")
        return of(file) if not purpose and len(trusted) == 1 and file in usual else create(*purpose, **trusted)

    ssl.create_default_context = shared
