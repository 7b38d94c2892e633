"""A model of 40 GiB takes the memory of a small one: the test of tests/contract with another size. Its zeros take no room on the disk."""

from __future__ import annotations

import pytest

from tests.contract.conftest import as_caller, connect, start_main, start_member
from tests.contract.download import replica
from tests.contract.download.conftest import has_controller, servers, start_standings
from tests.contract.download.test_many_and_large_downloads import (
    source,
    test_a_large_model_takes_no_more_memory_than_its_parts_at_once,
)

__all__ = [
    "as_caller",
    "connect",
    "has_controller",
    "servers",
    "source",
    "start_main",
    "start_member",
    "start_standings",
    "test_a_large_model_takes_no_more_memory_than_its_parts_at_once",
]

SECONDS = 1800
pytestmark = pytest.mark.timeout(SECONDS)


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(replica, "SECONDS", SECONDS)
    return 40 << 30
