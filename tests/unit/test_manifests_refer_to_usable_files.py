"""What a manifest refers to outside itself is checked before anything changes, if the plan needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.cli.failure import CommandError
from llamesh.cli.manifest import reader
from llamesh.cli.manifest.holdings import Holdings
from llamesh.cli.manifest.outside import unusable
from llamesh.cli.manifest.plan import Action, plan
from llamesh.client.profile import Profile
from llamesh.v1 import gateway_pb2, model_pb2

API = "apiVersion: llamesh.dev/v1alpha1\n"
REMOTE = Profile("http://mesh.example:8200")


def planned(folder: Path, text: str, held: Holdings) -> list[Action]:
    path = folder / "mesh.yaml"
    path.write_text(text)
    documents = reader.read([str(path)])
    return plan(documents, held, unusable(documents, held, REMOTE))


def user(reference: str, name: str = "bob") -> str:
    return f"{API}kind: User\nmetadata: {{name: {name}}}\nspec: {{passwordFrom: {{{reference}}}}}\n"


def model(source: str) -> str:
    return f"{API}kind: Model\nmetadata: {{name: m}}\nspec: {{source: '{source}'}}\n"


def key(file: str, name: str = "ci") -> str:
    return f"{API}kind: Key\nmetadata: {{name: {name}}}\nspec: {{secretFile: {file}}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (user("file: absent"), "spec.password_from.file: FOLDER/absent: No such file"),
        (user("file: empty"), "spec.password_from.file: empty holds no password: it must have 8 to 256 characters"),
        (user("file: short"), "short holds no password"),
        (user("file: ."), "is no regular file"),
        (user("file: '~nobody-such/x'"), "home directory ~nobody-such is not known"),
        (user('file: "a\\0b"'), "spec.password_from.file: embedded null byte"),
        (key('"a\\0b"'), "spec.secret_file: embedded null byte"),
        (model("a\\0b").replace("'", '"'), "spec.source: "),
        (user("env: NO_SUCH_VARIABLE"), "the environment variable NO_SUCH_VARIABLE is not set"),
        (model("absent.gguf"), "spec.source: there is no file FOLDER/absent.gguf"),
        (model("short"), "short is no GGUF file"),
        (model("https://h/a.gguf', projector: 'absent.gguf"), "spec.projector: there is no file FOLDER/absent.gguf"),
        (
            model("https://h/a.gguf', adapters: ['absent.gguf'], name: 'x"),
            "spec.adapters: absent.gguf is not NAME=SOURCE",
        ),
        (
            model("https://h/a.gguf', adapters: ['s=./no.gguf'], name: 'x"),
            "spec.adapters: there is no file FOLDER/no.gguf",
        ),
        (model("model.gguf"), "is on another machine and cannot read model.gguf of this one"),
        (key("no/such/folder"), "spec.secret_file: FOLDER/no/such/folder: its folder does not exist"),
        (key("short"), "spec.secret_file: FOLDER/short: File exists"),
        (key("new") + "---\n" + key("./new", "cj"), "is the file of another key: FOLDER/mesh.yaml:4:"),
    ],
)
def test_an_unusable_reference_is_refused_before_any_change(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CommandError) as raised:
        planned(tmp_path, text, Holdings())
    assert "nothing was changed" in raised.value.cause
    (part,) = raised.value.parts
    assert said.replace("FOLDER", str(tmp_path)) in part
    assert "short\n" not in part


def test_every_unusable_reference_is_listed_at_once(tmp_path: Path) -> None:
    text = "---\n".join([user("file: absent"), model("absent.gguf"), key("no/such/folder")])
    with pytest.raises(CommandError) as raised:
        planned(tmp_path, text, Holdings())
    assert len(raised.value.parts) == 3


def test_what_is_there_needs_no_reference(tmp_path: Path) -> None:
    held = Holdings(
        users={"bob": gateway_pb2.User(username="bob", role=gateway_pb2.ROLE_USER)},
        models={"m": model_pb2.Model(model_uuid="m", name="absent.gguf", source="file:///x/absent.gguf")},
    )
    actions = planned(tmp_path, "---\n".join([user("file: absent"), model("absent.gguf")]), held)
    assert [action.verb for action in actions] == ["unchanged", "unchanged"]
