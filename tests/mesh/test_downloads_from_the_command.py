"""A download and the command that waits for it: it shows progress, its wait may end and go on, and it cancels, retries and removes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamesh.cli.failure import Exit
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh, until
from tests.mesh.slow_source import SlowSource, slow_source
from tests.terminal import terminal

COMMAND = (sys.executable, "-P", "-m", "llamesh.cli.main")


@pytest.fixture(scope="module")
def one_source() -> Iterator[SlowSource]:
    with slow_source() as running:
        yield running


@pytest.fixture
def source(one_source: SlowSource) -> SlowSource:
    """The slow source, of which this test knows nothing yet."""
    one_source.go_on.clear()
    one_source.asked.clear()
    return one_source


@pytest.fixture(scope="module")
def mesh(one_source: SlowSource) -> Iterator[RunningMesh]:
    """A mesh of its own that may fetch from the slow source."""
    with running_mesh(LLAMESH_HTTP_SOURCE_HOSTS=one_source.host) as running:
        yield running


@pytest.fixture
def user(mesh: RunningMesh, tmp_path: Path) -> dict[str, str]:
    """A person on this machine who is logged in."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "LLAMESH_HOME": str(mesh.home),
        "LLAMESH_TOKEN": mesh.token,
    }


def llamesh(user: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [*COMMAND, *words], env=user, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )


