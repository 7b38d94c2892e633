"""A name that nothing has is refused with the nearest name, by every command that takes the name of a model, a download or a user."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import gateway_pb2, model_pb2
from tests.contract.fakes import FakeGateway, refuse

Capture = pytest.CaptureFixture[str]


class Gateway(FakeGateway):
    """Has the model `words.gguf`, also called `sentences`, and the users `admin` and `ada`."""

    def ListModels(self, request: Any, context: Any) -> gateway_pb2.ListModelsResponse:
        model = model_pb2.Model(model_uuid="3f2a", name="words.gguf", aliases=["sentences"])
        return gateway_pb2.ListModelsResponse(models=[model])

    def GetModel(self, request: Any, context: Any) -> model_pb2.Model:
        refuse(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", f"there is no model {request.model_uuid}")
        raise AssertionError

    DeleteModel = GetModel

    def ListUsers(self, request: Any, context: Any) -> gateway_pb2.ListUsersResponse:
        return gateway_pb2.ListUsersResponse(users=[gateway_pb2.User(username=name) for name in ("admin", "ada")])

    def UpdateUser(self, request: Any, context: Any) -> gateway_pb2.User:
        user = getattr(request, "username", "") or request.user.username
        refuse(context, grpc.StatusCode.NOT_FOUND, "USER_NOT_FOUND", f"there is no user {user}")
        raise AssertionError

    DeleteUser = UpdateUser


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


OF_MODELS = (
    "rm {}",
    "serve {}",
    "serve words.gguf --model-draft {}",
    "fit {}",
    "alias {}",
    "alias {} other",
    "describe {}",
    "downloads pause {}",
    "downloads resume {}",
    "downloads cancel {}",
    "downloads retry {}",
    "downloads rm {}",
    "quantize {} --types Q4_K_M",
    "quantize {} --dry-run",
)


@pytest.mark.parametrize("command", OF_MODELS)
@pytest.mark.parametrize(("typed", "meant"), [("wrods.gguf", "words.gguf"), ("sentence", "sentences")])
def test_a_nearly_right_name_of_a_model_is_answered_with_the_right_one(
    mesh: Gateway, capsys: Capture, command: str, typed: str, meant: str
) -> None:
    assert run(command.format(typed).split()) == Exit.NOT_FOUND
    said = capsys.readouterr().err
    assert said.startswith("error: there is no ")
    assert f"hint: did you mean {meant}?\n" in said


@pytest.mark.parametrize("command", ["update {} --role user", "disable {}", "enable {}", "rm {}"])
def test_a_nearly_right_name_of_a_user_is_answered_with_the_right_one(
    mesh: Gateway, capsys: Capture, command: str
) -> None:
    assert run(["users", *command.format("amdin").split()]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "error: there is no user amdin\nhint: did you mean admin?\n"
    assert run(["users", *command.format("zzz").split()]) == Exit.NOT_FOUND
    assert "did you mean" not in capsys.readouterr().err


def test_what_is_described_is_neither_a_server_nor_a_model(mesh: Gateway, capsys: Capture) -> None:
    assert run(["describe", "zzz"]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == (
        "error: there is no server and no model zzz\n"
        "hint: `llamesh status` lists the servers, `llamesh models` the models\n"
    )
    assert run(["describe", "wrods.gguf"]) == Exit.NOT_FOUND
    assert "error: there is no server and no model wrods.gguf\n" in capsys.readouterr().err
