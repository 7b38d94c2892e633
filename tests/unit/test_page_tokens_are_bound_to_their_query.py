"""Page tokens carry the last key, and are refused where they are damaged, made by others, or made for another list."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import BY_TIME, FIELD, Listing, Pages, open_pages

PAGES = Pages(b"k" * 32)
TEXTS = Listing("texts", (str, str))
SERVERS = Listing("servers", BY_TIME)
NOON = datetime(2026, 11, 24, 12, 0, 0, 1, tzinfo=UTC)


def token(listing: Listing, *key: str | datetime, pages: Pages = PAGES) -> str:
    """The token after a page whose last key is `key`."""
    return pages.page(listing, 1, "").cut([key, key], lambda row: row)[1]


def test_a_token_gives_back_its_key() -> None:
    made = token(SERVERS, NOON, "ä b")
    assert PAGES.page(SERVERS, 1, made).after == (NOON, "ä b")
    assert set(made) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_no_token_is_the_first_page() -> None:
    assert PAGES.page(SERVERS, 1, "").after is None


def test_the_last_page_has_no_token() -> None:
    assert PAGES.page(TEXTS, 2, "").cut(["a", "b"], lambda row: (row, row)) == (["a", "b"], "")
    assert PAGES.page(TEXTS, 2, "").cut([], lambda row: (row, row)) == ([], "")


def made_by_hand(value: object, signature: bytes = b"s" * 16) -> str:
    return base64.urlsafe_b64encode(signature + json.dumps(value).encode()).decode().rstrip("=")


def signed(text: str, listing: Listing = SERVERS) -> str:
    """What a mesh of another release could have made: signed, with a key of another kind."""
    data = text.encode()
    return base64.urlsafe_b64encode(PAGES._signature(listing, data) + data).decode().rstrip("=")


@pytest.mark.parametrize(
    "bad",
    [
        token(Listing("other", BY_TIME), NOON, "a"),
        token(SERVERS, NOON, "a", pages=Pages(b"j" * 32)),
        token(SERVERS, NOON, "a")[:-3],
        token(SERVERS, NOON, "a") + "AAAA",
        token(SERVERS, NOON, "a") + "!",
        "not base64 at all!",
        "ä",
        "=",
        "W",
        made_by_hand(["2026-11-24T12:00:00+00:00", "a"]),
        made_by_hand({}),
        made_by_hand("x" * 200_000),
        "W" * 5000,
        base64.urlsafe_b64encode(b"[" * 200_000).decode(),
        signed('["2026-11-24T12:00:00+00:00"]'),
        signed('["2026-11-24T12:00:00+00:00","a","b"]'),
        signed('["no time","a"]'),
        signed('["0001-01-01T00:00:00+23:59","a"]'),
        signed('[7,"a"]'),
        signed('{"a":1}'),
        signed("7"),
        signed("no JSON"),
        signed('"\ud83d"'.encode("utf-8", "surrogatepass").decode("latin-1")),
    ],
)
def test_a_damaged_or_foreign_token_is_refused_with_the_field_named(bad: str) -> None:
    with pytest.raises(MeshError) as caught:
        PAGES.page(SERVERS, 1, bad)
    assert caught.value.reason == Reason.ERROR_REASON_INVALID_PAGE_TOKEN
    assert [item.field for item in caught.value.fields] == [FIELD]


def test_a_name_that_begins_another_is_another_list() -> None:
    # Without a mark between name and key, both would be signed alike.
    with pytest.raises(MeshError):
        PAGES.page(Listing('texts["a', (str, str)), 1, token(TEXTS, "a", "b"))


@pytest.mark.parametrize(("requested", "given"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_a_page_has_a_default_and_a_greatest_size(requested: int, given: int) -> None:
    assert PAGES.page(SERVERS, requested, "").size == given


def test_tokens_are_good_after_a_restart_and_in_every_replica(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    secret = SecretStr("0123456789abcdef" * 2)
    made = token(SERVERS, NOON, "a", pages=open_pages(Settings(home=one, jwt_secret=None)))
    assert open_pages(Settings(home=one, jwt_secret=None)).page(SERVERS, 1, made).after == (NOON, "a")
    shared = token(SERVERS, NOON, "a", pages=open_pages(Settings(home=one, jwt_secret=secret)))
    assert open_pages(Settings(home=other, jwt_secret=secret)).page(SERVERS, 1, shared).after == (NOON, "a")


def test_a_mesh_with_another_secret_takes_no_token_of_this_one(tmp_path: Path) -> None:
    made = token(SERVERS, NOON, "a", pages=open_pages(Settings(home=tmp_path / "one", jwt_secret=None)))
    with pytest.raises(MeshError):
        open_pages(Settings(home=tmp_path / "other", jwt_secret=None)).page(SERVERS, 1, made)


def test_a_token_of_the_longest_key_fits_the_field() -> None:
    longest = Listing("usage", (str, str, str, str))
    made = token(longest, "2026-11-24", "ä" * 128, '"' * 256, "c" * 64)
    assert len(made) <= 2048
