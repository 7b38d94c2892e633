"""Several download services on one PostgreSQL and one bucket of a real MinIO: the tests of tests/contract, with nothing faked."""

from __future__ import annotations

import pytest
from minio.error import S3Error

from tests.cluster.minio_server import BUCKET, MinioServer, minio
from tests.contract.conftest import as_caller, connect, start_main, start_member
from tests.contract.download.conftest import has_controller, servers, start_standings
from tests.contract.download.test_shared_downloads import (
    ObjectServer,
    database,
    database_url,
    new_replica,
    test_a_transfer_of_a_killed_process_is_taken_over,
    test_fetching_and_deleting_the_same_bytes_never_leaves_a_record_without_its_object,
    web,
)

__all__ = [
    "as_caller",
    "connect",
    "database",
    "database_url",
    "has_controller",
    "minio",
    "new_replica",
    "servers",
    "start_main",
    "start_member",
    "start_standings",
    "test_a_transfer_of_a_killed_process_is_taken_over",
    "test_fetching_and_deleting_the_same_bytes_never_leaves_a_record_without_its_object",
    "web",
]


class Bucket:
    """The server as the tests look into the fake."""

    def __init__(self, server: MinioServer) -> None:
        self.environment = server.settings
        self.delay: dict[str, float] = {}
        self.server = server

    @property
    def objects(self) -> dict[str, bytes]:
        """Every published object and its bytes. One that is removed while they are read is none."""
        found = {name: self._read(name) for name in self.server.objects("models/")}
        return {name: data for name, data in found.items() if data is not None}

    def _read(self, name: str) -> bytes | None:
        try:
            answer = self.server.client.get_object(BUCKET, name)
        except S3Error as error:
            if error.code != "NoSuchKey":
                raise
            return None
        try:
            return answer.read()
        finally:
            answer.close()
            answer.release_conn()


@pytest.fixture
def s3(minio: MinioServer) -> ObjectServer:
    """The bucket without what an earlier test left in it: its records were in another database."""
    minio.empty()
    return Bucket(minio)
