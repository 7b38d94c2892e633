"""A server for which no namespace is given gets one that is allowed."""

from __future__ import annotations

import pytest

from llamesh.names import default_namespace
from services.contract.policy import Policy, limit_refusals


@pytest.mark.parametrize(
    ("allowed", "default"),
    [(("default", "inference"), "default"), (("inference", "default"), "default"), (("llamesh", "team"), "llamesh")],
)
def test_the_default_is_allowed(allowed: tuple[str, ...], default: str) -> None:
    assert default_namespace(allowed) == default
    policy = Policy(5, allowed)
    assert policy.default_namespace == default
    assert not limit_refusals(policy, 1, policy.default_namespace)