@contextmanager
def waiting(user: dict[str, str], *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command that waits, on pipes; it ends with the block."""
    process = subprocess.Popen([*COMMAND, *words], env=user, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def shown(user: dict[str, str], model: str) -> dict[str, Any]:
    """A download as `llamesh downloads` lists it; empty if it does not."""
    listed = json.loads(llamesh(user, "downloads", "-o", "json").stdout)
    return next((item for item in listed if item["model_uuid"] == model), {})


def half_there(user: dict[str, str], model: str) -> None:
    until(lambda: shown(user, model).get("bytes_done", 0) >= 4 * 2**20, 60, f"half of {model}")


def verified(user: dict[str, str], source: SlowSource, model: str) -> None:
    """The whole file is a model, and its digest is the one of what was sent."""
    (found,) = [item for item in json.loads(llamesh(user, "models", "-o", "json").stdout) if item["name"] == model]
    assert found["sha256"] == hashlib.sha256(source.content(model)).hexdigest()


def test_a_wait_that_is_killed_goes_on_with_the_command_that_ctrl_c_printed(
    user: dict[str, str], source: SlowSource
) -> None:
    model = "killed.gguf"
    with waiting(user, "pull", source.url(model)) as pull:
        half_there(user, model)
        pull.send_signal(signal.SIGINT)
        _, said = pull.communicate(timeout=COMMAND_SECONDS)
        assert pull.returncode == Exit.INTERRUPTED
    command = re.findall(r"`llamesh ([^`]*)` waits for it again", said)
    assert command == [f"pull --uuid {model}"]
    with waiting(user, *command[0].split()) as again:
        assert again.stderr is not None
        assert re.match(r"killed.gguf +[0-9]+%", again.stderr.readline())
        again.kill()
        again.wait(60)
    assert shown(user, model)["state"] == "RUNNING"
    with waiting(user, *command[0].split()) as last:
        source.go_on.set()
        answer, _ = last.communicate(timeout=COMMAND_SECONDS)
        assert last.returncode == Exit.OK
    assert model in answer
    # The killed commands cost nothing: the file was sent once.
    assert source.asked == [model]
    verified(user, source, model)


def test_a_wait_outlives_the_process_that_fetches(mesh: RunningMesh, user: dict[str, str], source: SlowSource) -> None:
    model = "resumed.gguf"
    with waiting(user, "pull", source.url(model)) as pull:
        half_there(user, model)
        mesh.processes()["download"].kill()
        source.go_on.set()
        pull.communicate(timeout=COMMAND_SECONDS)
        assert pull.returncode == Exit.OK
    assert (shown(user, model)["resume_count"], source.asked) == (1, [model, model])
    verified(user, source, model)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_shows_percent_rate_and_time_left_in_one_line(
    user: dict[str, str], source: SlowSource, columns: int
) -> None:
    model = f"wide{columns}.gguf"
    with terminal(["pull", source.url(model)], columns, user) as screen:
        drawn = " ".join(screen.until("left"))
        assert re.search(r" [0-9]+%  [0-9.]+ MiB of 8.0 MiB  [0-9.]+ [KM]iB/s  [0-9]+m?[0-9]*s left", drawn)
        assert len(screen.lines) == 1
        source.go_on.set()
        assert screen.end() == Exit.OK
    assert "left" not in "\n".join(screen.lines)


def test_a_pipe_gets_a_plain_line_for_each_step(user: dict[str, str], source: SlowSource) -> None:
    with waiting(user, "pull", source.url("piped.gguf")) as pull:
        half_there(user, "piped.gguf")
        source.go_on.set()
        _, said = pull.communicate(timeout=COMMAND_SECONDS)
        assert pull.returncode == Exit.OK
    assert "\r" not in said
    assert "\x1b" not in said
    percents = [int(re.findall(r"^piped.gguf +([0-9]+)%  ", line)[0]) for line in said.splitlines()]
    assert percents == sorted(percents)
    # No two lines of one tenth, however often progress is told.
    assert len({percent // 10 for percent in percents}) == len(percents)
    assert percents[-1] == 100


def test_a_download_is_cancelled_tried_again_and_removed(user: dict[str, str], source: SlowSource) -> None:
    model = "ended.gguf"
    with waiting(user, "pull", source.url(model)) as pull:
        half_there(user, model)
        refused = llamesh(user, "downloads", "rm", model)
        assert refused.returncode == Exit.REFUSED
        assert f"the download of {model} is RUNNING: cancel it first" in refused.stderr
        assert "llamesh downloads cancel" in refused.stderr
        assert "CANCELLED" in llamesh(user, "downloads", "cancel", model).stdout
        _, said = pull.communicate(timeout=COMMAND_SECONDS)
        assert pull.returncode == Exit.FAILED
        assert f"the download of {model} was cancelled" in said
    assert model not in llamesh(user, "models").stdout
    source.go_on.set()
    retried = llamesh(user, "downloads", "retry", model, "-o", "json")
    assert json.loads(retried.stdout)["state"] == "SUCCEEDED"
    assert json.loads(llamesh(user, "downloads", "rm", model, "-o", "json").stdout)["model_uuid"] == model
    assert shown(user, model) == {}
    verified(user, source, model)
    for verb in ("rm", "retry", "cancel"):
        missing = llamesh(user, "downloads", verb, model)
        assert (missing.returncode, "there is no download" in missing.stderr) == (Exit.NOT_FOUND, True), missing.stderr


def test_a_download_is_paused_and_resumed_while_a_command_waits_for_it(
    mesh: RunningMesh, user: dict[str, str], source: SlowSource
) -> None:
    model = "paused.gguf"
    with waiting(user, "pull", source.url(model)) as pull:
        half_there(user, model)
        assert json.loads(llamesh(user, "downloads", "pause", model, "-o", "json").stdout)["state"] == "PAUSED"
        assert shown(user, model)["state"] == "PAUSED"
        assert pull.stderr is not None
        said = iter(pull.stderr.readline, "")
        assert any(f"{model} is paused: `llamesh downloads resume {model}` lets it go on" in line for line in said)
        source.go_on.set()
        assert "SUCCEEDED" in llamesh(user, "downloads", "resume", model).stdout
        pull.communicate(timeout=COMMAND_SECONDS)
        assert pull.returncode == Exit.OK
    assert shown(user, model)["resume_count"] == 1
    verified(user, source, model)
    for verb in ("pause", "resume"):
        late = llamesh(user, "downloads", verb, model)
        assert (late.returncode, "cannot be" in late.stderr) == (Exit.REFUSED, True), late.stderr
        assert "DOWNLOAD_ENDED" in mesh.call("POST", f"/downloads/{model}:{verb}", "download", json={}).text


def test_a_record_is_removed_by_rest(mesh: RunningMesh) -> None:
    mesh.add_model("rest")
    for port in ("download", "gateway"):
        gone = mesh.call("DELETE", "/downloads/rest", port)
        assert (gone.status_code, gone.json()["state"]) == (200, "DOWNLOAD_STATE_SUCCEEDED")
        again = mesh.call("DELETE", "/downloads/rest", port)
        assert (again.status_code, "DOWNLOAD_NOT_FOUND" in again.text) == (404, True)
        # Whoever asks for the model again finds it there, and its download.
        mesh.add_model("rest")
