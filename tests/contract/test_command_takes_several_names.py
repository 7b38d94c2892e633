"""Commands that end things take several names: each is done that can be, and each failure is said."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import model_pb2, server_pb2
from tests.contract.fakes import FakeGateway, refuse

Capture = pytest.CaptureFixture[str]


class Gateway(FakeGateway):
    """Has the servers a1, b2, c3 and the models m0 to m5, of which m1 is used."""

    def __init__(self) -> None:
        super().__init__()
        self.servers = [server_pb2.Server(server_uuid=name, model_name=f"of-{name}") for name in ("a1", "b2", "c3")]
        self.removed: list[str] = []
        self.away = False

    def Stop(self, request: Any, context: Any) -> server_pb2.Server:
        if request.server_uuid not in {item.server_uuid for item in self.servers}:
            refuse(context, grpc.StatusCode.NOT_FOUND, "SERVER_NOT_FOUND", f"no server {request.server_uuid}")
        return super().Stop(request, context)

    def DeleteModel(self, request: Any, context: Any) -> model_pb2.Model:
        if self.away:
            refuse(context, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED", "the token has expired")
        if request.model_uuid == "m1":
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "MODEL_IN_USE", "m1 is used")
        if request.model_uuid == "none":
            refuse(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no model none")
        self.removed.append(request.model_uuid)
        return model_pb2.Model(model_uuid=request.model_uuid)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def test_all_names_are_done(mesh: Gateway, capsys: Capture) -> None:
    assert run(["stop", "of-a1", "c3", "c3"]) == Exit.OK
    assert mesh.stopped == ["a1", "c3"]
    assert run(["rm", "m0", "name2"]) == Exit.OK
    assert mesh.removed == ["m0", "m2"]
    assert "removed m2" in capsys.readouterr().err


def test_a_name_that_does_not_exist_leaves_no_other_undone(mesh: Gateway, capsys: Capture) -> None:
    assert run(["stop", "of-a1", "none", "c3"]) == Exit.NOT_FOUND
    assert mesh.stopped == ["a1", "c3"]
    said = capsys.readouterr().err
    assert "error: no server none\n" in said
    assert said.endswith("stopped c3 ()\n1 of 3 failed\n")


def test_a_name_that_cannot_be_sent_leaves_no_other_undone(mesh: Gateway, capsys: Capture) -> None:
    assert run(["stop", "a1", "\udcff", "c3"]) == Exit.USAGE
    assert mesh.stopped == ["a1", "c3"]
    assert "1 of 3 failed" in capsys.readouterr().err


def test_failures_of_several_kinds_have_the_general_exit_code(mesh: Gateway, capsys: Capture) -> None:
    assert run(["rm", "none", "m1", "m2"]) == Exit.FAILED
    assert mesh.removed == ["m2"]
    assert capsys.readouterr().err.endswith("2 of 3 failed\n")


def test_a_failure_that_every_name_would_have_is_said_once(mesh: Gateway, capsys: Capture) -> None:
    mesh.away = True
    assert run(["rm", "m0", "m2"]) == Exit.NOT_SIGNED_IN
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert "not done: m0 m2" in said
