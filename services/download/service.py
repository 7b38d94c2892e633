"""Composition root of the download service: creates its parts from the settings, serves, and closes them in reverse order."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack
from datetime import timedelta
from time import monotonic

import grpc

from llamesh.background import BackgroundTask
from llamesh.hub_addresses import HUB_HOSTS
from llamesh.kit.channels import channel
from llamesh.kit.clock import utc_now
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.logs import report_failure
from llamesh.kit.member_lease import member_lease
from llamesh.kit.objects import SWEEP_SECONDS as STORE_SWEEP_SECONDS
from llamesh.kit.objects import ObjectStore
from llamesh.kit.own_places import models_store, quant_place
from llamesh.kit.ownership import Owner, owner_of
from llamesh.kit.pages import open_pages
from llamesh.kit.serving import Member
from llamesh.locations import handed_over_directory, parts_directory, variants_directory
from llamesh.v1.checkpoint_pb2_grpc import add_CheckpointServiceServicer_to_server
from llamesh.v1.contract_pb2_grpc import ContractServiceStub
from llamesh.v1.controller_pb2_grpc import ControllerServiceStub
from llamesh.v1.download_pb2_grpc import add_CatalogueServiceServicer_to_server, add_DownloadServiceServicer_to_server
from services.download.bandwidth import Bandwidth
from services.download.catalogue import Catalogue
from services.download.changes import Changes
from services.download.checkpoint_servicer import CheckpointServicer
from services.download.checkpoints import Checkpoints
from services.download.deletions import Deletions, servers_of
from services.download.delivery import SWEEP_SECONDS, Delivery
from services.download.download_broadcasts import DownloadBroadcasts
from services.download.fetches import Fetches
from services.download.handed_over import SWEEP_SECONDS as HANDED_OVER_SECONDS
from services.download.handed_over import remove_unused
from services.download.hub_search import HubSearch
from services.download.integrity import Integrity
from services.download.kept_parts import KeptParts
from services.download.matrix_files import MatrixFiles
from services.download.memory_fits import MemoryFits
from services.download.messages import download_message, model_message
from services.download.old_headers import READ_AGAIN_SECONDS, OldHeaders
from services.download.part_links import PartLinks
from services.download.partial_objects import PartialObjects
from services.download.pauses import Pauses
from services.download.peers import PeerChanges
from services.download.present_objects import PresentObjects
from services.download.publications import Publications
from services.download.retry_backoffs import RetryBackoffs
from services.download.room import Room
from services.download.servicer import CatalogueServicer, DownloadServicer
from services.download.source_comparison import SourceComparison
from services.download.sources import (
    AddressRules,
    FileSource,
    HttpsSource,
    HubSource,
    QuantMember,
    QuantModels,
    QuantOverHttp,
    QuantSource,
    RegistrySource,
    S3Bucket,
    S3Source,
    Source,
    Sources,
)
from services.download.sources.quant_member import sources_of_jobs
from services.download.staging import Staging
from services.download.starts import Starts
from services.download.store_health import StoreHealth
from services.download.tables import ModelRow, TransferRow
from services.download.transfer_run import TransferRuns
from services.download.transfers import Transfers
from services.download.unowned_objects import UnownedObjects
from services.download.worker import Worker


async def run(member: Member) -> None:
    """Serve llamesh.v1.DownloadService and CatalogueService until the member is asked to stop.

    The next process continues the transfers that the stop interrupts.
    """
    settings = member.settings
    async with AsyncExitStack() as stack:
        database = open_database(settings, "download")
        stack.push_async_callback(database.close)
        await member.prepare(database, "services.download")
        owner = owner_of(settings.home, "download")
        # The lease ties this database to one store: in another store, the models of its records would have no objects. A lease on a
        # bucket is not released at the end, because other processes may still use the bucket.
        lease = member_lease(
            member, database, "store", store_owner(settings, owner), _other_store, release=not settings.minio_endpoint
        )
        await stack.enter_async_context(lease)
        store = store_of(settings, owner)
        stack.push_async_callback(store.close)
        siblings = ("gateway", "contract", "controller", "quant")
        channels = {name: channel(settings, name, member.name) for name in siblings}
        for each in channels.values():
            stack.push_async_callback(each.close)
        member.follow_rights(channels["gateway"], channels["contract"])

        changes = Changes()

        def broadcast_transfer(row: TransferRow) -> None:
            changes.download(download_message(row))

        def broadcast_model(row: ModelRow) -> None:
            changes.model(model_message(row))

        transfers = Transfers(database, utc_now, owner.id)
        objects = UnownedObjects(database, store, owner.id)
        catalogue = Catalogue(database)
        controller = ControllerServiceStub(channels["controller"])
        deletions = Deletions(database, catalogue, objects, servers_of(controller), lambda: uuid.uuid4().hex)
        integrity = Integrity(database, store, catalogue, utc_now, broadcast_transfer, broadcast_model)
        present = PresentObjects(database, store)
        publications = Publications(database, present, objects, utc_now, owner.id, broadcast_model)
        hub, files = hub_of(settings), files_of(settings)
        sources = sources_of(settings, hub, files, channels["quant"])
        health = StoreHealth(store, monotonic)
        waits = RetryBackoffs(monotonic)
        partial_objects = PartialObjects(database, store.parts, objects) if store.parts is not None else None
        part_size, parallel = settings.download_part_bytes, settings.download_parallel_parts
        staging = Staging(store, partial_objects, part_size, parallel, monotonic)
        bandwidth = Bandwidth(settings.download_bytes_per_second, monotonic)
        fetches = Fetches(sources, staging, Room(store, partial_objects, waits), present, bandwidth, monotonic)
        runs = TransferRuns(transfers, publications, health, fetches, changes, waits, partial_objects)
        pauses = Pauses(database, utc_now)
        kept_parts = KeptParts(database, utc_now, timedelta(hours=settings.download_paused_hours))
        worker = Worker(transfers, runs, objects, health, waits, partial_objects, kept_parts)

        def show_store() -> None:
            member.show_part("store", health.usable)
            member.show_part("store.credentials", not health.denied)

        health.on_change(show_store)
        pages = open_pages(settings)
        fits = MemoryFits(
            controller,
            ContractServiceStub(channels["contract"]),
            settings.memory_reserve_bytes,
        )
        search = HubSearch(hub, catalogue, fits)
        has_quant = settings.quant or bool(settings.quant_service_url)
        comparison = SourceComparison(catalogue, fetches, sources)
        starts = Starts(transfers, integrity, sources, comparison, has_quant)
        broadcasts = DownloadBroadcasts(worker, changes)
        downloads = DownloadServicer(starts, transfers, pauses, broadcasts, pages, store, search)
        add_DownloadServiceServicer_to_server(downloads, member.server)
        delivery = Delivery(integrity, catalogue, PartLinks(parts_directory(settings.home)))
        models = CatalogueServicer(catalogue, deletions, delivery, transfers, worker, changes, pages)
        add_CatalogueServiceServicer_to_server(models, member.server)
        checkpoints = Checkpoints(hub, files, bandwidth, monotonic)
        matrices = MatrixFiles(files, bandwidth)
        add_CheckpointServiceServicer_to_server(CheckpointServicer(checkpoints, matrices), member.server)
        member.announce("llamesh.v1.DownloadService", "llamesh.v1.CatalogueService", "llamesh.v1.CheckpointService")

        worker.start()
        stack.push_async_callback(worker.close)
        if database.schema:
            peers = PeerChanges(transfers, catalogue, changes)
            peers.start()
            stack.push_async_callback(peers.close)
        headers = BackgroundTask(
            "read headers of old models",
            OldHeaders(database, store, broadcast_model).read_again,
            report_failure,
            every=READ_AGAIN_SECONDS,
        )
        links = BackgroundTask(
            "remove links of models that are gone", delivery.sweep, report_failure, every=SWEEP_SECONDS
        )
        staged = BackgroundTask(
            "sweep the object store", store.sweep, report_failure, every=STORE_SWEEP_SECONDS, immediately=False
        )
        for task in (headers, links, staged, _handed_over_files(settings, transfers, channels["quant"])):
            task.start()
            stack.push_async_callback(task.close)
        await member.serve()


def _handed_over_files(settings: Settings, transfers: Transfers, quant: grpc.aio.Channel) -> BackgroundTask:
    """Return the task that removes the files that commands have handed over for fetches and jobs that have ended."""

    async def remove() -> None:
        sources = [*await transfers.unended_sources(), *(await sources_of_jobs(quant) if settings.quant else ())]
        await asyncio.to_thread(remove_unused, handed_over_directory(settings.home), sources)

    return BackgroundTask("remove handed over files", remove, report_failure, every=HANDED_OVER_SECONDS)


def store_of(settings: Settings, owner: Owner) -> ObjectStore:
    """Return the object store of the settings, to which this process writes.

    Another mesh of the bucket is taken to have the same LLAMESH_DOWNLOAD_PAUSED_HOURS. A day is the margin between
    the last part and the begin of a pause.
    """
    return models_store(settings, writer=owner.id, kept=timedelta(hours=settings.download_paused_hours, days=1))


def hub_of(settings: Settings) -> HubSource:
    """Return the Hub of the settings."""
    return HubSource(_rules(settings), settings.hf_endpoint, settings.hf_token)


def files_of(settings: Settings) -> FileSource:
    """Return the files that models may be imported from."""
    return FileSource([settings.home / "import", *settings.import_dirs])


def _rules(settings: Settings) -> AddressRules:
    return AddressRules(private_hosts=frozenset(host.lower() for host in settings.source_hosts))


def sources_of(settings: Settings, hub: HubSource, files: FileSource, quant_member: grpc.aio.Channel) -> Sources:
    """Return the sources that the settings allow. A new kind of source is one entry here and one module in `sources`.

    `quant_member` is the channel to the Quant service of this mesh, if it has one.
    """
    rules = _rules(settings)
    https = HttpsSource(rules, http_hosts=settings.http_source_hosts)
    s3 = S3Source(rules, settings.s3_sources)
    place = quant_place(settings)
    bucket = S3Bucket(rules, place, place.settings) if place else None
    models: QuantModels | None = QuantMember(quant_member) if settings.quant else None
    if settings.quant_service_url:
        models = QuantOverHttp(rules, settings.quant_service_url, settings.quant_service_token)
    quant = QuantSource(models, bucket, FileSource([variants_directory(settings.home)]))
    registry = RegistrySource(
        rules, settings.oci_registries, settings.ollama_registry, http_hosts=settings.http_source_hosts
    )
    kinds: dict[str, Source] = {
        "https": https,
        "http": https,
        "file": files,
        "hf": hub,
        "ollama": registry,
        "oci": registry,
        "s3": s3,
        "quant": quant,
    }
    return Sources(kinds, HUB_HOSTS | {hub.host})


def store_owner(settings: Settings, owner: Owner) -> Owner:
    """Return the owner of the lease on the store: this home for a directory, the bucket's address for a bucket."""
    if settings.minio_endpoint:
        place = f"s3://{settings.minio_endpoint}/{settings.minio_bucket}"
        return Owner(place, f"{place}, used by {owner.words}")
    return Owner(owner.id, f"{settings.home / 'objects'}, of {owner.words}")


def _other_store(words: object) -> str:
    return (
        f"the models of this database are kept in another object store, {words}: use that one (MINIO_ENDPOINT and MINIO_BUCKET;"
        " a directory cannot be shared), end that mesh with `llamesh down`, or set DATABASE_URL to a database of its own"
    )
