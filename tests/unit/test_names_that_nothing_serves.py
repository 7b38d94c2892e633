"""The command warns of names in keys and contracts that nothing has, and of names that servers share. It refuses neither."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from llamesh.cli import change, contracts, keys, run, serve
from llamesh.cli.failure import Exit
from llamesh.cli.main import run as command
from llamesh.client.errors import MeshError
from llamesh.v1 import contract_pb2, model_pb2, server_pb2

Capture = pytest.CaptureFixture[str]
NOPE = "no model and no server is named nope; it allows nothing until one has this name"
SMOLL = "no model and no server is named smoll; did you mean smol?"


def server(uuid: str, name: str = "smol", model: str = "m1", ctx_size: int = 512) -> server_pb2.Server:
    made = server_pb2.Server(
        server_uuid=uuid, model_name=name, model_uuid=model, runtime_params=f"--ctx-size {ctx_size}"
    )
    made.spec.model_name = name
    return made


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A mesh with a model and one server of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    fake = MagicMock()
    fake.__enter__.return_value = fake
    fake.models.list.return_value = [model_pb2.Model(model_uuid="m1", name="smol.gguf", aliases=["words"])]
    fake.models.find.side_effect = lambda name: name
    fake.servers.list.return_value = [server("s1")]
    fake.servers.get.side_effect = lambda name: server(name)
    fake.contracts.list.return_value = [contract_pb2.Contract(contract_id="c1", display_name="team")]
    fake.contracts.create.return_value = fake.contracts.update.return_value = contract_pb2.Contract()
    fake.keys.create.return_value = contract_pb2.CreateKeyResponse(token="secret")
    for module in (keys, contracts, serve, change, run):
        monkeypatch.setattr(module, "connected", lambda: fake)
    return fake


def warned(capsys: Capture, *arguments: str) -> list[str]:
    assert command([*arguments]) == Exit.OK
    return [line for line in capsys.readouterr().err.splitlines() if "named" in line]


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        ("infer:nope", [NOPE]),
        ("infer:smoll", [SMOLL]),
        ("infer:smol", []),
        ("infer:smol.gguf", []),
        ("infer:s1", []),
        ("infer:*", []),
        ("manage", []),
    ],
)
def test_a_key_for_a_name_that_nothing_has_is_made_with_a_warning(
    mesh: MagicMock, capsys: Capture, scope: str, said: list[str]
) -> None:
    assert warned(capsys, "keys", "create", "x", "--scope", scope) == said
    mesh.keys.create.assert_called_once()


@pytest.mark.parametrize(("name", "kind"), [("words", "an alias"), ("m1", "the id of a model")])
@pytest.mark.parametrize(
    "arguments", ["keys create x --scope infer:", "contracts create x --model=", "contracts update c1 --model="]
)
def test_another_name_of_a_model_is_refused_until_a_server_has_it_as_its_name(
    mesh: MagicMock, capsys: Capture, arguments: str, name: str, kind: str
) -> None:
    assert command(f"{arguments}{name}".split()) == Exit.USAGE
    hint = (
        "hint: or serve the model by this name first: llamesh serve smol.gguf --name words\n" if name == "words" else ""
    )
    assert capsys.readouterr().err == f"error: {name} is {kind}; requests use smol.gguf\n{hint}"
    for made in (mesh.keys.create, mesh.contracts.create, mesh.contracts.update):
        made.assert_not_called()


@pytest.mark.parametrize("name", ["words", "m1"])
def test_another_name_that_a_server_has_as_its_name_is_taken(mesh: MagicMock, capsys: Capture, name: str) -> None:
    mesh.servers.list.return_value = [server("s1", name=name)]
    assert warned(capsys, "keys", "create", "x", "--scope", f"infer:{name}") == []


def test_each_name_is_told_once(mesh: MagicMock, capsys: Capture) -> None:
    scopes = ["--scope", "infer:nope", "--scope", "infer:nope", "--scope", "infer:smoll"]
    assert warned(capsys, "keys", "create", "x", *scopes) == [NOPE, SMOLL]


def test_a_key_without_names_asks_for_no_lists(mesh: MagicMock, capsys: Capture) -> None:
    assert warned(capsys, "keys", "create", "x") == []
    mesh.models.list.assert_not_called()


def test_a_mesh_that_lists_no_models_gives_no_warning(mesh: MagicMock, capsys: Capture) -> None:
    mesh.models.list.side_effect = MeshError("not allowed")
    assert warned(capsys, "keys", "create", "x", "--scope", "infer:nope") == []
    mesh.keys.create.assert_called_once()


@pytest.mark.parametrize("words", [["create", "new"], ["update", "team"]])
def test_a_contract_for_a_name_that_nothing_has_is_kept_with_a_warning(
    mesh: MagicMock, capsys: Capture, words: list[str]
) -> None:
    assert warned(capsys, "contracts", *words, "--model", "nope", "--model", "smol") == [NOPE]
    assert warned(capsys, "contracts", *words, "--model", "*") == []


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (server("s2", ctx_size=9), "2 servers are named smol and share its requests; `llamesh set s2 --name NAME`"),
        (server("s2", model="m2"), "2 servers, of different models, are named smol and share its requests"),
        (server("s2", name="other", ctx_size=9), ""),
    ],
)
def test_a_second_server_of_one_name_is_declared_with_a_warning(
    mesh: MagicMock, capsys: Capture, declared: server_pb2.Server, said: str
) -> None:
    mesh.servers.serve.return_value = declared
    mesh.servers.list.return_value.append(declared)
    lines = warned(capsys, "serve", "m1")
    assert [line[: len(said)] for line in lines] == ([said] if said else [])


def test_an_equal_server_is_told_of_once(mesh: MagicMock, capsys: Capture) -> None:
    mesh.servers.serve.return_value = server("s2")
    assert command(["serve", "m1"]) == Exit.OK
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "server" in line]
    assert line.startswith("s1 serves the same model with the same parameters")


def test_a_server_that_gets_the_name_of_another_is_warned_of(mesh: MagicMock, capsys: Capture) -> None:
    mesh.servers.list.return_value.append(server("s2", name="free"))
    mesh.servers.get.side_effect = lambda name: server(name, name="free")
    mesh.servers.update.return_value = server("s2", model="m2")
    (line,) = warned(capsys, "set", "s2", "--name", "smol")
    assert line.startswith("2 servers, of different models, are named smol")


def test_a_run_under_the_name_of_another_model_is_warned_of(mesh: MagicMock, capsys: Capture) -> None:
    mesh.servers.serve.return_value = server("s2", model="m2")
    mesh.models.list.return_value.append(model_pb2.Model(model_uuid="m2", name="smol2"))
    assert run._server(mesh, "smol2", ctx_size=None, idle_sleep=600.0).server_uuid == "s2"
    assert "2 servers, of different models, are named smol" in capsys.readouterr().err
