"""What every object store and every source promise, by the same tests as on MinIO, on a second S3 server: versitygw on a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.cluster.s3_server import S3Server
from tests.cluster.test_copies_inside_minio import (
    origin,
    test_no_part_of_an_object_that_was_replaced_or_removed_is_copied,
    test_parts_are_copied_by_the_server_and_go_on_after_a_restart,
)
from tests.cluster.test_object_store_on_minio import (
    s3,
    store,
    test_a_bucket_is_made_once_however_many_prepare_it,
    test_a_cancelled_write_leaves_nothing,
    test_a_discarded_upload_leaves_nothing,
    test_a_large_write_that_is_cancelled_ends_its_upload,
    test_a_local_path_is_a_file_with_the_bytes,
    test_a_server_that_was_stopped_is_unavailable_and_found_again,
    test_a_source_that_fails_leaves_nothing,
    test_an_empty_object_is_an_object,
    test_delete_is_idempotent,
    test_large_objects_go_up_in_parts_and_arrive_whole,
    test_publishing_the_same_content_again_is_harmless,
    test_read_gives_any_range,
    test_scan_finds_by_prefix_in_order,
    test_staged_bytes_are_readable_and_invisible_until_published,
    test_wrong_credentials_are_denied,
)
from tests.cluster.test_parts_on_minio import (
    test_a_removed_upload_leaves_nothing,
    test_an_upload_goes_on_with_the_parts_that_the_server_lacks,
)
from tests.cluster.test_sources_in_minio import (
    bucket,
    put,
    quant_service,
    test_a_part_of_an_object_that_was_replaced_is_refused,
    test_a_refusal_of_the_store_names_the_reason,
    test_an_object_is_read_whole_and_in_parts,
    test_the_flow_of_the_reference_deployment,
)

__all__ = [
    "bucket",
    "origin",
    "put",
    "quant_service",
    "s3",
    "store",
    "test_a_bucket_is_made_once_however_many_prepare_it",
    "test_a_cancelled_write_leaves_nothing",
    "test_a_discarded_upload_leaves_nothing",
    "test_a_large_write_that_is_cancelled_ends_its_upload",
    "test_a_local_path_is_a_file_with_the_bytes",
    "test_a_part_of_an_object_that_was_replaced_is_refused",
    "test_a_refusal_of_the_store_names_the_reason",
    "test_a_removed_upload_leaves_nothing",
    "test_a_server_that_was_stopped_is_unavailable_and_found_again",
    "test_a_source_that_fails_leaves_nothing",
    "test_an_empty_object_is_an_object",
    "test_an_object_is_read_whole_and_in_parts",
    "test_an_upload_goes_on_with_the_parts_that_the_server_lacks",
    "test_delete_is_idempotent",
    "test_large_objects_go_up_in_parts_and_arrive_whole",
    "test_no_part_of_an_object_that_was_replaced_or_removed_is_copied",
    "test_parts_are_copied_by_the_server_and_go_on_after_a_restart",
    "test_publishing_the_same_content_again_is_harmless",
    "test_read_gives_any_range",
    "test_scan_finds_by_prefix_in_order",
    "test_staged_bytes_are_readable_and_invisible_until_published",
    "test_the_flow_of_the_reference_deployment",
    "test_wrong_credentials_are_denied",
]


class VersityServer(S3Server):
    """versitygw, which keeps objects as files and their metadata beside them."""

    name = "versitygw"
    health = "/health"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._metadata = folder / "metadata"

    def words(self) -> Sequence[str]:
        """See S3Server."""
        self._metadata.mkdir(exist_ok=True)
        beside = ["--sidecar", str(self._metadata)]
        return ["--port", self.endpoint, "--health", self.health, "posix", *beside, str(self.data)]

    def variables(self) -> Mapping[str, str]:
        """See S3Server."""
        return {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}

    @property
    def uploads(self) -> dict[str, Path]:
        """See S3Server."""
        return {str(path): path for path in self.data.glob("*/.sgwtmp/multipart/*/*")}


@pytest.fixture(scope="module")
def minio() -> Iterator[S3Server]:
    """The server that the tests ask for by the name of the other one."""
    with VersityServer.running() as server:
        yield server
