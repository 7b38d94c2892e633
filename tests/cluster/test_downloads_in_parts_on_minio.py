"""Downloads in parts to a real MinIO, paused, killed and cancelled: the tests of tests/contract, with nothing faked but the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.minio_server import MinioServer, minio
from tests.cluster.test_downloads_are_shared_on_minio import Bucket
from tests.contract.conftest import as_caller, connect, start_main, start_member
from tests.contract.download.conftest import has_controller, servers, start_standings
from tests.contract.download.test_durable_transfers_to_s3 import (
    new_replica,
    source,
    test_a_cancelled_transfer_leaves_no_upload,
    test_a_paused_transfer_keeps_its_upload_over_a_kill_until_it_is_resumed_by_another_process,
    test_another_process_goes_on_with_the_upload,
)

__all__ = [
    "as_caller",
    "connect",
    "has_controller",
    "minio",
    "new_replica",
    "servers",
    "source",
    "start_main",
    "start_member",
    "start_standings",
    "test_a_cancelled_transfer_leaves_no_upload",
    "test_a_paused_transfer_keeps_its_upload_over_a_kill_until_it_is_resumed_by_another_process",
    "test_another_process_goes_on_with_the_upload",
]


class BucketWithUploads(Bucket):
    """Also its unfinished multipart uploads."""

    @property
    def uploads(self) -> dict[str, Path]:
        """Unfinished multipart uploads of the server."""
        return self.server.uploads


@pytest.fixture
def s3(minio: MinioServer) -> BucketWithUploads:
    """The bucket without what an earlier test left in it: its records were in another database."""
    minio.empty()
    return BucketWithUploads(minio)
