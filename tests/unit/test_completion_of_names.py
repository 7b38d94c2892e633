"""Tab completes commands without a mesh, names with one, and nothing where the mesh does not answer."""

from __future__ import annotations

import pytest

from llamesh.cli.completion import candidates
from llamesh.cli.failure import CommandError

ANSWERS = {
    "/status": {
        "servers": [{"server_uuid": "0f0c6a0e", "model_name": "smol"}, {"server_uuid": "a1", "model_name": ""}]
    },
    "/keys": {"keys": [{"key_id": "key_1"}]},
    "/users": {"users": [{"username": "ada"}]},
    "/contracts": {"contracts": [{"contract_id": "small"}]},
    "/downloads": {"downloads": [{"model_uuid": "m1"}]},
    "/models": {"models": [{"model_uuid": "m1", "name": "small"}]},
}


def fetch(path: str) -> object:
    return ANSWERS[path]


def silent(path: str) -> object:
    raise CommandError(f"{path}: nobody answers")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["st"], ["status", "stop"]),
        (["keys", ""], ["create", "list", "revoke"]),
        (["stop", "s"], ["smol"]),
        (["stop", ""], ["0f0c6a0e", "a1", "smol"]),
        (["serve", ""], ["m1", "small"]),
        (["serve", "small", "--ctx-s"], ["--ctx-size"]),
        (["chat", ""], ["smol"]),
        (["keys", "revoke", ""], ["key_1"]),
        (["users", "rm", "a"], ["ada"]),
        (["contracts", "update", ""], ["small"]),
        (["downloads", "retry", ""], ["m1"]),
        (["users", "create", ""], []),
        (["users", "rm", "ada", ""], []),
        (["run", "s"], ["small", "smol"]),
        (["show", "s"], ["smol"]),
        (["downloads", ""], ["cancel", "ls", "retry", "rm"]),
        (["scale", "smol", ""], []),
        (["nonsense", "-"], []),
    ],
)
def test_what_could_come_next(words: list[str], found: list[str]) -> None:
    assert candidates(words, fetch) == found


def test_commands_need_no_mesh() -> None:
    def never(path: str) -> object:
        raise AssertionError(path)

    assert "status" in candidates([""], never)


def test_a_mesh_that_does_not_answer_completes_nothing() -> None:
    assert candidates(["stop", ""], silent) == []
