"""Measures how a model is brought in: from one MinIO to another, and from a web server to a directory.

Each comparison has tools for the same copy beside it, which do not hash (`mc cp`, `rclone copyto`, `curl`, `aria2c`; those that are missing
are left out), and the machine's ceilings: the same ranges read and thrown away, and the same parts written from memory. The slower ceiling
is the reference. Of the programs that write a file only llamesh makes it durable. All servers run on this machine and share its processors
with the program under test.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from minio import Minio

from benchmarks import processes
from benchmarks.report import Row, Table
from tests.cluster.minio_server import BUCKET, MinioServer
from tests.mesh.running import ROOT, RunningMesh, running_mesh
from tests.unit.gguf_bytes import File, tensor

GIB = 1 << 30
KEY = "bench.gguf"
PART = 16 << 20
PARALLEL = 4
COLUMNS = ("s per GiB", "CPU s per GiB", "peak MiB")
READ, WRITE, DURABLE = "ceiling: reads alone", "ceiling: writes alone", "ceiling: durable writes alone"


@dataclass(frozen=True)
class Cost:
    """What one copy took: seconds, CPU seconds of the program under test, and its peak memory in bytes."""

    seconds: float
    cpu: float
    peak: int


def measure(folder: Path, *, size: int, rounds: int, chance: random.Random) -> list[Table]:
    """Measure both comparisons with a model of `size` bytes."""
    source, target = _server(folder / "source"), _server(folder / "target")
    try:
        from_, to = source.client, target.client
        from_.make_bucket(BUCKET)
        to.make_bucket(BUCKET)
        path = write_model(folder / KEY, size)
        from_.fput_object(BUCKET, KEY, str(path), part_size=PART)
        with path.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        path.unlink()
        from_.set_bucket_policy(BUCKET, _readable())
        return [
            _between_stores(folder, source, target, digest, size, rounds, chance),
            _into_a_directory(folder, source, size, rounds, chance),
        ]
    finally:
        source.stop()
        target.stop()


def write_model(path: Path, size: int) -> Path:
    """Write a valid GGUF file with one tensor of `size` bytes, a multiple of 32."""
    header = replace(File(), tensors=(tensor("token_embd.weight", [size // 4], 0, 0),), data=b"").build()
    block = random.Random(1).randbytes(1 << 20)
    with path.open("wb") as file:
        file.write(header)
        for offset in range(0, size, len(block)):
            file.write(block[: size - offset])
    return path


def _between_stores(
    folder: Path,
    source: MinioServer,
    target: MinioServer,
    digest: str,
    size: int,
    rounds: int,
    chance: random.Random,
) -> Table:
    place = {"endpoint": source.endpoint, "bucket": BUCKET, "access_key": source.access_key, "secure": False}
    places = json.dumps({"bench": place | {"secret_key": source.secret_key}})
    allowed = {"LLAMESH_S3_SOURCES": places, "LLAMESH_HTTP_SOURCE_HOSTS": source.endpoint}
    with running_mesh(LLAMESH_LOG_LEVEL="warning", **target.settings, **allowed) as mesh:
        copies: dict[str, Callable[[], Cost]] = {
            "llamesh (SHA-256)": lambda: _pulled(mesh, f"s3://bench/{KEY}"),
            "llamesh (SHA-256 known before)": lambda: _pulled(mesh, f"s3://bench/{KEY}", digest),
            READ: lambda: _alone(lambda: _read(source.client)),
            WRITE: lambda: _alone(lambda: _write(target.client, size)),
        }
        if mc := program("mc"):
            hosts = {
                f"MC_HOST_{name}": f"http://{server.access_key}:{server.secret_key}@{server.endpoint}"
                for name, server in (("source", source), ("target", target))
            }
            command = [mc, "--config-dir", str(folder / "mc"), "cp", "--quiet"]
            copies["mc cp"] = lambda: _run([*command, f"source/{BUCKET}/{KEY}", f"target/{BUCKET}/{KEY}"], hosts)
        if rclone := program("rclone"):
            remotes = _remotes(source=source, target=target)
            copy = [rclone, "copyto", "--config", os.devnull, f"source:{BUCKET}/{KEY}", f"target:{BUCKET}/{KEY}"]
            copies["rclone copyto"] = lambda: _run(copy, remotes)

        def clear() -> None:
            _forget(mesh)
            target.empty()

        return _table("From one MinIO to another", WRITE, copies, clear, size, rounds, chance)


def _into_a_directory(folder: Path, source: MinioServer, size: int, rounds: int, chance: random.Random) -> Table:
    address, path = f"http://{source.endpoint}/{BUCKET}/{KEY}", folder / "copy.gguf"
    with running_mesh(LLAMESH_LOG_LEVEL="warning", LLAMESH_HTTP_SOURCE_HOSTS=source.endpoint) as mesh:
        copies: dict[str, Callable[[], Cost]] = {
            "llamesh (SHA-256)": lambda: _pulled(mesh, address),
            READ: lambda: _alone(lambda: _read(source.client)),
            DURABLE: lambda: _alone(lambda: _write_file(path, size)),
        }
        if curl := program("curl"):
            copies["curl"] = lambda: _run([curl, "--silent", "--fail", "--output", str(path), address])
        if aria2c := program("aria2c"):
            options = [
                f"--max-connection-per-server={PARALLEL}",
                f"--split={PARALLEL}",
                "--allow-overwrite=true",
                "--quiet",
            ]
            copies["aria2c"] = lambda: _run([aria2c, *options, "--dir", str(folder), "--out", path.name, address])

        def clear() -> None:
            _forget(mesh)
            path.unlink(missing_ok=True)

        return _table("From a web server to a directory", DURABLE, copies, clear, size, rounds, chance)


def _table(
    title: str,
    reference: str,
    copies: dict[str, Callable[[], Cost]],
    clear: Callable[[], None],
    size: int,
    rounds: int,
    chance: random.Random,
) -> Table:
    table = Table(f"{title}, {size / GIB:g} GiB", (reference,), COLUMNS)
    for _ in range(rounds):
        for name in chance.sample(list(copies), len(copies)):
            cost = copies[name]()
            clear()
            table.add(Row(name, (cost.seconds * GIB / size, cost.cpu * GIB / size, cost.peak / (1 << 20)), 1, 0))
    return table


def _pulled(mesh: RunningMesh, source: str, digest: str = "") -> Cost:
    """Fetch the model through the mesh. With its digest, a store gets it under its key and copies nothing."""
    pid = mesh.processes()["download"].pid
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")
    before, began = processes.cpu_seconds([pid]), time.monotonic()
    answer = mesh.call("POST", "/download/bench", "download", json={"source": source, "sha256": digest})
    assert answer.status_code == 200, answer.text
    while (found := mesh.call("GET", "/status/bench", "download").json())["state"] != "DOWNLOAD_STATE_SUCCEEDED":
        assert found["state"] != "DOWNLOAD_STATE_FAILED", found
        time.sleep(0.05)
    seconds = time.monotonic() - began
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return Cost(seconds, processes.cpu_seconds([pid]) - before, peak)


def _forget(mesh: RunningMesh) -> None:
    mesh.call("DELETE", "/models/bench")


def _run(command: list[str], environment: dict[str, str] | None = None) -> Cost:
    """Run a program to its end."""
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    return Cost(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss << 10)


def _alone(work: Callable[[], None]) -> Cost:
    """Run work of this process. Its memory says nothing."""
    before, began = time.process_time(), time.monotonic()
    work()
    return Cost(time.monotonic() - began, time.process_time() - before, 0)


def _read(client: Minio) -> None:
    """Read all ranges of the object, PARALLEL at a time, and throw them away."""
    size = client.stat_object(BUCKET, KEY).size or 0

    def take(offset: int) -> None:
        answer = client.get_object(BUCKET, KEY, offset=offset, length=min(PART, size - offset))
        with contextlib.closing(answer):
            while answer.read(1 << 20):
                pass
            answer.release_conn()

    with ThreadPoolExecutor(PARALLEL) as threads:
        list(threads.map(take, range(0, size, PART)))


class _Repeated(io.RawIOBase):
    """One block, again and again, `size` bytes in all."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._block = random.Random(2).randbytes(PART)

    def read(self, size: int = -1) -> bytes:
        taken = min(size if size >= 0 else self._left, self._left, len(self._block))
        self._left -= taken
        return self._block[:taken]


