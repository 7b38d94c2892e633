"""TLS in front of a listener, with the certificate that Envoy reads from a file.

Invariant: with a certificate nothing is forwarded that came in clear.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from controller.xds import templates
from llamesh.certificates import SECRET

LISTENER = "envoy.config.listener.v3.Listener"

WORDS = "This port speaks TLS: write https:// in the address."
"""What a program reads that sends plain HTTP."""

_OPENAI = {"error": {"message": WORDS, "type": "invalid_request_error", "param": None, "code": "https_required"}}
_STATUS = {"code": 9, "message": WORDS, "details": []}


def put_before(listener: Any, secret_file: Path | None) -> Any:
    """Return the listener as it is if there is no certificate, else with TLS before its filter chain."""
    if secret_file is None:
        return listener
    answer = _OPENAI if listener.name == "inference" else _STATUS
    values = {"secret_name": SECRET, "secret_file": str(secret_file), "answer": json.dumps(answer)}
    added = templates.render("listeners/tls.yaml", LISTENER, values)
    listener.listener_filters.extend(added.listener_filters)
    listener.listener_filters_timeout.CopyFrom(added.listener_filters_timeout)
    listener.filter_chains[0].MergeFrom(added.filter_chains[0])
    listener.default_filter_chain.CopyFrom(added.default_filter_chain)
    return listener
