"""Probes the servers that the settings name: PostgreSQL, the S3 server, the sources of models.

For `llamesh doctor`, which may not import the kit.

`python -m llamesh.kit.readiness` prints one JSON list. Invariant: it changes nothing, shows no secret, and ends within about 22 s.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import sys
import time
from dataclasses import asdict

from llamesh.kit.config import Settings
from llamesh.kit.config_loading import readable_settings
from llamesh.kit.own_places import models_place
from llamesh.kit.postgres import PostgresRefusedError, read_address
from llamesh.kit.source_readiness import sources
from llamesh.kit.store_report import SECONDS, StoreReport


async def database(settings: Settings) -> StoreReport | None:
    """Probe PostgreSQL; return None if SQLite files are used."""
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    if not url:
        return None
    import asyncpg

    address = read_address(url)
    fix = "start it, or correct DATABASE_URL; unset it for SQLite files below LLAMESH_HOME"
    try:
        connection = await address.connect("public", SECONDS, command_seconds=SECONDS)
        try:
            began = time.time()
            told, version = await connection.fetchrow(
                "SELECT extract(epoch FROM clock_timestamp())::float8, current_setting('server_version')"
            )
            offset = told - (began + time.time()) / 2
        finally:
            await connection.close(timeout=1)
    except PostgresRefusedError as error:
        return StoreReport("database", f"{address.place} refuses: {error}", "", "correct DATABASE_URL")
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        words = str(error) or f"no answer within {SECONDS:g} s"
        return StoreReport("database", f"PostgreSQL at {address.place} does not answer: {words}", "", fix)
    return StoreReport("database", "", f"PostgreSQL {version} at {address.place}", clock_seconds=offset)


def objects(settings: Settings) -> StoreReport | None:
    """Probe the S3 server; return None if models are stored in a directory."""
    place = models_place(settings)
    if place is None:
        return None
    import certifi
    import urllib3
    from minio import Minio
    from minio.error import MinioException

    server = f"S3 at {place.endpoint}"
    pool = urllib3.PoolManager(
        timeout=SECONDS, retries=False, cert_reqs="CERT_REQUIRED", ca_certs=certifi.where(), maxsize=1
    )
    try:
        scheme = "https" if place.secure else "http"
        date = pool.request("HEAD", f"{scheme}://{place.endpoint}/").headers.get("date", "")
        client = Minio(
            place.endpoint,
            access_key=place.access_key.get_secret_value(),
            secret_key=place.secret_key.get_secret_value(),
            secure=place.secure,
            http_client=pool,
        )
        there = client.bucket_exists(place.bucket)
    except urllib3.exceptions.HTTPError as error:
        fix = "start it, or correct MINIO_ENDPOINT and MINIO_SECURE"
        return StoreReport("object store", f"{server} does not answer: {str(error).rpartition(': ')[2]}", "", fix)
    except (MinioException, ValueError) as error:
        words = getattr(error, "code", "") or str(error)
        fix = "correct MINIO_ACCESS_KEY, MINIO_SECRET_KEY and MINIO_BUCKET"
        return StoreReport("object store", f"{server} refuses: {words}", "", fix)
    finally:
        pool.clear()
    try:
        offset = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError):
        offset = None
    bucket = f"bucket {place.bucket}" + ("" if there else " (is created at the start)")
    return StoreReport("object store", "", f"{server}, {bucket}", clock_seconds=offset)


def main() -> int:
    """Print the reports as JSON."""
    settings, _ = readable_settings()
    found = [asyncio.run(database(settings)), objects(settings), *sources(settings)]
    sys.stdout.write(json.dumps([asdict(answer) for answer in found if answer]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
