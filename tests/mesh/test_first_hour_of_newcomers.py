"""The first hour of two kinds of users, step by step as they type it: from ollama, and with the Python SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from llamesh.cli.failure import Exit
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh
from tests.terminal import terminal

SDK = """
import asyncio, sys
from llamesh import AsyncClient, Client, errors

path = sys.argv[1]
with Client() as mesh:
    try:
        list(mesh.models.list())
    except errors.Unauthenticated as refusal:
        print("first:", refusal.remedy)
    mesh.login("admin", "admin")

    told = []
    model = mesh.models.pull(path).wait(timeout=60, on_progress=told.append)
    print("pulled:", model.name, told[-1].bytes_done == model.size_bytes)

    check = mesh.check(model, ctx_size=2048)
    print("fits:", check.allowed)
    try:
        mesh.servers.serve(model, replicas=1000)
    except errors.TooManyReplicas as refusal:
        print("refused:", refusal.reason)
    server = mesh.servers.wait_ready(mesh.servers.serve(model, name="sdk", ctx_size=2048, idle_sleep=600), timeout=60)
    print("serves:", server.model_name, server.ready_replicas)

    question = [{"role": "user", "content": "Hello!"}]
    answer = mesh.openai(server).chat.completions.create(model="sdk", messages=question)
    print("answers:", answer.choices[0].message.content)
    parts = mesh.openai(server).chat.completions.create(model="sdk", messages=question, stream=True)
    print("streams:", "".join(part.choices[0].delta.content or "" for part in parts if part.choices))

    key = mesh.keys.create("my program", scopes=["infer:sdk"])
    with Client(mesh.profile.url, key.token, inference_url=mesh.profile.inference) as program:
        print("with a key:", program.openai().chat.completions.create(model="sdk", messages=question).choices[0].message.content)
        try:
            program.servers.stop(server)
        except errors.ScopeMissing as refusal:
            print("not with it:", refusal.metadata["scope"])
    mesh.keys.revoke(key.key.key_id)

    try:
        mesh.models.delete(model)
    except errors.ModelInUse as refusal:
        print("in use:", refusal.remedy)
    mesh.servers.stop(server)

    async def later():
        async with AsyncClient(mesh.profile.url, mesh.transport.token) as again:
            await again.models.delete_download(model)
            await again.models.delete(model)
            return [item.name async for item in again.models.list()]

    print("left:", asyncio.run(later()))
"""
SDK_PRINTS = f"""\
first: Get a token with POST /auth/token or `llamesh login` and send it as `Authorization: Bearer`.
pulled: sdk.gguf True
fits: True
refused: TOO_MANY_REPLICAS
serves: sdk 1
answers: {SENTENCE}
streams: {SENTENCE}
with a key: {SENTENCE}
not with it: manage
in use: Stop the named servers first.
left: []
"""


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """A mesh of its own: newcomers change it."""
    with running_mesh() as running:
        yield running


@pytest.fixture
def user(mesh: RunningMesh, tmp_path: Path) -> dict[str, str]:
    """A new user of this machine, who knows where the mesh is and nothing else."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LLAMESH_HOME": str(mesh.home)}


def typed(user: dict[str, str], folder: Path, *words: str, stdin: str = "", fails: int = 0) -> str:
    """What a command prints, on both outputs if it is expected to fail with a code."""
    answer = subprocess.run(
        [sys.executable, "-P", *words],
        env=user,
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert answer.returncode == fails, answer.stdout + answer.stderr
    return answer.stdout + (answer.stderr if fails else "")


def test_from_ollama(mesh: RunningMesh, user: dict[str, str], tmp_path: Path) -> None:
    def llamesh(*words: str, stdin: str = "", fails: int = 0) -> str:
        return typed(user, tmp_path, "-m", "llamesh.cli.main", *words, stdin=stdin, fails=fails)

    sentence.write(tmp_path / "tiny.gguf")
    assert "hint: llamesh login" in llamesh("run", "./tiny.gguf", "Why is the sky blue?", fails=Exit.NOT_SIGNED_IN)
    llamesh("login", "admin", "--password-stdin", stdin="admin\n")
    # A name of ollama's library is no model here: the hint is its address.
    assert "did you mean ollama:llama3.2:1b?" in llamesh("run", "llama3.2:1b", "Hello!", fails=Exit.USAGE)
    assert llamesh("run", "./tiny.gguf", "Why is the sky blue?").strip() == SENTENCE
    assert "tiny.gguf" in llamesh("list")
    assert "READY" in llamesh("ps")
    assert "Conditions" in llamesh("show", "tiny.gguf")
    assert llamesh("run", "tiny.gguf", "summarise this", stdin="a long text").strip() == SENTENCE
    assert "SUCCEEDED" in llamesh("downloads")
    # "ollama run tiny" without a prompt: a conversation.
    with terminal(["run", "tiny.gguf"], 80, user, tmp_path) as talk:
        talk.until("Ctrl-D ends\n>")
        talk.type("Hello!\r")
        talk.until(f"{SENTENCE}\n>")
        talk.type("/bye\r")
        assert talk.end() == Exit.OK
    # Its API is answered in its shape with where to go, and OpenAI's is here.
    refused = mesh.http.post(mesh.url("inference", "/api/chat"), json={"model": "tiny.gguf", "messages": []})
    assert (refused.status_code, "/v1" in refused.json()["error"]) == (404, True)
    body = {"model": "tiny.gguf", "messages": [{"role": "user", "content": "Hello!"}]}
    asked = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body)
    assert asked.json()["choices"][0]["message"]["content"].strip() == SENTENCE
    llamesh("stop", "tiny.gguf")
    llamesh("rm", "tiny.gguf")
    assert llamesh("list", "-o", "json") == "[]\n"
    assert llamesh("downloads", "-o", "json") == "[]\n"


def test_with_the_python_sdk(mesh: RunningMesh, user: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("openai")
    script = tmp_path / "first.py"
    script.write_text(SDK)
    file = mesh.home / "import" / "sdk.gguf"
    file.parent.mkdir(exist_ok=True)
    sentence.write(file)
    assert typed(user, tmp_path, str(script), str(file)) == SDK_PRINTS
