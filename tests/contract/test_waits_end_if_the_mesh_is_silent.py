"""A command that waits says that the mesh does not answer, ends if it stays silent, and goes on if it answers again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.client import errors
from llamesh.client.sync import Client
from llamesh.v1 import download_pb2, gateway_pb2, quant_pb2, server_pb2
from tests.contract.fake_quant_service import RUNNING, SUCCEEDED, FakeQuantService
from tests.contract.fakes import FakeGateway

Capture = pytest.CaptureFixture[str]
GONE = grpc.StatusCode.UNAVAILABLE
PULL = ["pull", "https://models.example/x.gguf"]
MANY = 200
"""More tries than the shortened time allows."""


class Quant(FakeQuantService):
    """Its first watch breaks off after the state of the job, and `broken` further ones before it."""

    broken = MANY
    watches = 0

    def WatchQuantJobs(self, request: Any, context: Any) -> Iterator[quant_pb2.WatchQuantJobsResponse]:
        self.watches += 1
        if 1 < self.watches <= 1 + self.broken:
            context.abort(GONE, "the connection broke")
        state = RUNNING if self.watches == 1 else SUCCEEDED
        yield quant_pb2.WatchQuantJobsResponse(job=quant_pb2.QuantJob(job_id="job_1", state=state))
        if self.watches == 1:
            context.abort(GONE, "the connection broke")


@pytest.fixture
def quant() -> Quant:
    return Quant()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr("llamesh.cli.silence.MAX_SILENCE", 0.5)
    monkeypatch.setattr("llamesh.cli.silence.MIN_TOLD", 0.01)
    for package in ("aio", "sync"):
        monkeypatch.setattr(f"llamesh.client.{package}.watching.MAX_RECONNECT", 0.1)


def state(of: download_pb2.DownloadState.ValueType, done: int = 0) -> gateway_pb2.WatchResponse:
    now = download_pb2.Download(model_uuid="x.gguf", state=of, bytes_done=done, bytes_total=100 if done else 0)
    now.create_time.seconds = 1
    return gateway_pb2.WatchResponse(download=now)


def ready() -> gateway_pb2.WatchResponse:
    return gateway_pb2.WatchResponse(
        server=server_pb2.Server(server_uuid="s1", state=server_pb2.SERVER_STATE_READY), resume_token="1"
    )


@pytest.mark.parametrize("words", [PULL, ["run", "https://models.example/x.gguf", "Hi"], ["status", "--watch"]])
def test_a_wait_for_a_mesh_that_has_gone_ends_as_every_command_without_a_mesh(
    gateway: FakeGateway, capsys: Capture, words: list[str]
) -> None:
    gateway.watch_scripts = [[state(download_pb2.DOWNLOAD_STATE_RUNNING, 40)], *[[GONE]] * MANY]
    gateway.watch_scripts[0].append(GONE)
    assert run(words) == Exit.UNAVAILABLE
    said = capsys.readouterr().err
    assert said.count("the mesh has not answered for") == 1
    assert "goes on fetching x.gguf: `" in said or "status" in words
    assert "the mesh goes on fetching x.gguf: `llamesh downloads" not in said
    assert ("it is not known whether the mesh goes on fetching x.gguf" in said) == ("status" not in words)
    assert "does not answer\n" in said


def test_a_wait_goes_on_if_the_mesh_answers_again(gateway: FakeGateway, capsys: Capture) -> None:
    done = state(download_pb2.DOWNLOAD_STATE_SUCCEEDED, 100)
    gateway.watch_scripts = [[state(download_pb2.DOWNLOAD_STATE_RUNNING, 40), GONE], [GONE], [GONE], [done]]
    run(PULL)
    said = capsys.readouterr().err
    assert "the mesh answers again" in said
    assert "100%" in said
    assert "not known" not in said


def test_a_terminal_shows_for_how_long_the_mesh_has_not_answered(
    gateway: FakeGateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    gateway.watch_scripts = [[state(download_pb2.DOWNLOAD_STATE_RUNNING, 40), GONE], *[[GONE]] * MANY]
    assert run(PULL) == Exit.UNAVAILABLE
    lines = capsys.readouterr().err.split("\r")
    assert any("no answer for" in line and "of 100" not in line for line in lines)


def test_ctrl_c_while_the_mesh_is_silent_does_not_say_that_it_goes_on(
    gateway: FakeGateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llamesh.cli.progress.ProgressLine.say", lambda _, words: words and interrupted(words))
    gateway.watch_scripts = [[state(download_pb2.DOWNLOAD_STATE_RUNNING, 40), GONE], *[[GONE]] * MANY]
    assert run(PULL) == Exit.INTERRUPTED
    assert "it is not known whether the mesh goes on fetching x.gguf" in capsys.readouterr().err


def test_a_wait_for_a_job_ends_too(quant: Quant, capsys: Capture) -> None:
    assert run(["jobs", "watch", "job_1"]) == Exit.UNAVAILABLE
    said = capsys.readouterr().err
    assert "the mesh has not answered for" in said
    assert "it is not known whether the job goes on: `llamesh jobs watch job_1`" in said


def test_a_wait_for_a_job_goes_on_if_the_mesh_answers_again(quant: Quant, capsys: Capture) -> None:
    quant.broken = 3
    assert run(["jobs", "watch", "job_1"]) == Exit.OK
    assert "the mesh answers again" in capsys.readouterr().err


def test_a_client_has_no_bound_unless_its_caller_sets_one(gateway: FakeGateway, url: str) -> None:
    told: list[float] = []
    with Client(url, "token") as mesh:
        mesh.silence.told = told.append
        gateway.watch_scripts = [*[[GONE]] * 8, [ready()]]
        assert mesh.servers.wait_ready("s1").state == server_pb2.SERVER_STATE_READY
        assert told[-1] == 0
        assert max(told) > 0
        mesh.silence.max_seconds = 0.3
        gateway.watch_scripts = [[GONE]] * MANY
        with pytest.raises(errors.Unavailable):
            mesh.servers.wait_ready("s1")


def test_a_mesh_that_refuses_answers(gateway: FakeGateway, url: str) -> None:
    told: list[float] = []
    with Client(url, "token") as mesh:
        mesh.silence.told = told.append
        gateway.watch_scripts = [*[["TOO_MANY_WATCHES"]] * 4, [ready()]]
        mesh.servers.wait_ready("s1")
    assert told == []
