"""The download service put together: settings in, a serving member out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.leases import Lease, LeaseHeldError
from llamesh.kit.objects import ObjectStore, object_store
from llamesh.kit.ownership import Owner, owner_of
from llamesh.kit.pages import open_pages
from llamesh.kit.serving import Member, StartRefused
from llamesh.v1.download_pb2_grpc import add_CatalogueServiceServicer_to_server, add_DownloadServiceServicer_to_server
from services.download.catalogue import Catalogue
from services.download.changes import Changes
from services.download.messages import download_message, model_message
from services.download.peers import PeerChanges
from services.download.servicer import CatalogueServicer, DownloadServicer
from services.download.sources import Source, Sources
from services.download.store_health import StoreHealth
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


def store_owner(settings: Settings, owner: Owner) -> Owner:
    """Whose store it is, as the lease on it knows: a directory is this home's, a bucket everyone's who names it."""
    if settings.minio_endpoint:
        place = f"s3://{settings.minio_endpoint}/{settings.minio_bucket}"
        return Owner(place, f"{place}, used by {owner.words}")
    return Owner(owner.id, f"{settings.home / 'objects'}, of {owner.words}")


async def serve(member: Member, *, source: Source | None = None, clock: Callable[[], datetime] = utc_now) -> None:
    """Run the download service until it is asked to stop. Transfers under way are started again by the next process."""
    settings = member.settings
    database = open_database(settings, "download")
    try:
        await member.prepare(database, "services.download")
        owner = owner_of(settings.home, "download")
        async with _store_of_database(member, database, store_owner(settings, owner)):
            await _serve(member, database, owner, source or sources_of(settings), clock)
    finally:
        await database.close()


@asynccontextmanager
async def _store_of_database(member: Member, database: Database, owner: Owner) -> AsyncIterator[None]:
    """Make sure that all processes on this database keep its models in the same store: each record would lack its object elsewhere."""
    if database.schema is None:
        yield
        return
    followers: list[str] = []

    def end(follower: str) -> None:
        followers.append(follower)
        member.stop()

    lease = Lease(database, "store", owner, end)
    try:
        await lease.acquire(member.stopping)
    except LeaseHeldError as held:
        raise StartRefused(_other_store(held)) from held
    lease.start()
    try:
        yield
    finally:
        # A bucket may be in use by other processes.
        await lease.close(release=not member.settings.minio_endpoint)
    if followers:
        raise StartRefused(_other_store(followers[0]))


def _other_store(words: object) -> str:
    return (
        f"the models of this database are kept in another object store, {words}: use that one (MINIO_ENDPOINT and MINIO_BUCKET;"
        " a directory cannot be shared), end that mesh with `llamesh down`, or set DATABASE_URL to a database of its own"
    )


async def _serve(
    member: Member, database: Database, owner: Owner, source: Source, clock: Callable[[], datetime]
) -> None:
    settings = member.settings
    store = store_of(settings)
    changes = Changes()
    transfers = Transfers(database, clock, owner.id)
    catalogue = Catalogue(
        database,
        store,
        clock,
        owner.id,
        lambda row: changes.download(download_message(row)),
        lambda row: changes.model(model_message(row)),
    )

    def show_store(watch: StoreHealth) -> None:
        member.show_part("store", watch.usable)
        member.show_part("store.credentials", not watch.denied)

    worker = Worker(transfers, catalogue, store, source, changes, on_store=show_store)
    pages = open_pages(settings)
    downloads = DownloadServicer(transfers, catalogue, worker, source, changes, settings.quant_service_url, pages)
    add_DownloadServiceServicer_to_server(downloads, member.server)
    models = CatalogueServicer(catalogue, transfers, worker, changes, pages)
    add_CatalogueServiceServicer_to_server(models, member.server)
    member.announce("llamesh.v1.DownloadService", "llamesh.v1.CatalogueService")
    gateway, contract = channel(settings, "gateway"), channel(settings, "contract")
    member.follow_rights(gateway, contract)
    peers = PeerChanges(transfers, catalogue, changes)
    if database.schema:
        peers.start()
    worker.start()
    try:
        await member.serve()
    finally:
        await peers.close()
        await worker.close()
        await gateway.close()
        await contract.close()
        await store.close()
