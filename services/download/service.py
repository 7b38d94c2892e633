"""The download service put together: settings in, a serving member out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.objects import ObjectStore, object_store
from llamesh.kit.serving import Member
from llamesh.v1.download_pb2_grpc import add_CatalogueServiceServicer_to_server, add_DownloadServiceServicer_to_server
from services.download.catalogue import Catalogue
from services.download.changes import Changes
from services.download.servicer import CatalogueServicer, DownloadServicer
from services.download.sources import Source, Sources
from services.download.transfers import Transfers
from services.download.worker import Worker


def utc_now() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


def store_of(settings: Settings) -> ObjectStore:
    """The object store that the settings name: below LLAMESH_HOME unless an S3 server is set."""
    return object_store(
        directory=settings.home / "objects",
        endpoint=settings.minio_endpoint or None,
        bucket=settings.minio_bucket,
        secure=settings.minio_secure,
        access_key=settings.minio_access_key.get_secret_value() or None,
        secret_key=settings.minio_secret_key.get_secret_value() or None,
        cache_directory=settings.home / "cache",
    )


def sources_of(settings: Settings) -> Source:
    """The sources that the settings allow."""
    return Sources(
        import_directories=[settings.home / "import", *settings.import_dirs],
        private_hosts=settings.source_hosts,
        http_hosts=settings.http_source_hosts,
    )


async def serve(member: Member, *, source: Source | None = None, clock: Callable[[], datetime] = utc_now) -> None:
    """Run the download service until it is asked to stop. Transfers under way are started again by the next process."""
    settings = member.settings
    database = open_database(settings, "download")
    store = store_of(settings)
    source = source or sources_of(settings)
    changes = Changes()
    transfers = Transfers(database, clock)
    catalogue = Catalogue(database, store, clock)
    worker = Worker(transfers, catalogue, store, source, changes)
    downloads = DownloadServicer(transfers, worker, source, changes, settings.quant_service_url)
    add_DownloadServiceServicer_to_server(downloads, member.server)
    add_CatalogueServiceServicer_to_server(CatalogueServicer(catalogue, transfers, worker, changes), member.server)
    member.announce("llamesh.v1.DownloadService", "llamesh.v1.CatalogueService")
    contract = channel(settings, "contract")
    member.refuse_revoked(contract)
    await member.prepare(database, "services.download")
    working = asyncio.create_task(worker.run())
    try:
        await member.serve()
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        await contract.close()
        await store.close()
        await database.close()
