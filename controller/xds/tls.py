"""TLS in front of a listener, with the certificate that Envoy reads from a file.

Invariant: with a certificate, no request that came in clear is forwarded, and no client is redirected to a host outside of the mesh.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from controller.xds import templates
from llamesh.certificates import SECRET

LISTENER = "envoy.config.listener.v3.Listener"

WORDS = "This port speaks TLS: write https:// in the address."
"""The message for a program that sends plain HTTP."""

_OPENAI = {"error": {"message": WORDS, "type": "invalid_request_error", "param": None, "code": "https_required"}}
_STATUS = {"code": 9, "message": WORDS, "details": []}


_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DOMAIN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")
"""The forms of a request's host that Envoy accepts: a name, all names below a domain, or an address."""


def put_before(listener: Any, secret_file: Path | None, hosts: Iterable[str]) -> Any:
    """Return the listener unchanged if there is no certificate, else with TLS before its filter chain.

    Args:
        listener: the listener without TLS.
        secret_file: the file with the certificate.
        hosts: names and addresses of the mesh, to which plain HTTP is redirected, in addition to those of the loopback interface.
    """
    if secret_file is None:
        return listener
    answer = _OPENAI if listener.name == "inference" else _STATUS
    values = {
        "secret_name": SECRET,
        "secret_file": str(secret_file),
        "hosts": domains(hosts),
        "refusal": templates.tree("routes/plain_http.yaml", {"answer": json.dumps(answer)}),
    }
    added = templates.render("listeners/tls.yaml", LISTENER, values)
    listener.listener_filters.extend(added.listener_filters)
    listener.listener_filters_timeout.CopyFrom(added.listener_filters_timeout)
    listener.filter_chains[0].MergeFrom(added.filter_chains[0])
    listener.default_filter_chain.CopyFrom(added.default_filter_chain)
    return listener


def domains(hosts: Iterable[str]) -> list[str]:
    """Return hosts in the form in which Envoy compares them with the hosts of requests, without those that it cannot compare."""
    found = {f"[{host}]" if ":" in host and not host.startswith("[") else host.lower() for host in (*_LOOPBACK, *hosts)}
    return sorted(host for host in found if _DOMAIN.fullmatch(host))
