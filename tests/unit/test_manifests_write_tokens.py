"""The token of a new key: its file holds a whole token, or there is no key. A key whose file holds none is not called unchanged."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from llamesh.cli.failure import CommandError
from llamesh.cli.manifest import reader
from llamesh.cli.manifest.executor import carry_out, without_token
from llamesh.cli.manifest.holdings import Holdings
from llamesh.cli.manifest.outside import unusable
from llamesh.cli.manifest.plan import Action, plan
from llamesh.client.profile import Profile
from llamesh.v1 import contract_pb2

KEY = "apiVersion: llamesh.dev/v1alpha1\nkind: Key\nmetadata: {name: ci}\nspec: {scopes: [manage], secretFile: ci.token}\n"


def token_of(key_id: str, *, ends: int = 4_000_000_000) -> str:
    """A token with the claims of a key, not signed."""
    claims = base64.urlsafe_b64encode(json.dumps({"jti": key_id, "exp": ends}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def ended(state: contract_pb2.KeyState = contract_pb2.KEY_STATE_REVOKED) -> contract_pb2.Key:
    return contract_pb2.Key(key_id="key_0", display_name="ci", scopes=["manage"], state=state)


class Keys:
    """The keys of a mesh."""

    def __init__(self, *held: contract_pb2.Key) -> None:
        self.held: list[contract_pb2.Key] = list(held)
        self.revoked: list[str] = []

    def create(self, name: str, **_: object) -> Any:
        key = contract_pb2.Key(key_id="key_1", display_name=name, scopes=["manage"], state=contract_pb2.KEY_STATE_WORKS)
        self.held.append(key)
        return SimpleNamespace(token="secret", key=key)

    def list(self) -> Iterator[contract_pb2.Key]:
        return iter(self.held)

    def revoke(self, key_id: str) -> None:
        self.revoked.append(key_id)


def planned(folder: Path, keys: Keys) -> Action:
    (folder / "mesh.yaml").write_text(KEY)
    (action,) = plan(reader.read([str(folder / "mesh.yaml")]), Holdings(keys=keys.held))
    return action


def checked(folder: Path, keys: Keys) -> dict[tuple[str, int], str]:
    (folder / "mesh.yaml").write_text(KEY)
    return unusable(reader.read([str(folder / "mesh.yaml")]), Holdings(keys=keys.held), Profile("http://mesh:8200"))


def applied(folder: Path, keys: Keys) -> None:
    mesh = MagicMock()
    mesh.keys = keys
    carry_out(mesh, planned(folder, keys))


@pytest.mark.parametrize("left", ["", "ci.token", ".ci.token.unfinished"])
def test_files_of_a_killed_apply_do_not_stop_the_next(tmp_path: Path, left: str) -> None:
    if left:
        (tmp_path / left).touch(mode=0o644)
    keys = Keys()
    applied(tmp_path, keys)
    assert (tmp_path / "ci.token").read_text() == "secret\n"
    assert (tmp_path / "ci.token").stat().st_mode & 0o777 == 0o600
    assert sorted(item.name for item in tmp_path.iterdir()) == ["ci.token", "mesh.yaml"]
    assert not without_token(planned(tmp_path, keys))


def test_a_file_with_content_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "ci.token").write_text("other")
    keys = Keys()
    with pytest.raises(CommandError, match="File exists"):
        applied(tmp_path, keys)
    assert (tmp_path / "ci.token").read_text() == "other"
    assert not keys.held


def test_no_key_is_made_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("llamesh.cli.manifest.token_file.os.write", full)
    keys = Keys()
    with pytest.raises(CommandError, match="No space left"):
        applied(tmp_path, keys)
    assert not keys.held
    assert [item.name for item in tmp_path.iterdir()] == ["mesh.yaml"]


def test_a_key_whose_token_cannot_be_written_is_revoked(tmp_path: Path) -> None:
    class Written(Keys):
        def create(self, name: str, **_: object) -> Any:
            (tmp_path / "ci.token").write_text("somebody else's")
            return super().create(name)

    keys = Written()
    with pytest.raises(CommandError, match="written by somebody else"):
        applied(tmp_path, keys)
    assert keys.revoked == ["key_1"]
    assert (tmp_path / "ci.token").read_text() == "somebody else's"


def test_a_second_key_of_two_created_at_once_is_revoked(tmp_path: Path) -> None:
    class Two(Keys):
        def create(self, name: str, **_: object) -> Any:
            made = super().create(name)
            made.key.create_time.FromSeconds(1)
            self.held.append(contract_pb2.Key(key_id="k", display_name=name, state=contract_pb2.KEY_STATE_WORKS))
            return made

    keys = Two()
    with pytest.raises(CommandError, match="at the same moment"):
        applied(tmp_path, keys)
    assert keys.revoked == ["key_1"]
    assert not (tmp_path / "ci.token").exists()


def test_the_unfinished_file_of_another_apply_is_not_taken_for_a_token(tmp_path: Path) -> None:
    class Replaced(Keys):
        def create(self, name: str, **_: object) -> Any:
            unfinished = tmp_path / ".ci.token.unfinished"
            unfinished.rename(tmp_path / "away")
            unfinished.write_bytes(bytes(8))
            return super().create(name)

    keys = Replaced()
    with pytest.raises(CommandError, match="written by somebody else"):
        applied(tmp_path, keys)
    assert keys.revoked == ["key_1"]
    assert not (tmp_path / "ci.token").exists()


@pytest.mark.parametrize("empty", [True, False])
def test_a_key_whose_token_is_lost_is_not_called_unchanged(tmp_path: Path, empty: bool) -> None:
    keys = Keys()
    keys.create("ci")
    if empty:
        (tmp_path / "ci.token").touch()
    said = without_token(planned(tmp_path, keys))
    assert "ci.token does not hold its token" in said
    assert "llamesh keys revoke key_1" in said


@pytest.mark.parametrize(
    "state", [contract_pb2.KEY_STATE_REVOKED, contract_pb2.KEY_STATE_EXPIRED, contract_pb2.KEY_STATE_OWNER_REMOVED]
)
def test_a_key_that_ended_is_made_again_in_its_file(tmp_path: Path, state: contract_pb2.KeyState) -> None:
    (tmp_path / "ci.token").write_text(token_of("key_0") + "\n")
    keys = Keys(ended(state))
    assert checked(tmp_path, keys) == {}
    applied(tmp_path, keys)
    assert (tmp_path / "ci.token").read_text() == "secret\n"


def test_the_token_of_a_key_that_is_listed_no_more_is_replaced_after_its_end(tmp_path: Path) -> None:
    (tmp_path / "ci.token").write_text(token_of("key_0", ends=1))
    applied(tmp_path, Keys())
    assert (tmp_path / "ci.token").read_text() == "secret\n"


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (token_of("key_0"), ended(contract_pb2.KEY_STATE_OWNER_DISABLED)),
        (token_of("key_0"), ended(contract_pb2.KEY_STATE_WORKS)),
        (token_of("key_of_another_mesh"), ended()),
        (token_of("login", ends=1), ended()),
        (f"{token_of('key_0')}\nand more", ended()),
        ("not a token", ended()),
    ],
)
def test_a_file_that_may_be_needed_is_refused_before_any_change(
    tmp_path: Path, content: str, known: contract_pb2.Key
) -> None:
    (tmp_path / "ci.token").write_text(content)
    known.display_name = "another"
    (problem,) = checked(tmp_path, Keys(known)).values()
    assert "spec.secret_file" in problem
    assert "File exists" in problem
    with pytest.raises(CommandError, match="File exists"):
        applied(tmp_path, Keys(known))
    assert (tmp_path / "ci.token").read_text() == content


def test_a_file_with_the_token_of_an_ended_key_is_not_called_that_of_a_present_key(tmp_path: Path) -> None:
    (tmp_path / "ci.token").write_text(token_of("key_0"))
    keys = Keys(ended())
    keys.create("ci")
    assert "does not hold its token" in without_token(planned(tmp_path, keys))
