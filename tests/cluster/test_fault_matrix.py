"""Every member times every fault, under open-loop load without retries: what failed, how long until all was well, nothing done by a person.

`pytest tests/cluster/test_fault_matrix.py -s` prints the matrix; FAULT_MATRIX names a file that it is written to as well.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import httpx
import psutil
import pytest

from tests.cluster.minio_server import MinioServer, minio
from tests.mesh.open_load import OpenLoad, Outcome, chat, status
from tests.mesh.running import RunningMesh, until
from tests.mounts import mounted
from tests.own_postgres import OwnPostgres, own_postgres
from tests.processes import mesh_processes

__all__ = ["minio"]

MODEL = "sentence.gguf"
MEMBERS = ("gateway", "contract", "download", "controller", "envoy", "engine", "llama.cpp")
OUTAGE = 6.0
"""Seconds that a database, a store or a disk is away."""
PATIENCE = 5
"""Seconds that a member may be silent: see LLAMESH_MEMBER_PATIENCE_SECONDS."""
RECOVERY = 60.0
"""Seconds within which everything must be well again by itself."""
_rows: list[str] = []


@dataclass(frozen=True)
class Allowed:
    """Which requests may fail: none, those in flight at the moment of the fault, or those sent before the recovery."""

    inference: str = "none"
    management: str = "none"


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    yield
    table = "\n".join(
        [
            "| member | fault | inference failed | management failed | well again after s |",
            "|---|---|---|---|---|",
            *_rows,
        ]
    )
    print(f"\n{table}")  # noqa: T201 - the matrix is what this module is for
    if file := os.environ.get("FAULT_MATRIX"):
        Path(file).write_text(table + "\n")


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A small disk of its own, which a test can fill."""
    with mounted(Path("/tmp") / f"mesh-disk-{os.getpid()}", "700m") as folder:
        yield folder


@pytest.fixture(scope="module")
def mesh(disk: Path) -> Iterator[RunningMesh]:
    """A mesh on SQLite and a directory, on a disk of its own, with one server of two engines."""
    yield from _mesh(disk / "sqlite" / "home", LLAMESH_MEMBER_PATIENCE_SECONDS=str(PATIENCE))


@pytest.fixture(scope="module")
def mesh_on_servers(database: OwnPostgres, minio: MinioServer, disk: Path) -> Iterator[RunningMesh]:
    """A mesh on PostgreSQL and MinIO."""
    yield from _mesh(disk / "servers" / "home", DATABASE_URL=database.create("mesh"), **minio.settings)


def _mesh(home: Path, **settings: str) -> Iterator[RunningMesh]:
    home.parent.mkdir()
    mesh = RunningMesh(home, **settings)
    try:
        mesh.start()
        mesh.add_model("sentence", MODEL)
        mesh.serve("sentence", model_name=MODEL, replicas=2)
        yield mesh
    finally:
        mesh.stop()
        shutil.rmtree(home.parent, ignore_errors=True)


@pytest.fixture(scope="module")
def database() -> Iterator[OwnPostgres]:
    with own_postgres() as server:
        yield server


class Strike:
    """When the fault struck, by `time.monotonic`: at the start of the `with` block, unless `now` says later."""

    def __init__(self) -> None:
        self.moment = monotonic()

    def now(self) -> None:
        """Say that the fault strikes at this moment."""
        self.moment = monotonic()


@contextmanager
def _measured(mesh: RunningMesh, member: str, fault: str, allowed: Allowed) -> Iterator[Strike]:
    """Run the fault of the `with` block under load; then wait until all is well, check what failed, and note the row."""
    with OpenLoad([chat(mesh, MODEL), status(mesh)]) as load:
        until(lambda: len(load.outcomes) > 20, 30, "the load to run")
        strike = Strike()
        yield strike
        moment = strike.moment
        _until_well(mesh, f"{fault} of {member}")
        well = monotonic()
        sent = len(load.outcomes)
        until(lambda: len(load.outcomes) > sent + 20, 60, "requests after the recovery")
    failed = {kind: load.failures(kind) for kind in ("inference", "management")}
    counts = [_counted(failed[kind]) for kind in ("inference", "management")]
    _rows.append(f"| {member} | {fault} | {counts[0]} | {counts[1]} | {well - moment:.1f} |")
    for kind, outcomes in failed.items():
        late = [outcome for outcome in outcomes if not _may_fail(outcome, getattr(allowed, kind), moment, well)]
        assert late == [], (fault, member, kind, moment, well)


