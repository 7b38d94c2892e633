"""A whole mesh whose PostgreSQL is frozen, stopped, or will not have it: what runs goes on, the rest is said in words and bounded time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import jwt
import pytest

from tests.mesh.running import ADMIN, COMMAND_SECONDS, RunningMesh, running_mesh, until
from tests.own_postgres import PASSWORD, OwnPostgres, own_postgres
from tests.ports import free_ports

BODY = {"model": "sentence.gguf", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
SECONDS = 30.0
"""More than any answer takes on a busy machine; without deadlines it was a minute and more."""
DATABASE_SECONDS = "8"
"""LLAMESH_DATABASE_SECONDS of these tests: more than a healthy PostgreSQL takes on a busy machine, and far less than `SECONDS`."""


@pytest.fixture(scope="module")
def postgres_of_the_mesh() -> Iterator[OwnPostgres]:
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def mesh(postgres_of_the_mesh: OwnPostgres) -> Iterator[RunningMesh]:
    with running_mesh(
        DATABASE_URL=postgres_of_the_mesh.create("mesh"),
        LLAMESH_DATABASE_SECONDS=DATABASE_SECONDS,
        JWT_ALGORITHM="EdDSA",
    ) as running:
        running.add_model("sentence", "sentence.gguf")
        running.serve("sentence", model_name="sentence.gguf")
        yield running


@pytest.fixture(scope="module")
def metered_key(mesh: RunningMesh) -> str:
    """A key whose contract allows two requests at the same time."""
    contract = mesh.call("POST", "/contracts", "contract", json={"display_name": "two", "max_concurrent_requests": 2})
    assert contract.status_code == 200, contract.text
    key = mesh.call("POST", "/keys", json={"display_name": "k", "contract_id": contract.json()["contract_id"]})
    assert key.status_code == 200, key.text
    return str(key.json()["token"])


def chat(mesh: RunningMesh, token: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=BODY, headers=headers, timeout=SECONDS)


def database_health(mesh: RunningMesh) -> str:
    report = mesh.http.get(mesh.url("gateway", "/health"), timeout=SECONDS).json()
    return str({item["name"]: item["status"] for item in report["components"]}["database"])


REFUSED: tuple[tuple[str, str, str, dict[str, str] | None], ...] = (
    ("POST", "/auth/token", "gateway", ADMIN),
    ("GET", "/keys", "gateway", None),
    ("GET", "/decisions", "contract", None),
    ("POST", "/download/other", "download", {"source": "https://models.example/a.gguf"}),
)
"""Calls that need the database."""


@pytest.mark.parametrize("how", ["frozen", "stopped"])
def test_running_servers_go_on_without_the_database(
    mesh: RunningMesh, postgres_of_the_mesh: OwnPostgres, metered_key: str, how: str
) -> None:
    assert mesh.token
    assert chat(mesh, metered_key).status_code == 200
    until(lambda: database_health(mesh) == "HEALTH_STATE_OK", 30, "a database that answers")
    members = {name: mesh.processes()[name].pid for name in ("gateway", "contract", "download", "controller")}
    if how == "frozen":
        postgres_of_the_mesh.freeze()
    else:
        postgres_of_the_mesh.stop()
    try:
        until(lambda: database_health(mesh) == "HEALTH_STATE_DOWN", SECONDS, "health to know")
        for token in ("", metered_key):
            answer = chat(mesh, token)
            assert answer.status_code == 200, answer.text
        began = time.monotonic()
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda call: mesh.call(*call[:3], json=call[3], timeout=SECONDS).json(), REFUSED))
        for (_, path, _, _), refused in zip(REFUSED, answers, strict=True):
            assert refused["code"] == 14, (path, refused)
            assert "COMPONENT_UNAVAILABLE" in str(refused["details"]), refused
            assert "'component': 'database'" in str(refused["details"]), refused
            assert "RetryInfo" in str(refused["details"]), refused
        assert time.monotonic() - began < SECONDS
        servers = mesh.call("GET", "/status").json()["servers"]
        assert [server["state"] for server in servers] == ["SERVER_STATE_READY"]
        # An engine that is killed is started again, and a request that comes meanwhile is held for it.
        old = mesh.processes()["engine"]
        old.kill()
        until(lambda: mesh.processes().get("engine") not in (None, old), SECONDS, "one in the place of the killed one")
        until(lambda: chat(mesh, metered_key).status_code == 200, SECONDS, "an answer of it")
    finally:
        if how == "frozen":
            postgres_of_the_mesh.thaw()
        else:
            postgres_of_the_mesh.start()
    until(lambda: database_health(mesh) == "HEALTH_STATE_OK", SECONDS, "health to know")
    until(lambda: mesh.call("GET", "/keys").status_code == 200, SECONDS, "the keys")
    login = mesh.url("gateway", "/auth/token")
    until(lambda: mesh.http.post(login, json=ADMIN).status_code == 200, SECONDS, "a login")
    assert {name: mesh.processes()[name].pid for name in members} == members, "a member was started again"

    def counted() -> bool:
        usage = mesh.call("GET", "/usage", "contract").json().get("usage", [])
        return sum(int(row["requests"]) for row in usage) >= 3

    until(counted, SECONDS, "the usage of the outage")


def test_the_public_keys_are_published(mesh: RunningMesh) -> None:
    answer = mesh.http.get(mesh.url("gateway", "/.well-known/jwks.json"))
    assert answer.status_code == 200, answer.text
    assert "private" not in answer.text
    assert all("d" not in key and "k" not in key for key in answer.json()["keys"])
    key = jwt.PyJWKSet.from_dict(answer.json())[jwt.get_unverified_header(mesh.token)["kid"]]
    assert jwt.decode(mesh.token, key, ["EdDSA"], audience="llamesh")["sub"] == "admin"


def test_a_mesh_that_starts_before_its_database_waits_for_it(postgres_of_the_mesh: OwnPostgres) -> None:
    url = postgres_of_the_mesh.create("late")
    postgres_of_the_mesh.stop()
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))
    mesh = RunningMesh(folder / "home", DATABASE_URL=url, LLAMESH_DATABASE_SECONDS=DATABASE_SECONDS)
    try:
        with ThreadPoolExecutor() as pool:
            starting = pool.submit(mesh.start)
            logs = [mesh.home / "logs" / f"{name}.log" for name in ("gateway", "contract", "download", "controller")]
            try:
                until(lambda: all(_says(log, "waiting for the database") for log in logs), 60, "all members to wait")
                assert not starting.done()
            finally:
                postgres_of_the_mesh.start()
            starting.result()
        assert all(log.read_text().count('"event": "listening"') == 1 for log in logs), "a member was started again"
        assert mesh.token
    finally:
        mesh.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _says(log: Path, words: str) -> bool:
    return log.exists() and words in log.read_text()


@pytest.fixture(scope="module")
def guarded() -> Iterator[OwnPostgres]:
    """A PostgreSQL that asks for passwords."""
    with own_postgres() as server:
        server.create("mesh")
        server.ask_for_passwords()
        yield server


@pytest.mark.parametrize(
    ("database", "password", "parameters", "words"),
    [
        ("mesh", "wrong", "", "password authentication failed"),
        ("nowhere", PASSWORD, "", 'database "nowhere" does not exist'),
        ("mesh", PASSWORD, "sslmode=require", "does not speak TLS"),
        ("mesh", PASSWORD, "sslmod=require", "'sslmod'"),
    ],
)
def test_a_start_that_no_retry_cures_ends_with_the_cause(
    guarded: OwnPostgres, database: str, password: str, parameters: str, words: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        names = ("INFERENCE", "GATEWAY", "CONTRACT", "DOWNLOAD")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LLAMESH_", "JWT_"))},
            "LLAMESH_HOME": str(Path(folder) / "home"),
            "DATABASE_URL": guarded.url(database, password, parameters),
            **{f"LLAMESH_{name}_PORT": str(port) for name, port in zip(names, free_ports(4), strict=True)},
        }
        ended = subprocess.run(
            [sys.executable, "-m", "llamesh.cli.main", "up"],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    said = ended.stdout + ended.stderr
    assert ended.returncode in (1, 2), said
    assert words in said
    assert "DATABASE_URL" in said
    for stranger in ("sqlalche.me", "Traceback", password):
        assert stranger not in said


def test_a_start_names_the_reason_while_it_waits() -> None:
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        database, *ports = free_ports(5)
        names = ("INFERENCE", "GATEWAY", "CONTRACT", "DOWNLOAD")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LLAMESH_", "JWT_"))},
            "LLAMESH_HOME": str(Path(folder) / "home"),
            "DATABASE_URL": f"postgresql://ada:{PASSWORD}@127.0.0.1:{database}/mesh",
            **{f"LLAMESH_{name}_PORT": str(port) for name, port in zip(names, ports, strict=True)},
        }

        def llamesh(*arguments: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "llamesh.cli.main", *arguments]
            return subprocess.Popen(
                command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )

        # Whether one member "waits" or several "wait" depends on who got so far when it was looked.
        words = f" for the database at 127.0.0.1:{database}: the database does not answer"
        remedy = "start it, or correct DATABASE_URL"
        starting = llamesh("up", "--detach")
        try:
            assert starting.stdout is not None
            said = [next(line for line in starting.stdout if words in line), next(starting.stdout)]
            assert starting.poll() is None
            assert remedy in said[1]
            explained, _ = llamesh("doctor").communicate(timeout=COMMAND_SECONDS)
            assert words in explained
            assert remedy in explained
            assert PASSWORD not in explained + "".join(said)
        finally:
            llamesh("down").communicate(timeout=COMMAND_SECONDS)
            starting.communicate(timeout=COMMAND_SECONDS)
        assert not (Path(folder) / "home" / "run").exists()