def _write(client: Minio, size: int) -> None:
    """Write an object of the same size from memory, PARALLEL parts at a time."""
    data = cast("BinaryIO", _Repeated(size))
    client.put_object(BUCKET, KEY, data, size, part_size=PART, num_parallel_uploads=PARALLEL)


def _write_file(path: Path, size: int) -> None:
    """Write a file of the same size from memory, PARALLEL parts at a time, each durable before the next."""
    block = random.Random(2).randbytes(1 << 20)

    def part(offset: int) -> None:
        for at in range(offset, min(offset + PART, size), len(block)):
            os.pwrite(descriptor, block, at)
        os.fsync(descriptor)

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        with ThreadPoolExecutor(PARALLEL) as threads:
            list(threads.map(part, range(0, size, PART)))
    finally:
        os.close(descriptor)


def program(name: str) -> str:
    """Return the path of a program, in .tools/bin (`python tools/build.py mc rclone`) or on PATH; empty if it is missing."""
    built = ROOT / ".tools" / "bin" / name
    return str(built) if built.exists() else shutil.which(name) or ""


def _server(folder: Path) -> MinioServer:
    folder.mkdir()
    server = MinioServer(folder)
    server.start()
    return server


def _remotes(**servers: MinioServer) -> dict[str, str]:
    """Return rclone's settings of S3 servers."""

    def settings() -> Iterator[tuple[str, str]]:
        for name, server in servers.items():
            values = {
                "TYPE": "s3",
                "PROVIDER": "Minio",
                "ENDPOINT": f"http://{server.endpoint}",
                "ACCESS_KEY_ID": server.access_key,
                "SECRET_ACCESS_KEY": server.secret_key,
            }
            yield from ((f"RCLONE_CONFIG_{name.upper()}_{key}", value) for key, value in values.items())

    return dict(settings())


def _readable() -> str:
    """Return a policy with which anybody may read the objects."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{BUCKET}/*"],
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
