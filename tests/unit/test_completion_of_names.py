"""Tab completes commands without a mesh, names with one, and nothing where the mesh does not answer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from llamesh.cli.completion import candidates
from llamesh.cli.failure import CommandError
from llamesh.cli.shell import SCRIPTS

ANSWERS = {
    "/status": {
        "servers": [
            {"server_uuid": "0f0c6a0e", "model_name": "smol", "model_uuid": "m0"},
            {"server_uuid": "a1", "model_name": "", "model_uuid": "m1"},
        ]
    },
    "/keys": {"keys": [{"key_id": "key_1"}]},
    "/users": {"users": [{"username": "ada"}]},
    "/contracts": {"contracts": [{"contract_id": "small"}]},
    "/downloads": {"downloads": [{"model_uuid": "m1", "name": "words"}]},
    "/models": {
        "models": [
            {"model_uuid": "m1", "name": "small", "aliases": ["little", "tiny"]},
            {"model_uuid": "m2", "name": "unserved"},
        ]
    },
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
        (["stop", "s"], ["small", "smol"]),
        (["stop", ""], ["0f0c6a0e", "a1", "little", "small", "smol", "tiny"]),
        (["serve", ""], ["little", "m1", "m2", "small", "tiny", "unserved"]),
        (["serve", "small", "--ctx-s"], ["--ctx-size"]),
        (["chat", ""], ["little", "small", "smol", "tiny"]),
        (["chat", "smol", ""], []),
        (["alias", "l"], ["little"]),
        (["alias", "small", ""], []),
        (["alias", "small", "--remove", ""], ["little", "tiny"]),
        (["alias", "--remove", "m1", "little", ""], ["tiny"]),
        (["alias", "unserved", "--remove", ""], []),
        (["quantize", "s"], ["small"]),
        (["help", "st"], ["status", "stop"]),
        (["keys", "revoke", ""], ["key_1"]),
        (["users", "rm", "a"], ["ada"]),
        (["contracts", "update", ""], ["small"]),
        (["downloads", "retry", ""], ["m1", "words"]),
        (["users", "create", ""], []),
        (["users", "rm", "ada", ""], []),
        (["stop", "smol", ""], ["0f0c6a0e", "a1", "little", "small", "tiny"]),
        (["downloads", "retry", "m1", ""], []),
        (["run", "s"], ["small", "smol"]),
        (["show", "s"], ["small", "smol"]),
        (["downloads", ""], ["cancel", "list", "ls", "pause", "resume", "retry", "rm"]),
        (["scale", "smol", ""], []),
        (["nonsense", "-"], []),
        (["set", "sm"], ["small", "smol"]),
        (["serve", "small", "--flash-attn", ""], ["0", "1", "auto", "off", "on"]),
        (["serve", "small", "--flash-attn=o"], ["--flash-attn=off", "--flash-attn=on"]),
        (["serve", "small", "--cache-type-k", "q8"], ["q8_0"]),
        (["serve", "--ctx-size", "4096", "sm"], ["small"]),
        (["serve", "small", "--ctx-size", ""], []),
        (["serve", "small", "--wait", ""], []),
        (["serve", "small", "--wait="], ["--wait=false", "--wait=true"]),
        (["serve", "small", "--no-wai"], ["--no-wait"]),
        (["serve", "small", "--older"], []),
        (["serve", "small", "--model-draft", ""], ["little", "m1", "m2", "small", "tiny", "unserved"]),
        (["set", "smol", "--unset", "ctx-s"], ["ctx-size"]),
        (["status", "--output", "j"], ["json"]),
        (["keys", "create", "ci", "--scope", ""], ["infer:*", "infer:smol", "manage", "metrics"]),
        (["keys", "create", "ci", "--contract", ""], ["small"]),
        (["keys", "create", "ci", "--sc"], ["--scope"]),
        (["contracts", "create", "team", "--model", ""], ["smol"]),
        (["users", "create", "ada", "--role", ""], ["admin", "inference", "user"]),
        (["users", "enable", ""], ["ada"]),
        (["tls", ""], ["init", "trust"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
    ],
)
def test_completion_offers_the_possible_next_words(words: list[str], found: list[str]) -> None:
    assert candidates(words, fetch) == found


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_words_with_a_colon_or_an_equals_sign(tmp_path: Path) -> None:
    fake = tmp_path / "llamesh"
    fake.write_text('#!/bin/sh\nfor word; do last=$word; done\nprintf "%s\\n" "${last}b c" "$last*"\n')
    fake.chmod(0o755)
    for line, found in (
        ("llamesh keys create ci --scope infer:", ["b c", "*"]),
        ("llamesh serve x --flash-attn=", ["b c", "*"]),
        ("llamesh ", ["b c", "*"]),
        ("llamesh st", ["stb c", "st*"]),
    ):
        script = f"{SCRIPTS['bash']}\n_llamesh\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        asked = subprocess.run(
            ["bash", "-c", script],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", "COMP_LINE": line, "COMP_POINT": str(len(line))},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert asked.stdout.splitlines() == found


def test_commands_need_no_mesh() -> None:
    def never(path: str) -> object:
        raise AssertionError(path)

    assert "status" in candidates([""], never)


def test_each_list_of_the_mesh_is_read_once() -> None:
    asked: list[str] = []

    def counted(path: str) -> object:
        asked.append(path)
        return fetch(path)

    candidates(["stop", ""], counted)
    assert asked == ["/status", "/models"]


def test_a_mesh_that_does_not_answer_is_asked_once() -> None:
    asked: list[str] = []

    def counted(path: str) -> object:
        asked.append(path)
        return silent(path)

    assert candidates(["stop", ""], counted) == candidates(["chat", ""], silent) == []
    assert asked == ["/status"]


@pytest.mark.parametrize("answer", [[], {"servers": 1}, {"servers": [1, {"model_uuid": ["x"], "model_name": {}}]}])
def test_the_answer_of_another_program_completes_nothing(answer: object) -> None:
    assert candidates(["stop", ""], lambda _: answer) == []


def test_a_mesh_that_does_not_answer_completes_nothing() -> None:
    assert candidates(["stop", ""], silent) == []
