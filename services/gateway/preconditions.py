"""The precondition of a change: the etag in the request, or REST's If-Match (RFC 9110, 13.1.1), which means the same.

Invariant: a precondition is never ignored. If a request has no field `etag`, its If-Match is refused earlier: by envoy/lua/strict_json.lua
for REST, and by llamesh/kit/calls.py for gRPC metadata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamesh.kit.calls import CONDITION_HEADER, Context
from llamesh.kit.errors import MeshError, Reason, invalid_field

_TAG = re.compile(r'\s*(?:(?P<weak>W/)?"(?P<quoted>[^"\x00-\x20]*)"|(?P<bare>[^\s",]+))\s*')


def wanted_etag(field: str, context: Context) -> str:
    """Return the etag that the resource must have, empty for any.

    Raises:
        MeshError: INVALID_FIELD if the header is malformed, has several etags, or differs from the field; ETAG_MISMATCH if the etag is
            weak or empty, because no resource has such an etag.
    """
    headers = [str(value) for key, value in context.invocation_metadata() or () if key == CONDITION_HEADER]
    if not headers:
        return field
    etag = read_if_match(headers)
    if field and etag and etag != field:
        raise invalid_field("etag", f"is {field}, and If-Match is {etag}: give one of them")
    return etag or field


def read_if_match(values: Sequence[str]) -> str:
    """Return the etag of If-Match, quoted or not; empty for `*`, which any existing resource meets. Errors as in `wanted_etag`."""
    text = ",".join(values)
    if text.strip() == "*":
        return ""
    found = _TAG.fullmatch(text)
    if found is None:
        raise invalid_field("If-Match", 'give one etag as the resource has it, for instance If-Match: "3", or *')
    etag = found["bare"] if found["quoted"] is None else found["quoted"]
    if found["weak"] or not etag:
        raise MeshError(Reason.ERROR_REASON_ETAG_MISMATCH, f"no resource has the etag {text.strip()} of If-Match", {})
    return str(etag)
