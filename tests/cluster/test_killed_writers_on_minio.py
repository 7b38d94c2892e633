"""A process that is killed with -9 while it stages an object leaves an upload on a real MinIO, which its next process removes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamesh.kit.objects.s3 import S3Store
from llamesh.kit.source_places import StorePlace
from tests.cluster.minio_server import MinioServer, minio
from tests.cluster.s3_server import BUCKET

__all__ = ["minio"]

PROGRAM = """
import asyncio, sys
from pathlib import Path
from llamesh.kit.objects.s3 import S3Store
from llamesh.kit.source_places import StorePlace

async def chunks():
    for _ in range(40):
        yield bytes(1 << 20)
    print("ready", flush=True)
    await asyncio.Event().wait()

async def main():
    store = S3Store(StorePlace.model_validate_json(sys.stdin.readline()), Path(sys.argv[1]), writer="writer")
    await store.stage(chunks())

asyncio.run(main())
"""


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_killed_writer_leaves_nothing_after_its_next_start(
    minio: MinioServer, tmp_path: Path, restarted: bool
) -> None:
    keys = {"access_key": minio.access_key, "secret_key": minio.secret_key}
    values = {"endpoint": minio.endpoint, "bucket": BUCKET, "secure": False, **keys}
    store = S3Store(StorePlace.model_validate(values), tmp_path, writer="writer")
    await store.prepare()
    writer = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    with writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(f"{json.dumps(values)}\n".encode())
        writer.stdin.flush()
        assert writer.stdout.readline() == b"ready\n"
        writer.send_signal(signal.SIGKILL)
    assert len(minio.uploads) == 1
    if restarted:
        # It has forgotten the uploads that its memory had then.
        minio.stop()
        minio.start()
    await store.prepare()
    await store.close()
    assert (minio.uploads, minio.objects()) == ({}, [])
