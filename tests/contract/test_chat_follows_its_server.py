"""A conversation finds its server again: each question that the inference port refuses looks up the person's word, once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import jwt
import pytest

from llamesh.cli import chat
from llamesh.cli.addressee import Addressee, check_served
from llamesh.cli.conversation import Conversation
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.main import run
from llamesh.v1 import server_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway, fake_mesh
from tests.contract.test_chat_against_a_fake import UUID, FakeInference, inference
from tests.terminal import terminal

__all__ = ["inference"]

OTHER = "7a1d6a0e-2b0d-4b4e-9a52-7f4f7c1f8f11"
ANSWER = "You said: Hi"


class Mesh:
    """A mesh with at most one server, and a conversation with a model of it."""

    def __init__(self, gateway: FakeGateway, inference: FakeInference) -> None:
        self.gateway = gateway
        self.inference = inference
        self.serve("")

    def serve(self, uuid: str) -> None:
        """Replace the server."""
        found = server_pb2.Server(
            server_uuid=uuid, model_name="smol", model_uuid="m0", state=server_pb2.SERVER_STATE_READY
        )
        self.gateway.servers = [found] if uuid else []
        self.inference.known = {uuid, "smol"} if uuid else set()

    def ask(self, addressee: Addressee) -> str:
        """The answer to a question, or the words of the refusal."""
        talk = Conversation(messages=[{"role": "user", "content": "Hi"}])
        try:
            return chat._answer(addressee, talk, verbose=False)
        except CommandError as error:
            return error.render()


@pytest.fixture
def mesh(inference: FakeInference, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    gateway = FakeGateway()
    with fake_mesh(gateway, FakeDownloads()) as address:
        monkeypatch.setenv("LLAMESH_URL", address)
        monkeypatch.setenv("LLAMESH_TOKEN", "token")
        yield Mesh(gateway, inference)


@pytest.mark.parametrize("word", ["m0", "name0"])
def test_a_server_that_is_replaced_is_found_again(mesh: Mesh, word: str) -> None:
    addressee = Addressee(word)
    for uuid in (UUID, OTHER, UUID):
        mesh.serve(uuid)
        assert mesh.ask(addressee) == ANSWER
        assert mesh.inference.asked[-1][0].startswith(f"/{uuid}/")


def test_a_server_that_was_missing_at_first_is_found(mesh: Mesh) -> None:
    addressee = Addressee("name0")
    assert "`llamesh serve name0`" in mesh.ask(addressee)
    mesh.serve(UUID)
    assert mesh.ask(addressee) == ANSWER
    mesh.serve("")
    assert "`llamesh serve name0`" in mesh.ask(addressee)
    mesh.serve(OTHER)
    assert mesh.ask(addressee) == ANSWER


def test_a_lookup_that_fails_is_made_again_for_the_next_question(mesh: Mesh) -> None:
    addressee = Addressee("name0")
    mesh.serve(UUID)
    mesh.gateway.refusal = grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING", "not now"
    assert "nobody serves that" in mesh.ask(addressee)
    mesh.gateway.refusal = None
    assert mesh.ask(addressee) == ANSWER


def test_a_question_is_sent_at_most_twice(mesh: Mesh) -> None:
    addressee = Addressee("name0")
    for uuid in (UUID, OTHER):
        mesh.serve(uuid)
        mesh.inference.known = set()
        mesh.inference.asked.clear()
        assert "nobody serves that" in mesh.ask(addressee)
        assert len([path for path, _, _ in mesh.inference.asked if path.endswith("/chat/completions")]) == 2


def begins(mesh: Mesh, word: str, token: str = "") -> str:
    """The name that requests use in a conversation that begins with a word, or the words of the refusal."""
    addressee = Addressee(word)
    try:
        check_served(addressee, f"http://127.0.0.1:{mesh.inference.server_port}", token)
    except CommandError as error:
        return error.render()
    return addressee.name


def token_for(*scopes: str) -> str:
    """A token with these scopes; nobody verifies its signature."""
    return jwt.encode({"sub": "ada", "scopes": list(scopes)}, "a secret of this test, 32 bytes long")


@pytest.mark.parametrize("token", ["", token_for("manage", "infer:*")])
def test_a_conversation_begins_with_any_name_of_a_served_model(mesh: Mesh, token: str) -> None:
    mesh.inference.served = ["smol"]
    mesh.serve(UUID)
    assert begins(mesh, "smol", token) == "smol"
    assert begins(mesh, "name0", token) == begins(mesh, "m0", token) == UUID
    assert begins(mesh, OTHER, token) == OTHER
    assert begins(mesh, "unlike", token).startswith("error: no server has the model unlike\n  served: smol")


def test_another_name_is_greeted_as_it_was_typed(mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.inference.served = ["smol"]
    mesh.serve(UUID)
    monkeypatch.setenv("LLAMESH_TOKEN", token_for("manage", "infer:*"))
    with terminal(["chat", "name0"], 80, os.environ, tmp_path) as shown:
        shown.until("talking to name0; /help lists commands, Ctrl-D ends\n>")
        shown.type("Hi\r")
        shown.until(f"{ANSWER}\n>")
    assert mesh.inference.asked[-1][0].startswith(f"/{UUID}/")


def test_a_token_that_may_not_use_every_model_gets_the_refusal_of_its_question(mesh: Mesh) -> None:
    mesh.serve(UUID)
    for served in ([], ["other"]):
        mesh.inference.served = served
        assert begins(mesh, "smol", token_for("manage", "infer:other")) == "smol"
        assert begins(mesh, "smol", "no JSON web token") == "smol"


@pytest.mark.parametrize("status", [403, 404, 429, 500, 502, 503, 504])
def test_a_conversation_begins_without_the_list(mesh: Mesh, status: int) -> None:
    mesh.inference.refusal = status, {"error": {"message": "no list now"}}
    assert begins(mesh, "smol") == "smol"


def test_a_list_that_does_not_come_is_not_waited_for(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamesh.cli.addressee.LIST_SECONDS", 0.1)
    mesh.inference.list_goes_on = threading.Event()
    try:
        assert begins(mesh, "smol") == "smol"
    finally:
        mesh.inference.list_goes_on.set()


def test_run_talks_to_its_model_also_after_the_server_was_replaced(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    talked: list[Addressee] = []
    monkeypatch.setattr("llamesh.cli.run.converse", lambda addressee, *_, **__: talked.append(addressee))
    mesh.serve(UUID)
    # Without a name of its own it is addressed by its id.
    mesh.gateway.servers[0].model_name = ""
    assert run(["run", "name0", "Hi"]) == Exit.OK
    assert mesh.ask(talked[0]) == ANSWER
    mesh.serve(OTHER)
    assert mesh.ask(talked[0]) == ANSWER
    assert mesh.inference.asked[-1][0].startswith(f"/{OTHER}/")
