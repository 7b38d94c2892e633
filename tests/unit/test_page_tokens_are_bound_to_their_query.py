"""Page tokens carry the last key, and are refused where they are damaged or made for another query."""

from __future__ import annotations

import base64
import json

import pytest

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import page_key, page_size, page_token


def test_a_token_gives_back_its_key() -> None:
    token = page_token("servers", "2026-11-24", 7, "ä b")
    assert page_key("servers", token) == ["2026-11-24", 7, "ä b"]
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_no_token_is_the_first_page() -> None:
    assert page_key("servers", "") is None


def made_by_hand(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [
        page_token("other", "a"),
        page_token("servers", "a")[:-3],
        "not base64 at all!",
        "ä",
        "=",
        made_by_hand({}),
        made_by_hand([]),
        made_by_hand(7),
        made_by_hand("text"),
        made_by_hand([None, "a"]),
        made_by_hand([json.loads(base64.urlsafe_b64decode(page_token("servers", "a") + "=="))[0]]),
        made_by_hand([json.loads(base64.urlsafe_b64decode(page_token("servers", "a") + "=="))[0], {"a": 1}]),
        made_by_hand("x" * 200_000),
        "W" * 5000,
        base64.urlsafe_b64encode(b"[" * 200_000).decode(),
    ],
)
def test_a_damaged_or_foreign_token_is_refused(token: str) -> None:
    with pytest.raises(MeshError) as caught:
        page_key("servers", token)
    assert caught.value.reason == Reason.ERROR_REASON_INVALID_PAGE_TOKEN


@pytest.mark.parametrize(("asked", "given"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_a_page_has_a_default_and_a_greatest_size(asked: int, given: int) -> None:
    assert page_size(asked) == given
