"""How many tokens one request may use: its slot's share, and no more than llama.cpp gives a slot of that model."""

from __future__ import annotations

import pytest

from llamesh.runtime_parameters import slot_context
from llamesh.v1.server_pb2 import RopeScaling, RuntimeParameters

YARN, LINEAR = RopeScaling.ROPE_SCALING_YARN, RopeScaling.ROPE_SCALING_LINEAR


@pytest.mark.parametrize(
    ("given", "trained", "expected"),
    [
        ({}, 0, 4096),
        ({}, 131072, 4096),
        ({}, 2048, 2048),
        ({"ctx_size": 8192}, 131072, 2048),
        ({"ctx_size": 8192, "parallel": 1}, 131072, 8192),
        ({"ctx_size": 8192, "parallel": 1}, 0, 8192),
        ({"ctx_size": 8192, "parallel": 1}, 2048, 2048),
        ({"ctx_size": 8192, "kv_unified": True}, 131072, 8192),
        ({"ctx_size": 8192, "parallel": 1, "rope_scaling": YARN, "rope_scale": 4.0}, 2048, 8192),
        ({"ctx_size": 8192, "parallel": 1, "rope_scaling": YARN, "rope_freq_scale": 0.5}, 2048, 4096),
        ({"ctx_size": 8192, "parallel": 1, "rope_scaling": YARN, "rope_scale": 4.0, "yarn_orig_ctx": 1024}, 2048, 4096),
        ({"ctx_size": 8192, "parallel": 1, "rope_scaling": YARN, "yarn_orig_ctx": 1024}, 2048, 2048),
        ({"ctx_size": 8192, "parallel": 1, "rope_scaling": LINEAR, "rope_scale": 4.0}, 2048, 2048),
        ({"ctx_size": 8192, "parallel": 1, "rope_scale": 4.0}, 2048, 8192),
    ],
)
def test_a_request_has_its_share_and_no_more_than_the_model_has(
    given: dict[str, object], trained: int, expected: int
) -> None:
    assert slot_context(RuntimeParameters(**given), trained) == expected
