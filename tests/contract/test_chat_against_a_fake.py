"""`llamesh chat` and `llamesh api` against a labelled fake of the inference address: a small HTTP server with prepared answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llamesh.cli.chat import _events
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.main import run
from llamesh.v1 import server_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway, fake_mesh

Capture = pytest.CaptureFixture[str]
UUID = "0f0c6a0e-2b0d-4b4e-9a52-7f4f7c1f8f10"


class FakeInference(ThreadingHTTPServer):
    """Answers every chat with an echo in two pieces, or with the prepared refusal; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.refusal: tuple[int, object] | None = None
        self.known: set[str] | None = None
        """Names and ids that are served; all others are answered with 404. None: all are served."""
        self.breaks_off = False
        self.cut: int | None = None
        """How many bytes of an answer are sent before the connection ends, as if the answer ended there."""
        self.served: list[str] | None = None
        self.list_goes_on: threading.Event | None = None
        """While it is not set, the list of names is not answered."""
        self.said: list[dict[str, str]] = []
        """The deltas that are answered in place of the echo."""
        self.usage: dict[str, int] = {}
        self.hung: threading.Event | None = None
        """While it is not set, an answer stops after its first words."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeInference

    def do_GET(self) -> None:
        if self.server.list_goes_on:
            self.server.list_goes_on.wait(30)
        if self.path == "/v1/models" and self.server.served is not None:
            self._send(200, json.dumps({"data": [{"id": name} for name in self.server.served]}).encode())
            return
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        self.server.asked.append((self.path, self.headers.get("authorization", ""), body))
        if self.server.refusal:
            status, document = self.server.refusal
            self._send(status, json.dumps(document).encode())
            return
        if self.server.known is not None and body.get("model", self.path.split("/")[1]) not in self.server.known:
            self._send(404, json.dumps({"error": {"message": "nobody serves that"}}).encode())
            return
        if self.server.hung:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"delta": {"content": "You said: x y"}}]}\n\n')
            self.wfile.flush()
            self.server.hung.wait(30)
            return
        said = body["messages"][-1]["content"] if body else "nothing"
        pieces = ["You said: ", said]
        deltas = self.server.said or [{"content": piece} for piece in pieces]
        events: list[dict[str, Any]] = [{"choices": [{"delta": delta}]} for delta in deltas]
        if self.server.usage:
            events.append({"choices": [], "usage": self.server.usage, "timings": {"predicted_per_second": 20.0}})
        if self.server.breaks_off:
            events[1] = {"error": {"message": "the engine ended"}}
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self._send(200, "".join([*lines, "data: [DONE]\n\n"]).encode()[: self.server.cut])

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def inference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeInference]:
    with FakeInference() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        monkeypatch.setenv("LLAMESH_INFERENCE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("LLAMESH_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


def test_the_answer_alone_is_on_standard_output(inference: FakeInference, capsys: Capture) -> None:
    assert run(["chat", "smol", "Hi", "--temperature", "0", "--system", "Be brief."]) == Exit.OK
    assert capsys.readouterr() == ("You said: Hi\n", "")
    path, authorization, body = inference.asked[0]
    assert (path, authorization) == ("/v1/chat/completions", "")
    assert body == {
        "model": "smol",
        "stream": True,
        "temperature": 0.0,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }


def test_a_servers_id_goes_into_the_path(inference: FakeInference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_TOKEN", "key")
    assert run(["chat", UUID, "Hi"]) == Exit.OK
    path, authorization, body = inference.asked[0]
    assert (path, authorization) == (f"/{UUID}/v1/chat/completions", "Bearer key")
    assert "model" not in body


def test_json_is_one_object_a_line(inference: FakeInference, capsys: Capture) -> None:
    assert run(["chat", "smol", "Hi", "--json"]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["choices"][0]["delta"]["content"] for line in lines] == ["You said: ", "Hi"]


def test_the_question_may_come_from_standard_input(
    inference: FakeInference, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines"))
    assert run(["chat", "smol"]) == Exit.OK
    assert inference.asked[0][2]["messages"][0]["content"] == "two\nlines"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["chat", "smol"]) == Exit.USAGE


@pytest.mark.parametrize(
    ("status", "exit_code"),
    [
        (400, Exit.USAGE),
        (401, Exit.NOT_SIGNED_IN),
        (403, Exit.REFUSED),
        (404, Exit.NOT_FOUND),
        (429, Exit.REFUSED),
        (500, Exit.FAILED),
        (503, Exit.UNAVAILABLE),
    ],
)
def test_refusals_are_words_and_exit_codes(
    inference: FakeInference, capsys: Capture, status: int, exit_code: Exit
) -> None:
    inference.refusal = status, {"error": {"message": "that is so", "type": "t", "param": None, "code": "c"}}
    assert run(["chat", "smol", "Hi"]) == exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: that is so\n")


@pytest.mark.parametrize(
    ("served", "shown"),
    [
        (["smol", "words"], "error: nobody serves that\n  served: smol, words\n"),
        (["words", "nones"], "error: nobody serves that\n  served: words, nones\nhint: did you mean nones?\n"),
        ([], "error: nobody serves that\nhint: nothing is served yet: llamesh serve MODEL\n"),
        (None, "error: nobody serves that\n"),
    ],
)
def test_an_unknown_model_name_is_answered_with_the_served_names(
    inference: FakeInference, capsys: Capture, served: list[str] | None, shown: str
) -> None:
    inference.refusal = 404, {"error": {"message": "nobody serves that"}}
    inference.served = served
    assert run(["chat", "nope", "Hi"]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == shown


@pytest.mark.parametrize("name", ["m0", "name0", UUID[:8]])
def test_another_name_of_a_served_model_is_looked_up_in_the_mesh(
    inference: FakeInference, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gateway = FakeGateway()
    gateway.servers = [server_pb2.Server(server_uuid=UUID, model_name="smol", model_uuid="m0")]
    inference.known = {UUID}
    with fake_mesh(gateway, FakeDownloads()) as address:
        monkeypatch.setenv("LLAMESH_URL", address)
        assert run(["chat", name, "Hi"]) == Exit.NOT_FOUND
        monkeypatch.setenv("LLAMESH_TOKEN", "token")
        capsys.readouterr()
        assert run(["chat", name, "Hi"]) == Exit.OK
        assert capsys.readouterr() == ("You said: Hi\n", "")
        assert inference.asked[-1][0] == f"/{UUID}/v1/chat/completions"
        gateway.servers = []
        assert run(["chat", name, "Hi"]) == Exit.NOT_FOUND
        said = capsys.readouterr().err
        assert name == UUID[:8] or f"`llamesh run {name}`" in said


def test_an_error_inside_the_stream_is_an_error(inference: FakeInference, capsys: Capture) -> None:
    inference.breaks_off = True
    assert run(["chat", "smol", "Hi"]) == Exit.FAILED
    assert "error: the engine ended" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [59, 80], ids=["between events", "within an event"])
def test_an_answer_that_ends_before_it_is_done_is_an_error(inference: FakeInference, capsys: Capture, cut: int) -> None:
    inference.cut = cut
    assert run(["chat", "smol", "Hi"]) == Exit.UNAVAILABLE
    shown = capsys.readouterr()
    assert shown.out == "You said: \n"
    assert shown.err.startswith("error: the answer broke off: ")


def test_an_answer_whose_connection_fails_has_broken_off() -> None:
    def lines() -> Iterator[bytes]:
        yield b'data: {"a": 1}\n'
        raise ConnectionResetError("reset by peer")

    for broken in (lines(), [b'data: {"a": 1}\n', b"data: {no\n"]):
        events = _events(broken)
        assert next(events) == {"a": 1}
        with pytest.raises(CommandError, match=r"^the answer broke off: (reset by peer|Expecting)"):
            next(events)


def test_any_call_can_be_made_and_its_remedy_is_shown(inference: FakeInference, capsys: Capture) -> None:
    detail = {"@type": "type.googleapis.com/google.rpc.LocalizedMessage", "message": "Do this."}
    inference.refusal = 404, {"code": 5, "message": "gone", "details": [detail]}
    assert run(["api", "POST", "/serve", "-d", '{"a": 1}']) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "error: gone\nhint: Do this.\n"
    assert inference.asked[0][::2] == ("/serve", {"a": 1})
    inference.refusal = 200, {"fine": True}
    assert run(["api", "get", "health"]) == Exit.OK


def test_a_body_may_come_from_standard_input(inference: FakeInference, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 2}')))
    inference.refusal = 200, {"fine": True}
    assert run(["api", "POST", "/serve", "-d", "-"]) == Exit.OK
    assert inference.asked[0][::2] == ("/serve", {"a": 2})


def test_verbose_shows_how_much_of_the_context_is_used(
    inference: FakeInference, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = FakeGateway()
    gateway.servers = [server_pb2.Server(server_uuid=UUID, model_name="smol", model_uuid="m0")]
    gateway.servers[0].spec.parameters.ctx_size = 4096
    gateway.servers[0].spec.parameters.parallel = 2
    inference.usage = {"completion_tokens": 7, "total_tokens": 312}
    with fake_mesh(gateway, FakeDownloads()) as address:
        monkeypatch.setenv("LLAMESH_URL", address)
        monkeypatch.setenv("LLAMESH_TOKEN", "token")
        for name in ("smol", UUID):
            assert run(["chat", name, "Hi", "--verbose"]) == Exit.OK
            assert capsys.readouterr().err == "7 tokens, 20.0 tokens/s, context used 312 of 2048\n"
        monkeypatch.delenv("LLAMESH_TOKEN")
        gateway.servers = []
        assert run(["chat", "smol", "Hi", "--verbose"]) == Exit.OK
        assert capsys.readouterr().err == "7 tokens, 20.0 tokens/s, context used 312 tokens\n"


@pytest.mark.parametrize(
    "command", [["chat", "smol", "Hi"], ["api", "--inference", "POST", "/x", "-d", '{"messages": [{"content": "Hi"}]}']]
)
def test_the_named_mesh_is_asked_for_its_inference_address(
    inference: FakeInference, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    gateway = FakeGateway()
    gateway.servers = [server_pb2.Server(endpoint=f"http://localhost:{inference.server_port}/{UUID}/v1")]
    with fake_mesh(gateway, FakeDownloads()) as address:
        monkeypatch.setenv("LLAMESH_URL", address)
        monkeypatch.delenv("LLAMESH_INFERENCE_URL")
        monkeypatch.setenv("LLAMESH_TOKEN", "token")
        assert run(command) == Exit.OK
    assert len(inference.asked) == 1


def test_an_unknown_inference_address_is_not_guessed(
    inference: FakeInference, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("llamesh.client.profile.DEFAULT_INFERENCE_PORT", inference.server_port)
    with fake_mesh(FakeGateway(), FakeDownloads()) as address:
        monkeypatch.setenv("LLAMESH_URL", address)
        monkeypatch.delenv("LLAMESH_INFERENCE_URL")
        assert run(["chat", "smol", "Hi"]) == Exit.USAGE
    shown = capsys.readouterr().err
    assert f"the inference address of the mesh at {address} is not known: set LLAMESH_INFERENCE_URL" in shown
    assert inference.asked == []
