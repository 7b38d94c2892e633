"""A command that is refused for a while says once how long."""

from __future__ import annotations

from itertools import count

import grpc
import pytest

from llamesh.cli.refusals import translate
from llamesh.client.errors import MeshError as ClientError
from llamesh.kit.errors import MeshError
from services.gateway.throttle import FREE_FAILURES, Throttle

ADDRESS = "192.0.2.1"


async def test_a_login_that_must_wait_says_so_once() -> None:
    clock = count(0.0, 0.0)
    throttle = Throttle(lambda: next(clock))
    for _ in range(FREE_FAILURES):
        async with throttle.attempt("ada", ADDRESS) as attempt:
            attempt.right = False
    with pytest.raises(MeshError) as refused:
        async with throttle.attempt("ada", ADDRESS):
            pass
    error = refused.value
    assert error.retry_after
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    shown = translate(ClientError(error.message, retry_after=error.retry_after))
    assert shown is not None
    assert [text for text in (shown.cause, *shown.parts, shown.hint) if "try again" in text] == ["try again after 1 s"]
