"""Error bodies of the inference APIs: OpenAI's format, and Anthropic's on the paths of its API.

Every component that refuses an inference request uses the format of the called API, because SDKs read no other.
"""

from __future__ import annotations

import re
from typing import Any

ANTHROPIC_PATHS = r"(/[0-9A-Za-z-]+)?/v1/messages([/?].*)?"
"""Regular expression (RE2 and Python) for the whole path of a request to Anthropic's API. envoy/lua/route.lua has the same rule."""
_ANTHROPIC_PATHS = re.compile(ANTHROPIC_PATHS, re.DOTALL)
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
"""Anthropic's error type by HTTP status, for statuses that do not have the general type."""


def anthropic_type(status: int) -> str:
    """Return Anthropic's type of an error with this HTTP status."""
    return ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def error_body(path: str, status: int, message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error on a path. `kind`, `code` and `param` are OpenAI's; Anthropic's type follows from the status."""
    if _ANTHROPIC_PATHS.fullmatch(path):
        return {"type": "error", "error": {"type": anthropic_type(status), "message": message}}
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
