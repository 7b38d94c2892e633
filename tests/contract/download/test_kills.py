"""A process that is killed at any moment of a transfer costs the parts on their way; the model is right and nothing is left behind."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llamesh.v1 import download_pb2 as pb
from tests.contract.conftest import AsCaller, Connect, StartStandings
from tests.contract.download.faults import s3
from tests.contract.download.forks import ForkedReplica, Forks, forks
from tests.contract.download.journal import HEADER, counted, opened, until
from tests.contract.download.moments import MOMENTS
from tests.contract.download.replica import SECONDS
from tests.contract.ranged_source import RangedServer, ranged_server
from tests.files import files_below
from tests.split_models import Parts, part_name
from tests.unit.fake_s3 import FakeS3

__all__ = ["s3"]

SEEDS = range(20)
PARALLEL = 2
FILES = 2


class Case:
    """A kind of store: the size of its parts, which is the smallest, and a model with some parts in each of its files."""

    def __init__(self, part: int) -> None:
        self.part = part
        tensor = 3 * part + (1 << 20)
        files = Parts(FILES, tensor).files()
        self.model = {
            f"/{name}": data[:-tensor] + random.Random(name).randbytes(tensor) for name, data in files.items()
        }
        self.total = sum(map(len, self.model.values()))
        self.digest = hashlib.sha256(self.model[f"/{part_name('tiny', 1, FILES)}"]).hexdigest()

    def most(self, step: str, when: str) -> int:
        """How often a transfer passes a moment. After the last publication comes the record of the model, another moment."""
        if step == "record a part":
            return sum(-(-len(data) // self.part) for data in self.model.values())
        once = step in {"begin", "record the model"} or (step, when) == ("publish a file", "after")
        return 1 if once else FILES


CASES = {"directory": Case(1 << 20), "bucket": Case(5 << 20)}
WAYS = [("parts on their way", ""), ("record a part", "before"), ("publish a file", "after"), *MOMENTS]
"""The moments. The first three come twice: with both kinds of store."""


@pytest.fixture(scope="module")
def program() -> Iterator[Forks]:
    with forks() as running:
        yield running


@pytest.fixture
async def source(kind: str) -> AsyncIterator[RangedServer]:
    async with ranged_server(b"") as server:
        server.files, server.stop_at = CASES[kind].model, CASES[kind].total * 100
        yield server


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture
def kind(seed: int) -> str:
    return list(CASES)[(seed + seed // len(WAYS)) % 2]


@pytest.fixture
async def replica(
    kind: str,
    tmp_path: Path,
    source: RangedServer,
    s3: FakeS3,
    program: Forks,
    connect: Connect,
    as_caller: AsCaller,
    start_standings: StartStandings,
) -> AsyncIterator[ForkedReplica]:
    environment = {
        **(s3.environment if kind == "bucket" else {}),
        "LLAMESH_HTTP_SOURCE_HOSTS": source.host,
        "LLAMESH_DOWNLOAD_PART_BYTES": str(CASES[kind].part),
        "LLAMESH_DOWNLOAD_PARALLEL_PARTS": str(PARALLEL),
    }
    made = ForkedReplica(tmp_path / "home", environment, connect, as_caller("ada", "manage"), start_standings)
    made.forks = program
    yield made
    await made.end(signal.SIGKILL)


async def killed(replica: ForkedReplica, source: RangedServer, moment: tuple[str, str, int], digest: str) -> int:
    """Start the transfer, let its process be killed at the moment, and return how the process ended."""
    if moment[1]:
        replica.moment = moment
    else:
        source.stop_at = moment[2]
    await replica.start()
    asking = asyncio.create_task(replica.download("m1", f"http://{source.host}/{part_name('tiny', 1, FILES)}", digest))
    try:
        if moment[1]:
            # A process that kills itself early may have no time to answer the call that it has carried out.
            return await replica.ended_itself()
        await asking
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await asyncio.wait_for(source.stopped.wait(), SECONDS)
    return await replica.end(signal.SIGKILL)


async def test_a_kill_costs_at_most_the_parts_on_their_way(
    replica: ForkedReplica, source: RangedServer, s3: FakeS3, seed: int, kind: str
) -> None:
    case, chance, (step, when) = CASES[kind], random.Random(seed), WAYS[seed % len(WAYS)]
    number = chance.randint(1, case.most(step, when)) if when else chance.randrange(case.total)
    # A bucket gets the first file under its key, because its digest is known, and copies the second.
    assert await killed(replica, source, (step, when, number), case.digest) == -signal.SIGKILL
    replica.moment = ()
    source.go_on_until(case.total * 100)
    await replica.start()
    found = await replica.ended("m1")
    assert (found.state, found.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert source.sent <= case.total + FILES * HEADER + PARALLEL * case.part + HEADER

    async def alone() -> bool:
        stored = len(s3.objects) + len(files_below(replica.settings.home / "objects"))
        return await counted(database) == (0, 0) and not s3.uploads and stored == FILES

    async with opened(replica.settings) as database:
        await until(alone)
    files = [path.read_bytes() for path in files_below(replica.settings.home / "objects")]
    assert sorted([*s3.objects.values(), *files]) == sorted(case.model.values())
    assert await replica.end(signal.SIGTERM) == 0
