"""The demo: fetches a small model, serves it, and asks it a question through Envoy.

`python -m llamesh.cli.mesh.demo HOME MANAGEMENT_URL INFERENCE_URL SECONDS [detached]`, runs as a process of its own, which
ends when the question is answered, so that the supervisor needs little memory. Idempotent: an existing model and server are used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llamesh.cli import web
from llamesh.cli.failure import CommandError
from llamesh.cli.output import size
from llamesh.cli.printing import note, say
from llamesh.cli.refusals import translate
from llamesh.client import errors
from llamesh.client.profile import Profile, home_of, on_this_machine, save_profile, stored_profile
from llamesh.client.sync import Client
from llamesh.server_conditions import staying
from llamesh.shutdown import unwound
from llamesh.v1 import gateway_pb2, server_pb2

MODEL_UUID = "smollm2-135m-instruct"
"""The id of the demo model."""

STAND_IN = "sentence"
"""Id and name of the fallback model if no registry answers."""

QUESTION = "Hello! What is the capital of France?"
READY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Place:
    """Home and addresses of the mesh."""

    home: Path
    management: str
    inference: str
    detached: bool = False
    """Whether it runs in the background, where Ctrl-C does not reach it."""


@dataclass(frozen=True, slots=True)
class Found:
    """The model's file, as `python -m engine.demo` reports it."""

    path: str
    name: str
    sha256: str
    source: str


def show(place: Place, clock: Callable[[], float], began: float) -> None:
    """Run the demo and print its steps. CommandError or MeshError if a step fails."""
    early = contextlib.nullcontext() if list(_cache(place).glob("*.gguf")) else _fetch(place)
    with early as fetching, Client(place.management, inference_url=place.inference) as mesh:
        _await_health(mesh)
        ready = clock()
        note(f"the mesh is ready after {ready - began:.1f} s")
        login = _login(mesh, place)
        model, name = _model(mesh, place, fetching)
        fetched = clock()
        server = _server(mesh, model, name)
        served = clock()
        answer = _ask(mesh, server.model_name)
    answered = clock()
    say(f"\n  you     {QUESTION}\n  {server.model_name}  {answer}\n")
    say(
        f"  answered {answered - began:.1f} s after the start: mesh {ready - began:.1f}, model {fetched - ready:.1f},"
        f" server {served - fetched:.1f}, answer {answered - served:.1f}\n"
    )
    say(_what_next(place, server.model_name, login))


def _await_health(mesh: Client) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            health = mesh.health(timeout=5)
        except errors.MeshError as error:
            lacking = [error.message]
        else:
            if health.status == gateway_pb2.HEALTH_STATE_OK:
                return
            lacking = [
                f"{part.name}: {part.message}"
                for part in health.components
                if part.status != gateway_pb2.HEALTH_STATE_OK
            ]
        if time.monotonic() > deadline:
            raise CommandError("the mesh is not ready", parts=lacking, hint="llamesh doctor")
        time.sleep(0.05)


def _login(mesh: Client, place: Place) -> str:
    """Log in as the first administrator, or use the profile's token if the password is unknown. Return a description for people."""
    password = os.environ.get("LLAMESH_ADMIN_PASSWORD") or "admin"
    kept = stored_profile()
    try:
        token = mesh.login("admin", password).access_token
    except errors.WrongCredentials as error:
        if not mesh.transport.token:
            raise CommandError(
                "the password of admin is not known here",
                hint="set LLAMESH_ADMIN_PASSWORD, or `llamesh login` once",
            ) from error
        return "as you set it"
    if kept is None or not kept.token or on_this_machine(kept.url):
        save_profile(Profile(place.management, token, place.inference, home_of(place.management)))
    if password == "admin":  # noqa: S105 the documented default of one machine
        return "admin / admin   (known to everyone: llamesh users password admin)"
    return "admin / LLAMESH_ADMIN_PASSWORD"


def _cache(place: Place) -> Path:
    return place.home / "cache"


