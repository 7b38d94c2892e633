"""A reference to a model, a contract or a scope that is neither in the mesh nor declared is refused by the plan, before any change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamesh.cli.failure import CommandError
from llamesh.cli.manifest import reader
from llamesh.cli.manifest.dangling import names_models, referents, warnings
from llamesh.cli.manifest.holdings import Holdings
from llamesh.cli.manifest.plan import Action, plan
from llamesh.v1 import contract_pb2, gateway_pb2, model_pb2, server_pb2

API = "apiVersion: llamesh.dev/v1alpha1\n"


def held() -> Holdings:
    return Holdings(
        models={"smol": model_pb2.Model(model_uuid="smol", name="Smol.gguf", aliases=["words"])},
        contracts=[contract_pb2.Contract(contract_id="c1", display_name="team", models=["later"])],
        users={"ada": gateway_pb2.User(username="ada", role=gateway_pb2.ROLE_USER, contract_id="gone")},
        servers=[server_pb2.Server(server_uuid="0f0c", model_uuid="removed", model_name="chat", replicas=1)],
        keys=[
            contract_pb2.Key(
                key_id="key_1",
                display_name="ci",
                scopes=["infer:chat"],
                contract_id="c1",
                state=contract_pb2.KEY_STATE_WORKS,
            )
        ],
    )


def planned(folder: Path, *documents: str) -> list[Action]:
    path = folder / "mesh.yaml"
    path.write_text("---\n".join(API + document for document in documents))
    return plan(reader.read([str(path)]), held())


def key(name: str, **spec: Any) -> str:
    return (
        f"kind: Key\nmetadata: {{name: {name}}}\nspec: {{secretFile: t, "
        + ", ".join(f"{field}: {value}" for field, value in spec.items())
        + "}\n"
    )


def server(**spec: Any) -> str:
    return (
        "kind: ModelServe\nmetadata: {name: s}\nspec: {modelName: new, "
        + ", ".join(f"{field}: {value}" for field, value in spec.items())
        + "}\n"
    )


def user(contract: str) -> str:
    return f"kind: User\nmetadata: {{name: bob}}\nspec: {{contract: {contract}, passwordFrom: {{env: X}}}}\n"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (server(modelUuid="smoll"), "spec.model_uuid: there is no model with the id smoll; did you mean smol?"),
        (server(modelUuid="words"), "spec.model_uuid: there is no model with the id words; did you mean smol?"),
        (server(modelUuid="qwen"), "there is no model with the id qwen, and none is declared here"),
        (
            server(modelUuid="smol", parameters="{modelDraft: tiny}"),
            "spec.parameters.model_draft: there is no model with the id tiny",
        ),
        (user("taem"), "(User/bob): spec.contract: there is no contract taem; did you mean team?"),
        (key("new", contract="taem"), "(Key/new): spec.contract: there is no contract taem; did you mean team?"),
        (key("new", scopes="['infer:caht']"), "spec.scopes: infer:caht: there is no model caht; did you mean chat?"),
        (key("new", scopes="['infer:words']"), "spec.scopes: infer:words: words is an alias; requests use Smol.gguf"),
        (
            key("new", scopes="['infer:smol']"),
            "spec.scopes: infer:smol: smol is the id of a model; requests use Smol.gguf",
        ),
        (
            "kind: Model\nmetadata: {name: declared}\nspec: {source: 'https://h/D.gguf'}\n---\n"
            + API
            + key("new", scopes="['infer:declared']"),
            "spec.scopes: infer:declared: declared is the id of a model; requests use D.gguf",
        ),
        (
            "kind: Contract\nmetadata: {name: new}\nspec: {models: [words]}\n",
            "(Contract/new): spec.models: words is an alias; requests use Smol.gguf",
        ),
        (key("new", scopes="[manag]"), "spec.scopes: manag is no scope; did you mean manage?"),
        (
            key("new", scopes="[qqqqzz]"),
            "(Key/new): spec.scopes: qqqqzz is no scope: manage, metrics, infer:*, infer:MODEL",
        ),
        (key("ci", contract="taem", scopes="['infer:chat']"), "there is no contract taem; did you mean team?"),
        (key("ci", contract="team", scopes="['infer:caht']"), "infer:caht: there is no model caht"),
    ],
)
def test_a_reference_to_nothing_is_refused_with_what_was_meant(tmp_path: Path, document: str, said: str) -> None:
    with pytest.raises(CommandError) as raised:
        planned(tmp_path, document)
    (part,) = raised.value.parts
    assert said in part
    assert "cannot be changed" not in part


def test_all_references_to_nothing_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as raised:
        planned(tmp_path, server(modelUuid="qwen"), user("none"), key("new", contract="none", scopes="['infer:none']"))
    assert len(raised.value.parts) == 4


@pytest.mark.parametrize("name", ["chat", "0f0c", "Smol.gguf", "later", "new", "Q.gguf", "planned"])
def test_what_is_there_or_declared_may_be_named(tmp_path: Path, name: str) -> None:
    actions = planned(
        tmp_path,
        key("new", contract="declared", scopes=f"['infer:{name}', 'infer:*', metrics]"),
        user("declared"),
        server(modelUuid="qwen"),
        "kind: Contract\nmetadata: {name: declared}\nspec: {models: [planned]}\n",
        "kind: Model\nmetadata: {name: qwen}\nspec: {source: 'https://h/Q.gguf'}\n",
    )
    assert {action.verb for action in actions} == {"create"}


def test_references_that_do_not_change_are_not_checked(tmp_path: Path) -> None:
    actions = planned(
        tmp_path,
        "kind: User\nmetadata: {name: ada}\nspec: {contract: gone}\n",
        "kind: ModelServe\nmetadata: {name: s}\nspec: {modelUuid: removed, modelName: chat}\n",
    )
    assert [action.verb for action in actions] == ["unchanged", "unchanged"]


def test_a_contract_for_a_model_that_is_not_there_yet_is_planned_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(f"{API}kind: Contract\nmetadata: {{name: new}}\nspec: {{models: [chat, caht, '*']}}\n")
    documents = reader.read([str(path)])
    (said,) = warnings(plan(documents, held()), referents(documents, held()))
    assert said.endswith("spec.models: no model and no server is named caht; did you mean chat?")
    assert names_models(documents[0])


def test_a_contract_that_does_not_change_is_not_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(f"{API}kind: Contract\nmetadata: {{name: team}}\nspec: {{models: [later]}}\n")
    documents = reader.read([str(path)])
    assert list(warnings(plan(documents, held()), referents(documents, held()))) == []
