"""`delete -f` removes the objects that the files declare, and no other object of the same name. Pure."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.cli.failure import CommandError
from llamesh.cli.manifest import reader
from llamesh.cli.manifest.holdings import Holdings
from llamesh.cli.manifest.removal import label, to_remove
from llamesh.v1 import contract_pb2, gateway_pb2, model_pb2, server_pb2

API = "apiVersion: llamesh.dev/v1alpha1\n"
SERVER = f"{API}kind: ModelServe\nmetadata: {{name: chat}}\nspec: {{modelUuid: MODEL, modelName: chat}}\n"
KEY = f"{API}kind: Key\nmetadata: {{name: ci}}\nspec: {{secretFile: x}}\n"


def mesh() -> Holdings:
    works = contract_pb2.KEY_STATE_WORKS
    return Holdings(
        models={"smol": model_pb2.Model(model_uuid="smol", name="Smol.gguf", source="Smol.gguf")},
        contracts=[contract_pb2.Contract(contract_id=number, display_name="team") for number in ("c1", "c2")],
        users={"ada": gateway_pb2.User(username="ada", role=gateway_pb2.ROLE_USER)},
        servers=[server_pb2.Server(server_uuid="0f0c6a0e", model_uuid="smol", model_name="chat", replicas=1)],
        keys=[contract_pb2.Key(key_id="key_1", display_name="ci", scopes=["infer:*"], state=works)],
    )


def removed(tmp_path: Path, text: str, held: Holdings) -> list[str]:
    path = tmp_path / "mesh.yaml"
    path.write_text(text)
    found = to_remove(reader.read([str(path)]), held)
    return [f"{item.label} is not there" if there is None else label(item, there) for item, there in found]


def test_declared_resources_are_removed_by_id_with_dependants_first(tmp_path: Path) -> None:
    user = f"{API}kind: User\nmetadata: {{name: ada}}\nspec: {{contract: team}}\n"
    model = f"{API}kind: Model\nmetadata: {{name: smol}}\nspec: {{source: ./Smol.gguf}}\n"
    text = "---\n".join([model, user, SERVER.replace("MODEL", "smol"), KEY])
    assert removed(tmp_path, text, mesh()) == [
        "Key/ci (key_1)",
        "ModelServe/chat (0f0c6a0e)",
        "User/ada",
        "Model/smol",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            SERVER.replace("MODEL", "other"),
            (
                "mesh.yaml:4: document 1 (ModelServe/chat): spec.model_uuid: 0f0c6a0e has smol, not other;"
                " if it is meant, set metadata.annotations.llamesh.dev/id to 0f0c6a0e"
            ),
        ),
        (KEY.replace("secretFile", "scopes: [manage], secretFile"), "spec.scopes: key_1 has infer:*, not manage"),
        (f"{API}kind: Contract\nmetadata: {{name: team}}\n", "its name is that of several: c1, c2"),
    ],
)
def test_another_object_of_the_same_name_is_not_removed(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CommandError, match="nothing was removed") as raised:
        removed(tmp_path, text, mesh())
    assert said in raised.value.parts[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (KEY.replace("ci}", "ci, annotations: {llamesh.dev/id: key_1}}"), "Key/ci (key_1)"),
        (KEY.replace("ci}", "ci, annotations: {llamesh.dev/id: key_0}}"), "Key/ci is not there"),
        (
            SERVER.replace("MODEL", "other").replace("chat}\n", "chat, annotations: {llamesh.dev/id: 0f0c6a0e}}\n", 1),
            "ModelServe/chat (0f0c6a0e)",
        ),
        (
            f"{API}kind: Contract\nmetadata: {{name: team, annotations: {{llamesh.dev/id: c0}}}}\n",
            "Contract/team is not there",
        ),
    ],
)
def test_a_document_with_an_id_means_that_object_only(tmp_path: Path, text: str, found: str) -> None:
    assert removed(tmp_path, text, mesh()) == [found]
