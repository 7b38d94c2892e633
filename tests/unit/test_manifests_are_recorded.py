"""What an apply creates is recorded before it is in the mesh: whatever ends an apply, `--prune` knows its objects and no others."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from llamesh.cli.failure import CommandError
from llamesh.cli.manifest import reader
from llamesh.cli.manifest.executor import carry_out
from llamesh.cli.manifest.holdings import Holdings
from llamesh.cli.manifest.plan import plan
from llamesh.cli.manifest.pruning import to_prune
from llamesh.cli.manifest.record import Record
from llamesh.client.errors import MeshError
from llamesh.v1 import contract_pb2, server_pb2

HEAD = "apiVersion: llamesh.dev/v1alpha1\n"


class KilledError(BaseException):
    """Stands for a signal that ends the command."""


def record(folder: Path) -> Record:
    return Record("http://mesh", "set", {"XDG_STATE_HOME": str(folder)})


def contract(name: str = "team", id: str = "c1", after: timedelta = timedelta()) -> contract_pb2.Contract:
    made = contract_pb2.Contract(contract_id=id, display_name=name)
    made.create_time.FromDatetime(datetime.now(UTC) + after)
    return made


def ended(error: BaseException) -> Any:
    def create() -> Any:
        raise error

    return create


def test_nothing_is_created_if_the_record_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "llamesh").touch()
    called: list[str] = []
    with pytest.raises(CommandError) as raised:
        record(tmp_path).creating("Contract", "team", "team", lambda: called.append("created"))
    assert str(record(tmp_path).path) in str(raised.value)
    assert not called


@pytest.mark.parametrize(
    ("error", "after", "pruned"),
    [
        (KilledError(), timedelta(), True),
        (TimeoutError(), timedelta(), True),
        # Somebody made it later, or the mesh refused because it was there.
        (KilledError(), timedelta(hours=2), False),
        (CommandError("no password"), timedelta(), False),
    ],
)
def test_resources_created_by_an_interrupted_apply_are_pruned(
    tmp_path: Path, error: BaseException, after: timedelta, pruned: bool
) -> None:
    server = server_pb2.Server(server_uuid="s1", model_name="chat")
    server.create_time.FromDatetime(datetime.now(UTC) + after)
    for kind, found_by in (("Contract", "team"), ("ModelServe", "default/chat")):
        with pytest.raises(type(error)):
            record(tmp_path).creating(kind, "declared", found_by, ended(error))
    held = Holdings(contracts=[contract(after=after), contract("other", "c2", after)], servers=[server])
    found = [item for _, item in to_prune(record(tmp_path).entries(), [], held)]
    assert found == ([server, held.contracts[0]] if pruned else [])


@pytest.mark.parametrize("content", [b"", b"[{", b"{}1", b"[{}]", b"[1]", b"1", b"\xff", b"[" * 100_000], ids=range(8))
def test_a_record_that_cannot_be_read_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    kept = record(tmp_path)
    kept.path.parent.mkdir(parents=True)
    kept.path.write_bytes(content)
    called: list[str] = []
    for attempt in (kept.entries, lambda: kept.creating("Contract", "team", "team", lambda: called.append("created"))):
        with pytest.raises(CommandError, match="it is damaged") as raised:
            attempt()
        assert str(kept.path) in str(raised.value)
        assert "move it away" in raised.value.hint
    assert (called, kept.path.read_bytes()) == ([], content)


def test_a_resource_that_the_mesh_refused_is_not_recorded(tmp_path: Path) -> None:
    refused = MeshError("there is one")
    refused.reason = "USER_EXISTS"
    with pytest.raises(MeshError):
        record(tmp_path).creating("User", "ada", "ada", ended(refused))
    assert record(tmp_path).entries() == []


@pytest.mark.parametrize("other", ["https://mesh", "http://mesh.lan:8200", "http://localhost:8200"])
def test_what_was_created_at_one_address_is_known_at_every_other(tmp_path: Path, other: str) -> None:
    record(tmp_path).creating("Contract", "team", "team", contract)
    again = Record(other, "set", {"XDG_STATE_HOME": str(tmp_path)})
    assert [item.id for item in again.entries()] == ["c1"]
    again.creating("Contract", "more", "more", lambda: contract("more", "c2"))
    assert {item.id for item in record(tmp_path).entries()} == {"c1", "c2"}
    assert Record(other, "another set", {"XDG_STATE_HOME": str(tmp_path)}).entries() == []


def test_a_damaged_record_of_another_address_is_named_and_prevents_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path).creating("Contract", "team", "team", contract)
    record(tmp_path).path.write_bytes(b"[{")
    again = Record("https://mesh", "set", {"XDG_STATE_HOME": str(tmp_path)})
    assert again.entries() == []
    assert f"{record(tmp_path).path}: it is damaged; what it names is not pruned" in capsys.readouterr().err


def test_an_intention_means_nothing_at_another_address(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        record(tmp_path).creating("Contract", "team", "team", ended(KilledError()))
    assert len(record(tmp_path).entries()) == 1
    assert Record("http://other", "set", {"XDG_STATE_HOME": str(tmp_path)}).entries() == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:8200", "https://localhost:8200", "http://[::1]:8200"])
def test_a_record_of_an_earlier_release_is_taken_over(tmp_path: Path, url: str) -> None:
    """Earlier releases named the file by the address and the set together."""
    folder = tmp_path / "llamesh" / "applied"
    folder.mkdir(parents=True)
    name = hashlib.sha256(b"http://127.0.0.1:8200\nset").hexdigest()[:32]
    item = {"kind": "Contract", "name": "team", "id": "c1", "create_time": "2026-01-01T00:00:00Z", "found_by": ""}
    (folder / f"{name}.json").write_text(json.dumps([item]))
    kept = Record(url, "set", {"XDG_STATE_HOME": str(tmp_path)})
    assert [entry.id for entry in kept.entries()] == ["c1"]
    kept.creating("Contract", "more", "more", lambda: contract("more", "c2"))
    assert {entry.id for entry in kept.entries()} == {"c1", "c2"}


def test_resources_of_an_interrupted_apply_are_kept_while_declared(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        record(tmp_path).creating("Contract", "team", "team", ended(KilledError()))
    (tmp_path / "m.yaml").write_text(f"{HEAD}kind: Contract\nmetadata: {{name: team}}\n")
    held = Holdings(contracts=[contract()])
    actions = plan(reader.read([str(tmp_path / "m.yaml")]), held)
    assert to_prune(record(tmp_path).entries(), actions, held) == []


def test_two_writers_of_one_record_keep_the_entries_of_both(tmp_path: Path) -> None:
    one, two = record(tmp_path), record(tmp_path)

    def create() -> contract_pb2.Contract:
        two.creating("Contract", "b", "b", lambda: contract("b", "c2"))
        return contract("a", "c1")

    one.creating("Contract", "a", "a", create)
    assert {(item.name, item.id) for item in record(tmp_path).entries()} == {("a", "c1"), ("b", "c2")}


@pytest.mark.parametrize("first", [True, False])
def test_of_two_contracts_created_at_once_the_first_stays(tmp_path: Path, first: bool) -> None:
    ours, theirs = contract(id="ours"), contract(id="theirs", after=timedelta(seconds=1 if first else -1))
    removed: list[str] = []
    contracts = SimpleNamespace(
        create=lambda *_, **__: ours, list=lambda: iter([theirs, ours]), delete=lambda id: removed.append(id)
    )
    mesh = MagicMock()
    mesh.contracts = contracts
    (tmp_path / "m.yaml").write_text(f"{HEAD}kind: Contract\nmetadata: {{name: team}}\n")
    (action,) = plan(reader.read([str(tmp_path / "m.yaml")]), Holdings())
    if first:
        assert carry_out(mesh, action) == ours
        assert removed == []
    else:
        with pytest.raises(CommandError, match="at the same moment"):
            carry_out(mesh, action)
        assert removed == ["ours"]


def test_an_ambiguous_contract_is_reported_at_the_resource_that_names_it(tmp_path: Path) -> None:
    text = f"{HEAD}kind: Key\nmetadata: {{name: ci}}\nspec: {{contract: team, secretFile: t}}\n"
    (tmp_path / "m.yaml").write_text(f"{text}---\n{HEAD}kind: Contract\nmetadata: {{name: team}}\n")
    with pytest.raises(CommandError) as raised:
        plan(reader.read([str(tmp_path / "m.yaml")]), Holdings(contracts=[contract(), contract(id="c2")]))
    one, two = sorted(raised.value.parts)
    assert "(Key/ci): spec.contract: its name is that of several: c1, c2; write an id" in one
    assert "(Contract/team): metadata.name: its name is that of several: c1, c2; set metadata.annotations" in two


@pytest.mark.parametrize(
    "document",
    [
        "kind: Key\nmetadata: {name: ci}\nspec: {contract: team, secretFile: t}\n",
        "kind: User\nmetadata: {name: ada}\nspec: {contract: team, passwordFrom: {env: PASSWORD}}\n",
    ],
    ids=["key", "user"],
)
def test_a_contract_that_another_apply_made_since_the_plan_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    monkeypatch.setenv("PASSWORD", "long enough 1")
    (tmp_path / "m.yaml").write_text(HEAD + document)
    held = Holdings(contracts=[contract(id="c2")])
    (action,) = plan(reader.read([str(tmp_path / "m.yaml")]), held)
    mesh = MagicMock()
    later = contract(id="c1", after=timedelta(seconds=1))
    mesh.contracts.list.side_effect = lambda: iter([later, *held.contracts])
    made = mesh.keys.create.return_value
    made.key, made.token = contract_pb2.Key(key_id="k1", display_name="ci"), "token"
    mesh.keys.list.return_value = []
    carry_out(mesh, action)
    (call,) = mesh.users.create.mock_calls + mesh.keys.create.mock_calls
    assert call.kwargs["contract"] == "c2"
