"""`llamesh api` lists the calls of the mesh, and names the call that a path which no call has probably means."""

from __future__ import annotations

import io
from contextlib import contextmanager
from http.client import HTTPResponse
from types import SimpleNamespace
from typing import Any

import pytest

from controller.xds import templates
from controller.xds.public_api import PublicApi
from llamesh.cli import api, web
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.rest_calls import hint_for, rest_calls
from llamesh.client import services
from llamesh.kit.errors import Reason, spec_of

Capture = pytest.CaptureFixture[str]
LISTED = "`llamesh api` lists the calls"


@pytest.mark.parametrize(
    ("verb", "path", "hint"),
    [
        ("GET", "/modles", f"did you mean GET /models or GET :8300/models? {LISTED}"),
        ("GET", "/modles?page_size=3", f"did you mean GET /models or GET :8300/models? {LISTED}"),
        ("GET", "/serve", f"did you mean POST /serve? {LISTED}"),
        ("PUT", "/users/ada", "did you mean GET /users/{username} or PATCH /users/{username} or "),
        ("POST", "/servers/0f0c:scael", f"did you mean POST /servers/{{server_uuid}}:scale? {LISTED}"),
        ("GET", "/jobs", "the call is GET :8300/jobs: it is at the port of another service, 8300 unless set otherwise"),
        ("GET", "/nope", LISTED),
        ("GET", "/" + "x" * 5000, LISTED),
        ("GET", "/models/none", ""),
        ("GET", "/models/foo/", ""),
        ("GET", "/models/?page_size=3", ""),
        ("GET", "/modles/", f"did you mean GET /models or GET :8300/models? {LISTED}"),
        ("GET", "/", LISTED),
        ("GET", "/contracts/none", ""),
        ("POST", "/servers/none:scale", ""),
    ],
)
def test_the_call_that_was_meant_is_named(verb: str, path: str, hint: str) -> None:
    assert hint_for(verb, path)[: len(hint) or None] == hint


def test_the_list_is_that_of_the_front_door() -> None:
    public = (services.GATEWAY, services.CONTRACT, services.DOWNLOAD, services.QUANT)
    door = PublicApi(templates.FOLDER / "llamesh.binpb", public)
    wanted = {
        (binding.verb, binding.path) for method in door.methods for binding in method.bindings if not method.internal
    }
    assert {(call.verb, call.path) for call in rest_calls()} == wanted


def test_without_arguments_the_calls_are_listed(capsys: Capture) -> None:
    assert run(["api"]) == Exit.OK
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["GET", "/models", "GatewayService/ListModels"] in lines
    assert ["GET", ":8300/jobs", "QuantService/ListQuantJobs"] in lines


def test_a_method_without_a_path_is_refused(capsys: Capture) -> None:
    assert run(["api", "GET"]) == Exit.USAGE
    assert capsys.readouterr().err == f"error: a path is needed\nhint: {LISTED}\n"


def test_a_refused_path_gets_the_hint_and_another_refusal_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    body = b'{"code": 12, "message": "no", "details": [{"@type": "x/google.rpc.LocalizedMessage", "message": "Do."}]}'
    sent = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    @contextmanager
    def answer(*_: Any) -> Any:
        response = HTTPResponse(SimpleNamespace(makefile=lambda _: io.BytesIO(sent)))  # type: ignore[arg-type]
        response.begin()
        yield response

    monkeypatch.setattr(web, "answer", answer)
    monkeypatch.setattr(api, "meant", lambda: SimpleNamespace(url="http://localhost:1", token=""))
    assert run(["api", "GET", "serve"]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == f"error: no\nhint: did you mean POST /serve? {LISTED}\n"
    assert run(["api", "GET", "/models/m1"]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "error: no\nhint: Do.\n"


def test_the_remedy_of_the_contract_names_what_to_check() -> None:
    remedy = spec_of(Reason.ERROR_REASON_NOT_IMPLEMENTED).remedy
    assert "`llamesh api`" in remedy
    assert "later release" not in remedy
