"""`llamesh pull hf:...` and `llamesh run hf.co/...` on a real mesh: from a repository to a token. The Hub is a FAKE on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from llamesh.cli.failure import Exit
from tests.files import contents_below
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh
from tests.unit.fake_hub import COMMIT, FakeHub, Repository, fake_hub

COMMAND = (sys.executable, "-P", "-m", "llamesh.cli.main")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """The fake, in a thread of its own: the command is waited for."""
    path = tmp_path_factory.mktemp("hub") / "words.gguf"
    sentence.write(path)
    running: list[FakeHub] = []
    ready, loop, done = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with fake_hub() as state:
            running.append(state)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    files = {"words-Q4_K_M.gguf": path.read_bytes(), "words-Q8_0.gguf": path.read_bytes()}
    running[0].repositories["ada/words-GGUF"] = Repository(files, gated=True)
    running[0].readers.add("hf_right")
    yield running[0]
    loop.call_soon_threadsafe(done.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def mesh(hub: FakeHub) -> Iterator[RunningMesh]:
    with running_mesh(HF_ENDPOINT=hub.url, HF_TOKEN="hf_right") as running:
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
    return subprocess.run(
        [*COMMAND, *words], env=user, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )


def test_what_a_search_finds_fits_the_machine_and_can_be_pulled(mesh: RunningMesh, user: dict[str, str]) -> None:
    found = llamesh(user, "search", "words", "gguf", "-o", "json")
    assert found.returncode == 0, found.stderr
    (repository,) = json.loads(found.stdout)
    assert (repository["repository"], repository["gated"]) == ("ada/words-GGUF", True)
    sources = {model["source"]: model for model in repository["models"]}
    assert set(sources) == {"hf:ada/words-GGUF:Q4_K_M", "hf:ada/words-GGUF:Q8_0"}
    assert {model["fit"] for model in sources.values()} == {"NOW"}
    size = sources["hf:ada/words-GGUF:Q8_0"]["size_bytes"]
    assert llamesh(user, "pull", "hf:ada/words-GGUF:Q8_0", "--uuid", "found").returncode == 0
    # The estimate of the contract service is more than the size of the file.
    (again,) = mesh.call("GET", "/search?query=words", "download").json()["repositories"]
    here = [model for model in again["models"] if model["model_uuid"] == "found"]
    assert here
    assert all(int(model["needed_bytes"]) > size for model in here)
    assert llamesh(user, "rm", "found").returncode == 0


def test_a_model_is_pulled_and_its_commit_is_shown(mesh: RunningMesh, user: dict[str, str]) -> None:
    pulled = llamesh(user, "pull", "https://huggingface.co/ada/words-GGUF", "-o", "json")
    assert pulled.returncode == 0, pulled.stderr
    model = mesh.call("GET", "/models/words").json()
    assert (model["name"], model["source"], model["revision"]) == ("words", "hf:ada/words-GGUF", COMMIT)
    again = llamesh(user, "pull", "hf:ada/words-GGUF", "-o", "name")
    assert again.stdout.split() == ["words"]


def test_a_model_of_the_hub_is_run_with_one_command(user: dict[str, str]) -> None:
    ran = llamesh(user, "run", "hf.co/ada/words-GGUF:q8_0", "Hello!")
    assert (ran.returncode, ran.stdout.strip()) == (0, SENTENCE), ran.stderr


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("ada/words-GGUF:Q8_0", "did you mean hf:ada/words-GGUF:Q8_0?"),
        ("hugingface:ada/words-GGUF", "did you mean hf:ada/words-GGUF?"),
        ("hf:ada/words-GGUF:Q5_K_M", "did you mean hf:ada/words-GGUF:Q4_K_M? There are Q4_K_M (1 MiB), Q8_0 (1 MiB)"),
        ("hf:ada/nothing", "has no repository ada/nothing"),
    ],
)
def test_a_wrong_address_is_answered_with_the_right_one(user: dict[str, str], word: str, hint: str) -> None:
    refused = llamesh(user, "pull", word)
    assert refused.returncode in {Exit.USAGE, Exit.REFUSED}
    assert hint in " ".join(refused.stderr.split())


def test_no_log_and_no_record_has_the_token(mesh: RunningMesh, user: dict[str, str]) -> None:
    assert "hf_right" not in llamesh(user, "downloads", "-o", "json").stdout
    written = {path: content for path, content in contents_below(mesh.home).items() if path.suffix != ".gguf"}
    assert not [path for path, content in written.items() if b"hf_right" in content]