def _counted(outcomes: list[Outcome]) -> str:
    kinds = Counter(outcome.result for outcome in outcomes)
    return ", ".join(f"{count} x {result}" for result, count in kinds.items()) or "0"


def _may_fail(outcome: Outcome, allowed: str, moment: float, well: float) -> bool:
    match allowed:
        case "in flight":
            return outcome.started <= moment <= outcome.ended
        case "until well":
            return outcome.started <= well
        case "refused in words":
            return outcome.started <= well and outcome.result == "503"
    return False


def _trouble(mesh: RunningMesh) -> str:
    """What is not well; empty if health is OK, every engine is ready, and both kinds of request are answered."""
    try:
        with httpx.Client(timeout=2) as client:
            health = client.get(mesh.url("gateway", "/health")).json()
            servers = client.get(
                mesh.url("gateway", "/status"), headers={"authorization": f"Bearer {mesh.token}"}
            ).json()["servers"]
            answer = client.post(
                mesh.url("inference", "/v1/chat/completions"),
                json={"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
            )
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return repr(error)
    if health.get("status") != "HEALTH_STATE_OK":
        return f"health: {health}"
    if not servers or any(server["state"] != "SERVER_STATE_READY" for server in servers):
        return f"servers: {servers}"
    return "" if answer.status_code == 200 else f"chat: {answer.status_code} {answer.text}"


def _until_well(mesh: RunningMesh, after: str) -> None:
    try:
        until(lambda: not _trouble(mesh), RECOVERY, f"everything to be well after {after}")
    except AssertionError as error:
        logs = [mesh.home.parent / "up.log", *sorted((mesh.home / "logs").glob("*.log"))]
        ends = "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)
        raise AssertionError(f"{error}: {_trouble(mesh)}\n{ends}") from error


def _process(mesh: RunningMesh, member: str) -> psutil.Process:
    if member == "llama.cpp":
        return mesh.processes()["engine"].children()[0]
    return mesh.processes()[member]


KILL = {
    "gateway": Allowed(management="in flight"),
    "contract": Allowed(),
    "download": Allowed(),
    "controller": Allowed(management="in flight"),
    # Nobody listens at the ports until the front door is back.
    "envoy": Allowed("until well", "until well"),
    "engine": Allowed("in flight"),
    "llama.cpp": Allowed("in flight"),
}


@pytest.mark.parametrize("member", MEMBERS)
def test_a_killed_member_loses_only_requests_in_flight(mesh: RunningMesh, member: str) -> None:
    victim = _process(mesh, member)
    with _measured(mesh, member, "SIGKILL", KILL[member]):
        victim.kill()
        until(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE, 10, "its end")


HANG = {
    "gateway": Allowed(management="until well"),
    "contract": Allowed(),
    "download": Allowed(),
    "controller": Allowed(management="until well"),
    "envoy": Allowed("until well", "until well"),
    "llama.cpp": Allowed("until well"),
}


@pytest.mark.parametrize("member", HANG)
def test_a_hung_member_is_noticed_and_replaced(mesh: RunningMesh, member: str) -> None:
    victim = _process(mesh, member)
    with _measured(mesh, member, "SIGSTOP", HANG[member]):
        victim.send_signal(signal.SIGSTOP)
        until(lambda: not _runs(victim), RECOVERY, f"{member} to be replaced")


def test_an_engine_whose_supervising_process_hangs_answers_and_is_replaced_if_llama_cpp_dies(mesh: RunningMesh) -> None:
    victim = _process(mesh, "engine")
    with _measured(mesh, "engine", "SIGSTOP, then SIGKILL of llama.cpp", Allowed("until well")):
        (llama,) = victim.children()
        victim.send_signal(signal.SIGSTOP)
        sleep(2)
        llama.kill()
        until(lambda: not _runs(victim), RECOVERY, "the engine to be replaced")


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_full_disk_stops_no_inference_and_ends_by_itself(mesh: RunningMesh, disk: Path) -> None:
    with _measured(mesh, "all", f"disk full for {OUTAGE:g} s", Allowed()), _full(disk):
        sleep(OUTAGE)
    assert mesh.call("POST", "/keys", json={"display_name": "after"}).status_code == 200


@pytest.mark.parametrize("member", ["gateway", "contract", "download", "controller", "engine"])
def test_a_member_killed_on_a_full_disk_is_back_once_there_is_space(mesh: RunningMesh, disk: Path, member: str) -> None:
    allowed = Allowed(KILL[member].inference, "until well")
    victim = _process(mesh, member)
    with _measured(mesh, member, f"SIGKILL, disk full for {OUTAGE:g} s", allowed) as strike, _full(disk):
        strike.now()
        victim.kill()
        sleep(OUTAGE)


@contextmanager
def _full(disk: Path) -> Iterator[None]:
    """Leave no byte free on a disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize(
    "what", ["run/engines", "run/engines/*.json", "run/engines/*.sock", "run/gateway.sock", "run/contract.sock",
             "run/download.sock", "run/controller.sock", "run/waker.sock"],
)  # fmt: skip
def test_a_damaged_run_directory_heals(mesh: RunningMesh, what: str) -> None:
    inference = "until well" if what in ("run/engines", "run/engines/*.sock") else "none"
    management = "until well" if what in ("run/gateway.sock", "run/controller.sock") else "none"
    with _measured(mesh, "all", f"{what} removed", Allowed(inference, management)):
        for path in list(mesh.home.glob(what)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        sleep(1)


def test_garbage_in_the_run_directory_is_survived_by_a_new_controller(mesh: RunningMesh) -> None:
    with _measured(mesh, "controller", "records are garbage, SIGKILL", Allowed("until well", "until well")):
        for path in (mesh.home / "run" / "engines").glob("*.json"):
            path.write_text("{garbage")
        _process(mesh, "controller").kill()
        sleep(1)
    assert len(_engines(mesh)) == 2


def _engines(mesh: RunningMesh) -> list[psutil.Process]:
    return [process for process in mesh_processes(mesh.home) if "engine" in process.cmdline()]


@contextmanager
def _away(database: OwnPostgres, how: str) -> Iterator[None]:
    """Freeze the server, as a network that is cut off does, or stop it."""
    away, back = (database.freeze, database.thaw) if how == "frozen" else (database.stop, database.start)
    away()
    try:
        yield
    finally:
        back()


@pytest.mark.parametrize("how", ["frozen", "stopped"])
def test_without_its_database_the_mesh_serves_on(mesh_on_servers: RunningMesh, database: OwnPostgres, how: str) -> None:
    allowed = Allowed("none", "refused in words")
    with _measured(mesh_on_servers, "all", f"PostgreSQL {how} for {OUTAGE:g} s", allowed), _away(database, how):
        sleep(OUTAGE)


@pytest.mark.parametrize("member", ["engine", "llama.cpp"])
def test_without_its_database_an_engine_that_dies_is_started_again(
    mesh_on_servers: RunningMesh, database: OwnPostgres, member: str
) -> None:
    allowed = Allowed("in flight", "refused in words")
    fault = f"SIGKILL, PostgreSQL frozen for {OUTAGE:g} s"
    victim = _process(mesh_on_servers, member)
    with _measured(mesh_on_servers, member, fault, allowed) as strike, _away(database, "frozen"):
        strike.now()
        victim.kill()
        sleep(OUTAGE)


def test_without_its_store_the_mesh_serves_on(mesh_on_servers: RunningMesh, minio: MinioServer) -> None:
    with _measured(mesh_on_servers, "all", f"MinIO killed for {OUTAGE:g} s", Allowed()):
        minio.stop()
        sleep(OUTAGE)
        minio.start()
