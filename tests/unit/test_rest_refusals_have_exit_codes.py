"""A refused REST call ends with the exit code of its reason, as the same call over gRPC does."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamesh.cli import web
from llamesh.cli.failure import Exit


def answer(status: int, reason: str, **metadata: str) -> Any:
    """The answer of Envoy to a refused call."""
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "metadata": metadata}
    body = json.dumps({"code": 9, "message": "no", "details": [info]}).encode()
    return SimpleNamespace(status=status, reason="Bad", read=lambda: body, getheader=lambda _name: None)


@pytest.mark.parametrize(
    ("status", "reason", "metadata", "code"),
    [
        (400, "MODEL_IN_USE", {}, Exit.REFUSED),
        (400, "INVALID_FIELD", {}, Exit.USAGE),
        (400, "QUANT_NOT_CONFIGURED", {}, Exit.UNAVAILABLE),
        (403, "SOURCE_REFUSED", {"rule": "form"}, Exit.USAGE),
        (403, "SOURCE_REFUSED", {"rule": "host"}, Exit.REFUSED),
        (404, "MODEL_NOT_FOUND", {}, Exit.NOT_FOUND),
    ],
)
def test_the_reason_gives_the_exit_code(status: int, reason: str, metadata: dict[str, str], code: Exit) -> None:
    assert web.refusal(cast("Any", answer(status, reason, **metadata))).code == code
