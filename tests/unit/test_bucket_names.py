"""A setting takes the names of buckets that the S3 client takes, which refuses all others at each request."""

from __future__ import annotations

import random
from collections.abc import Callable

from minio.helpers import check_bucket_name

from llamesh.kit.source_places import read_bucket

NAMES = ["models", "b1", "models/prod", "a" * 63, "a" * 64, "1.2.3.4", "mod\u00e8les", "models-s3alias", "m--ol-s3"]
MORE = ["1.2.3.400", "models\n"]
"""What the client takes and no server does."""


def takes(read: Callable[[str], object], name: str) -> bool:
    try:
        read(name)
    except ValueError:
        return False
    return True


def test_a_setting_takes_a_bucket_if_the_client_does() -> None:
    chance = random.Random(4)
    names = NAMES + ["".join(chance.choices("aB0.-_:/ ", k=chance.randint(1, 8))) for _ in range(3_000)]
    taken = [name for name in names if takes(check_bucket_name, name)]
    assert 100 < len(taken) < len(names)
    assert [name for name in names if takes(read_bucket, name)] == taken
    assert [name for name in MORE if takes(read_bucket, name)] == []
