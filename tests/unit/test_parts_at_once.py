"""The size that a source claims decides the size of parts in S3, and not how much memory a transfer takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.kit.objects.s3 import S3Store
from services.download.staging import MIN_MEMORY, parts_at_once
from tests.unit.fake_s3 import FakeS3

MIB = 1 << 20


@pytest.mark.parametrize("size", [1 << 30, 200 << 30, 2 << 40])
def test_a_larger_file_takes_no_more_memory_unless_one_part_does(tmp_path: Path, size: int) -> None:
    server = FakeS3()
    server.endpoint = "127.0.0.1:1"
    part_size = S3Store(server.place(), tmp_path).parts.layout(size, 16 * MIB).part_size
    number = parts_at_once(4, part_size, 0, 64 * MIB)
    assert number >= 1
    assert number * part_size <= max(64 * MIB, part_size)


def test_parts_of_the_least_size_are_read_at_the_same_time() -> None:
    assert parts_at_once(4, 5 * MIB, 0, max(MIN_MEMORY, 4 * MIB)) == 4
    assert parts_at_once(1, 5 * MIB, 0, MIN_MEMORY) == 1


def test_a_limit_of_bandwidth_and_the_memory_both_count() -> None:
    assert parts_at_once(8, 16 * MIB, 48 * MIB, 64 * MIB) == 3
    assert parts_at_once(8, 16 * MIB, 480 * MIB, 64 * MIB) == 4
