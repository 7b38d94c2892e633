"""A change of a server is refused if the caller read another version of it."""

from __future__ import annotations

import pytest

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.spec_changes import check_etag


@pytest.mark.parametrize("etag", ["", "3"])
def test_no_etag_and_the_present_one_match(etag: str) -> None:
    check_etag("3", etag)


def test_another_etag_is_refused_with_the_present_one() -> None:
    with pytest.raises(MeshError) as caught:
        check_etag("3", "2")
    assert caught.value.reason == Reason.ERROR_REASON_ETAG_MISMATCH
    assert caught.value.metadata == {"etag": "3"}
