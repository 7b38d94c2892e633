"""Commands that take a contract find it by its id or its name, and lists show its name."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from llamesh.cli.completion import candidates
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import contract_pb2, gateway_pb2
from tests.contract.fakes import FakeContracts, FakeGateway, refuse

Capture = pytest.CaptureFixture[str]
NAMES = {"c-1": "two at a time", "c-2": "guests", "c-3": "guests"}
RM, UPDATE = ["contracts", "rm"], ["contracts", "update", "--concurrent", "3"]
CREATE_KEY, UPDATE_USER = ["keys", "create", "laptop", "--contract"], ["users", "update", "ada", "--contract"]
COMMANDS = (RM, UPDATE, CREATE_KEY, UPDATE_USER)


@pytest.fixture
def administrator() -> list[bool]:
    """Empty if the caller is no administrator."""
    return [True]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, administrator: list[bool]) -> list[str]:
    """The ids that the calls of a mesh of fakes get."""
    ids: list[str] = []

    def contract(service: Any, request: Any, context: Any) -> contract_pb2.Contract:
        ids.append(request.contract_id)
        return contract_pb2.Contract(contract_id=request.contract_id, display_name=NAMES.get(request.contract_id, ""))

    def created(service: Any, request: Any, context: Any) -> contract_pb2.CreateKeyResponse:
        ids.append(request.contract_id)
        return contract_pb2.CreateKeyResponse(token="t")

    def updated(service: Any, request: Any, context: Any) -> gateway_pb2.User:
        ids.append(request.contract_id)
        return gateway_pb2.User(username=request.username, contract_id=request.contract_id)

    def users(service: Any, request: Any, context: Any) -> gateway_pb2.ListUsersResponse:
        found = [gateway_pb2.User(username=name, contract_id=item) for name, item in (("ada", "c-1"), ("bob", "c-9"))]
        return gateway_pb2.ListUsersResponse(users=found)

    def listed(service: Any, request: Any, context: Any) -> contract_pb2.ListContractsResponse:
        if not administrator:
            refuse(context, grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING", "for administrators only")
        found = [contract_pb2.Contract(contract_id=item, display_name=name) for item, name in NAMES.items()]
        return contract_pb2.ListContractsResponse(contracts=found)

    for name, method in (("DeleteContract", contract), ("UpdateContract", contract), ("CreateKey", created)):
        monkeypatch.setattr(FakeContracts, name, method)
    monkeypatch.setattr(FakeContracts, "ListContracts", listed)
    monkeypatch.setattr(FakeGateway, "UpdateUser", updated)
    monkeypatch.setattr(FakeGateway, "ListUsers", users)
    # A server registers the methods that its service has when it starts.
    request.getfixturevalue("url")
    return ids


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("word", ["c-1", "two at a time"])
def test_a_contract_is_found_by_its_id_and_its_name(asked: list[str], command: list[str], word: str) -> None:
    assert run([*command, word]) == Exit.OK
    assert asked == ["c-1"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_name_of_several_contracts_is_refused_with_their_ids(
    asked: list[str], command: list[str], capsys: Capture
) -> None:
    assert run([*command, "guests"]) == Exit.USAGE
    assert "  c-2\n  c-3\n" in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_of_a_wrong_name_the_nearest_is_named(asked: list[str], command: list[str], capsys: Capture) -> None:
    assert run([*command, "two at a tme"]) == Exit.NOT_FOUND
    assert capsys.readouterr().err == "error: there is no contract two at a tme\nhint: did you mean two at a time?\n"
    assert asked == []


def test_who_may_not_see_the_contracts_gives_an_id(asked: list[str], administrator: list[bool]) -> None:
    administrator.clear()
    assert run([*CREATE_KEY, "c-9"]) == Exit.OK
    assert asked == ["c-9"]


@pytest.mark.usefixtures("asked")
def test_lists_show_the_name_of_a_contract(capsys: Capture) -> None:
    assert run(["users", "list"]) == Exit.OK
    _, ada, bob = capsys.readouterr().out.splitlines()
    assert "two at a time" in ada
    assert "c-9" in bob
    assert run(["users", "list", "-o", "wide"]) == Exit.OK
    assert "c-1" in capsys.readouterr().out


def test_names_of_contracts_are_completed() -> None:
    listed = {"contracts": [{"contract_id": "c-1", "display_name": "guests"}]}
    assert candidates(["contracts", "rm", ""], lambda path: listed) == ["c-1", "guests"]
