"""A command line that the parser refuses is answered with what was typed and with the command that works."""

from __future__ import annotations

import io
import shlex
from types import SimpleNamespace

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.misuse import _FETCHES, _OF_OTHERS, _REMOVALS
from llamesh.cli.option_names import in_options
from llamesh.client.errors import FieldViolation, of_reason

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("typed", "cause", "hint"),
    [
        ("status foo 'b c'", "llamesh status takes no further argument: foo 'b c'", "llamesh status"),
        ("pull a b", "llamesh pull takes no further argument: b", "llamesh pull [SOURCE]"),
        ("chat", "llamesh chat: MODEL is missing", "llamesh chat MODEL [PROMPT]"),
        ("chat x --system", "--system needs a value", "llamesh chat MODEL [PROMPT] --system VALUE"),
        ("serve", "llamesh serve: MODEL is missing", "llamesh serve MODEL [-- FLAGS...]; `llamesh up` starts the mesh"),
        ("rm", "llamesh rm: MODEL is missing", "llamesh rm MODEL [MODELS...]"),
        ("scale x", "llamesh scale: REPLICAS is missing", "llamesh scale SERVER REPLICAS"),
        ("tls init a.lan", "llamesh tls init takes no further argument: a.lan", "llamesh tls init --name a.lan"),
        ("alias words ''", "llamesh alias: a name in NAMES is empty", "llamesh alias MODEL NAME"),
        ("apply mesh.yaml", "llamesh apply: --filename or -f is missing", "llamesh apply -f mesh.yaml"),
        ("delete my.yaml --dry-run", "llamesh delete: --filename or -f is missing", "llamesh delete -f my.yaml"),
        ("diff", "llamesh diff: --filename or -f is missing", "llamesh diff -f FILENAME"),
        ("set x --ctx-size 7x", "--ctx-size: '7x' is not a whole number", "llamesh set --help"),
        ("scale x y", "REPLICAS: 'y' is not a whole number", "llamesh scale --help"),
        ("chat x y --temperature warm", "--temperature: 'warm' is not a number", "llamesh chat --help"),
        ("jobs shwo", "llamesh jobs has no subcommand shwo. Did you mean show?", "llamesh jobs show --help"),
        (
            "downloads resum big",
            "llamesh downloads has no subcommand resum. Did you mean resume?",
            "llamesh downloads resume --help",
        ),
        (
            "variants zzz",
            "llamesh variants has no subcommand zzz",
            "llamesh variants has ls, list, rm; `llamesh variants --help` explains them",
        ),
        ("delete words", "llamesh delete: --filename or -f is missing", _REMOVALS),
        ("remove words", "there is no command remove", _REMOVALS),
        ("import ./m.gguf", "there is no command import", _FETCHES),
        ("update words", "there is no command update", _OF_OTHERS["update"]),
        ("models --json", "Unknown option: --json.", "llamesh models -o json"),
    ],
)
def test_a_refusal_names_the_typed_word_and_a_valid_one(typed: str, cause: str, hint: str, capsys: Capture) -> None:
    assert run(shlex.split(typed)) == Exit.USAGE
    assert capsys.readouterr().err == f"error: {cause}\nhint: {hint}\n"


@pytest.mark.parametrize("typed", ["apply -f -", "apply --filename - --dry-run", "diff -f -", "delete -f -"])
def test_a_manifest_is_read_from_standard_input(typed: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"kind: Nothing\n")))
    assert run(shlex.split(typed)) == Exit.USAGE
    assert "-:1: document 1: apiVersion: is missing" in capsys.readouterr().err


def test_a_refused_field_is_named_by_its_option() -> None:
    fields = (
        FieldViolation("changes.parameters.ctx_size", "must be at most 10"),
        FieldViolation("changes.model_name", "must have no control characters"),
        FieldViolation("changes.idle_sleep", "must be at most 9s"),
        FieldViolation("server_uuid", "is missing"),
    )
    message = "; ".join(f"{item.field}: {item.description}" for item in fields)
    refusal = of_reason("INVALID_FIELD", message, fields=fields)
    failure = in_options(refusal, {"ctx_size": 11, "name": "a", "idle_sleep": 600.0})
    assert failure is not None
    assert failure.cause == (
        "--ctx-size 11: must be at most 10; --name a: must have no control characters; "
        "--idle-sleep 600: must be at most 9s; server_uuid: is missing"
    )
    assert failure.code is Exit.USAGE


def test_a_refused_placement_is_named_by_its_option_with_the_remedy() -> None:
    words = "placement.image: 'evil:1' is not one of LLAMESH_ENGINE_IMAGES, which are engine:1"
    fields = (FieldViolation("placement.image", words),)
    refusal = of_reason("PLACEMENT_NOT_ALLOWED", words, metadata={"decisionId": "dec_1"}, fields=fields)
    failure = in_options(refusal, {"image": "evil:1"})
    assert failure is not None
    assert failure.cause == "--image evil:1: 'evil:1' is not one of LLAMESH_ENGINE_IMAGES, which are engine:1"
    assert failure.parts == ("details: llamesh why dec_1",)
    assert "administrator" in failure.hint