@contextlib.contextmanager
def _fetch(place: Place) -> Iterator[subprocess.Popen[str]]:
    """Fetch the model's file in a process, which ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "engine.demo", str(_cache(place))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            # It removes what it has not finished.
            process.terminate()


def _model(mesh: Client, place: Place, fetching: subprocess.Popen[str] | None) -> tuple[str, str]:
    """Return id and name of the model in the catalogue; fetch the model if it is missing."""
    for uuid in (MODEL_UUID, STAND_IN):
        with contextlib.suppress(errors.NotFound):
            model = mesh.models.get(uuid)
            return uuid, model.name
    if fetching:
        note("fetching a small model (SmolLM2-135M-Instruct, 98 MB, once)")
    with contextlib.nullcontext(fetching) if fetching else _fetch(place) as process:
        output, complaint = process.communicate()
    if not output:
        raise CommandError("there is no demo model", parts=complaint.strip().splitlines()[-3:])
    found = Found(**json.loads(output))
    stand_in = found.name == STAND_IN
    if stand_in:
        note(f"a stand-in that knows one sentence, {found.source}")
        note(f"(to try again later: llamesh stop {STAND_IN}, llamesh rm {STAND_IN}, llamesh up --demo)")
    uuid = STAND_IN if stand_in else MODEL_UUID
    file = _importable(place, Path(found.path))
    model = mesh.models.pull(file, uuid=uuid, name=found.name, sha256=found.sha256).wait(timeout=READY_SECONDS)
    file.unlink()
    note(f"{model.name} is in the catalogue ({size(model.size_bytes)}, verified)")
    return uuid, model.name


def _importable(place: Place, file: Path) -> Path:
    """The file below LLAMESH_HOME/import, which file: sources may name."""
    target = place.home / "import" / file.name
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
    return target


def _server(mesh: Client, model: str, name: str) -> server_pb2.Server:
    for server in staying(mesh.servers.list()):
        if server.model_uuid == model:
            # The question wakes a sleeping server.
            if server.state == server_pb2.SERVER_STATE_SLEEPING:
                return server
            return mesh.servers.wait_ready(server, timeout=READY_SECONDS)
    note(f"starting llama.cpp with {name}")
    return mesh.servers.wait_ready(mesh.servers.serve(model, name=name), timeout=READY_SECONDS)


def _ask(mesh: Client, model: str) -> str:
    question = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 64,
    }
    path, token = "/v1/chat/completions", mesh.transport.token
    with web.answer(mesh.profile.inference, "POST", path, token, json.dumps(question).encode()) as response:
        if response.status >= 400:
            raise web.refusal(response)
        return str(json.loads(response.read())["choices"][0]["message"]["content"]).strip()


def command(path: str | None, here: Path) -> str:
    """Return how to call this command: its name if the shell finds this installation, else its path."""
    program = Path(sys.executable).parent / "llamesh"
    if path is not None and Path(path).resolve() == program.resolve():
        return "llamesh"
    return str(program.relative_to(here) if program.is_relative_to(here) else program)


def _what_next(place: Place, model: str, login: str) -> str:
    llamesh = command(shutil.which("llamesh"), Path.cwd())
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]})
    end = f"{llamesh} down" if place.detached else f"Ctrl-C, or {llamesh} down,"
    return f"""\
  inference    {place.inference}/v1   (any OpenAI SDK; the key may be anything)
  management   {place.management}
  login        {login}

  curl {place.inference}/v1/chat/completions -H 'content-type: application/json' -d '{body}'

  next: {llamesh} chat {model}   (or: status, models, --help)
  {end} stops the mesh; models and servers stay declared for the next start."""


def main(arguments: list[str]) -> int:
    """The command."""
    home, management, inference, elapsed, *detached = arguments
    began = time.monotonic() - float(elapsed)
    try:
        show(Place(Path(home), management, inference, bool(detached)), time.monotonic, began)
    except (CommandError, errors.MeshError) as error:
        failure = error if isinstance(error, CommandError) else translate(error)
        note(failure.render() if failure else str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(unwound(lambda: main(sys.argv[1:])))
