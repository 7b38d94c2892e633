"""A plan is the difference between documents and a mesh: pure, in the order of dependencies, the whole spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamesh.cli.failure import CommandError
from llamesh.cli.manifest import reader
from llamesh.cli.manifest.executor import changes_of
from llamesh.cli.manifest.export import declared
from llamesh.cli.manifest.holdings import Holdings
from llamesh.cli.manifest.plan import Action, plan
from llamesh.cli.output import document as dumped
from llamesh.v1 import contract_pb2, gateway_pb2, model_pb2, server_pb2

API = "apiVersion: llamesh.dev/v1alpha1\n"


def full() -> Holdings:
    server = server_pb2.Server(
        server_uuid="0f0c6a0e-1", model_uuid="smol", model_name="Smol.gguf", replicas=2, etag="e"
    )
    server.spec.parameters.ctx_size = 2048
    server.spec.idle_sleep.FromSeconds(600)
    server.spec.namespace = "default"
    twin = server_pb2.Server()
    twin.CopyFrom(server)
    twin.server_uuid = "a1b2c3d4-2"
    return Holdings(
        models={"smol": model_pb2.Model(model_uuid="smol", name="Smol.gguf", sha256="a" * 64, source="smol.gguf")},
        contracts=[contract_pb2.Contract(contract_id="c1", display_name="team", models=["*"])],
        users={"ada": gateway_pb2.User(username="ada", role=gateway_pb2.ROLE_USER, contract_id="c1")},
        servers=[server, twin],
        keys=[
            contract_pb2.Key(key_id="key_1", display_name="ci", scopes=["infer:*"], state=contract_pb2.KEY_STATE_WORKS),
            contract_pb2.Key(key_id="key_2", display_name="old", scopes=["infer:*"]),
        ],
    )


def with_a_namesake() -> Holdings:
    """The same, and a server of one model that has the name of another model."""
    mesh = full()
    mesh.models["twin"] = model_pb2.Model(model_uuid="twin", name="Twin.gguf")
    mesh.models["other"] = model_pb2.Model(model_uuid="other", name="Other.gguf")
    mesh.servers.append(server_pb2.Server(server_uuid="5e4f", model_uuid="smol", model_name="Twin.gguf", replicas=1))
    return mesh


def planned(tmp_path: Path, text: str, held: Holdings) -> list[Action]:
    path = tmp_path / "mesh.yaml"
    path.write_text(text)
    return plan(reader.read([str(path)]), held)


def test_an_export_is_a_plan_without_changes(tmp_path: Path) -> None:
    mesh = full()
    items: list[Any] = [
        *mesh.models.values(),
        *mesh.contracts,
        *mesh.users.values(),
        *mesh.servers,
        *mesh.keys,
    ]
    text = "".join(f"---\n{dumped(declared(item), 'yaml')}\n" for item in items)
    actions = planned(tmp_path, text, mesh)
    assert [(item.verb, item.changes) for item in actions] == [("unchanged", ())] * 7


@pytest.mark.parametrize(
    "name", ["chat/completions n=1", 'über "x": #', "- [x]", "null", "1", " x ", "a\tb\x07", "\u2028", "😀" * 128]
)
def test_any_display_name_is_exported_and_read_again(tmp_path: Path, name: str) -> None:
    mesh = full()
    mesh.keys[0].display_name = mesh.contracts[0].display_name = name
    text = "".join(f"---\n{dumped(declared(item), 'yaml')}\n" for item in (mesh.contracts[0], mesh.keys[0]))
    assert [(item.verb, item.changes) for item in planned(tmp_path, text, mesh)] == [("unchanged", ())] * 2
    assert all(item.document.label.isprintable() for item in planned(tmp_path, text, mesh))


def test_the_order_is_that_of_dependencies(tmp_path: Path) -> None:
    text = "---\n".join(
        [
            f"{API}kind: Key\nmetadata: {{name: new}}\nspec: {{secretFile: x}}\n",
            f"{API}kind: ModelServe\nmetadata: {{name: s}}\nspec: {{modelUuid: other}}\n",
            f"{API}kind: User\nmetadata: {{name: bob}}\nspec: {{contract: team, passwordFrom: {{env: X}}}}\n",
            f"{API}kind: Contract\nmetadata: {{name: new}}\n",
            f"{API}kind: Model\nmetadata: {{name: other}}\nspec: {{source: 'https://h/O.gguf'}}\n",
        ]
    )
    actions = planned(tmp_path, text, full())
    assert [item.document.kind for item in actions] == ["Model", "Contract", "User", "ModelServe", "Key"]
    assert {item.verb for item in actions} == {"create"}
    assert actions[3].desired.model_name == "O.gguf"
    assert actions[2].desired.contract == "c1"


ROLE = {
    "p.gguf": model_pb2.MODEL_FILE_ROLE_PROJECTOR,
    **dict.fromkeys(("style", "none"), model_pb2.MODEL_FILE_ROLE_ADAPTER),
}
COMPANIONS = {
    "a projector comes": ([], "projector: 'https://h/p.gguf'", ["spec.projector: none -> https://h/p.gguf"]),
    "a projector goes": (["p.gguf"], "projector: none", ["spec.projector: p.gguf -> none"]),
    "a projector is there": (["p.gguf"], "projector: 'https://h/another.gguf'", []),
    "no projector is there": ([], "projector: none", []),
    "an adapter comes": ([], "adapters: ['style=hf:a/b/s.gguf']", ["spec.adapters: none -> style"]),
    "an adapter is there": (["style"], "adapters: ['style=hf:a/b/s.gguf']", []),
    "an adapter is replaced": (["style"], "adapters: ['law=hf:a/b/l.gguf']", ["spec.adapters: style -> law"]),
    "an adapter is called none": (["none"], "adapters: ['none=hf:a/b/s.gguf']", []),
    "an adapter comes that is called none": ([], "adapters: ['none=hf:a/b/s.gguf']", ["spec.adapters: none -> none"]),
    "the adapters go": (["style"], "adapters: [none]", ["spec.adapters: style -> none"]),
    "nothing is said": (["p.gguf", "style"], "name: Smol.gguf", []),
}


@pytest.mark.parametrize("case", COMPANIONS)
def test_the_projector_and_the_adapters_of_a_model_can_be_changed(tmp_path: Path, case: str) -> None:
    (present, written, expected), mesh = COMPANIONS[case], full()
    mesh.models["smol"].files.extend(model_pb2.ModelFile(name=name, role=ROLE[name]) for name in present)
    (action,) = planned(tmp_path, f"{API}kind: Model\nmetadata: {{name: smol}}\nspec: {{{written}}}\n", mesh)
    assert [str(change) for change in action.changes] == expected
    assert action.verb == ("update" if expected else "unchanged")


SERVER = f"{API}kind: ModelServe\nmetadata: {{name: s}}\n"


def test_a_field_that_is_absent_has_its_default(tmp_path: Path) -> None:
    mesh = full()
    del mesh.servers[1]
    (action,) = planned(tmp_path, SERVER + "spec: {modelUuid: smol, replicas: 3}\n", mesh)
    assert [str(item) for item in action.changes] == [
        "spec.replicas: 2 -> 3",
        "spec.parameters.ctx_size: 2048 -> default",
        "spec.idle_sleep: 600s -> default",
    ]
    changes = changes_of(action)
    assert changes.replicas == 3
    assert changes.HasField("runtime_params")
    assert changes.HasField("idle_sleep")
    assert not changes.HasField("metered")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SERVER + "spec: {modelUuid: smol}\n", "its name is that of several: 0f0c6a0e-1, a1b2c3d4-2"),
        (
            SERVER
            + "spec: {modelUuid: smol, modelName: n, parameters: {}}\n---\n"
            + SERVER.replace("name: s", "name: t")
            + "spec: {modelUuid: smol, modelName: n}\n",
            "servers of one manifest have different values of model_name",
        ),
        (
            f"{API}kind: Model\nmetadata: {{name: smol}}\nspec:\n  sha256: {'b' * 64}\n",
            "mesh.yaml:5: document 1 (Model/smol): spec.sha256: cannot be changed",
        ),
        (
            SERVER + "spec: {modelUuid: twin}\n",
            (
                "(ModelServe/s): spec.model_uuid: cannot be changed (smol -> twin); server 5e4f is served as Twin.gguf, which is"
                " the default without spec.model_name (metadata.name is not used for it); write another spec.model_name, or"
                " `llamesh stop 5e4f` first"
            ),
        ),
        (
            SERVER + "spec: {modelUuid: other, modelName: Twin.gguf}\n",
            "(smol -> other); server 5e4f is served as Twin.gguf; write another spec.model_name",
        ),
        (f"{API}kind: Model\nmetadata: {{name: absent}}\n", "spec.source: is needed"),
        (f"{API}kind: Key\nmetadata: {{name: new}}\n", "spec.secret_file: is needed to make the key"),
        (f"{API}kind: User\nmetadata: {{name: bob}}\n", "spec.password_from: is needed to make the user"),
        (f"{API}kind: Key\nmetadata: {{name: ci}}\nspec: {{scopes: [manage]}}\n", "`llamesh keys revoke key_1` first"),
    ],
)
def test_a_manifest_that_cannot_be_applied_is_refused_before_any_change(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CommandError) as raised:
        planned(tmp_path, text, with_a_namesake())
    assert said in raised.value.parts[0]


def test_a_damaged_model_is_fetched_again(tmp_path: Path) -> None:
    mesh = full()
    mesh.models["smol"].problem = "missing"
    (action,) = planned(tmp_path, f"{API}kind: Model\nmetadata: {{name: smol}}\nspec: {{source: /x/smol.gguf}}\n", mesh)
    assert (action.verb, action.changes) == ("update", ())


def test_another_spelling_of_an_address_is_no_change(tmp_path: Path) -> None:
    mesh = full()
    mesh.models["smol"].source = "hf:ada/tiny-GGUF:Q8_0"
    text = f"{API}kind: Model\nmetadata: {{name: smol}}\nspec: {{source: 'ADDRESS', name: Smol.gguf}}\n"
    for same in ("hf:ada/tiny-GGUF:Q8_0", "hf.co/ada/tiny-GGUF:Q8_0", "https://huggingface.co/ada/tiny-GGUF:Q8_0"):
        (action,) = planned(tmp_path, text.replace("ADDRESS", same), mesh)
        assert action.verb == "unchanged"
    with pytest.raises(CommandError) as raised:
        planned(tmp_path, text.replace("ADDRESS", "hf:ada/tiny-GGUF:Q4_0"), mesh)
    assert "spec.source: cannot be changed" in raised.value.parts[0]


KEY = f"{API}kind: Key\nmetadata: {{name: ci}}\nspec: {{scopes: SCOPES, contract: team, secretFile: ci.token}}\n"


def limited(*scopes: str) -> Holdings:
    mesh = full()
    mesh.contracts[0].models[:] = ["chat", "code"]
    mesh.keys[0].contract_id = "c1"
    mesh.keys[0].scopes[:] = scopes
    return mesh


@pytest.mark.parametrize(
    ("written", "held"),
    [
        ("[]", ("infer:chat", "infer:code")),
        ('["infer:*"]', ("infer:code", "infer:chat")),
        ('["infer:*", manage]', ("infer:chat", "infer:code", "manage")),
        # The contract had other models when the key was made.
        ("[]", ("infer:old",)),
    ],
)
def test_a_key_that_its_contract_has_narrowed_is_unchanged(tmp_path: Path, written: str, held: tuple[str, ...]) -> None:
    for contract in ("", f"---\n{API}kind: Contract\nmetadata: {{name: team}}\nspec: {{models: [other]}}\n"):
        actions = planned(tmp_path, KEY.replace("SCOPES", written) + contract, limited(*held))
        assert actions[-1].verb == "unchanged"


@pytest.mark.parametrize(
    ("written", "contract"),
    [
        ('["infer:chat"]', ""),
        ('["infer:*", manage]', ""),
        ('["infer:*"]', f"---\n{API}kind: Contract\nmetadata: {{name: team}}\nspec: {{}}\n"),
    ],
)
def test_a_key_that_lacks_declared_scopes_is_refused(tmp_path: Path, written: str, contract: str) -> None:
    with pytest.raises(CommandError) as raised:
        planned(tmp_path, KEY.replace("SCOPES", written) + contract, limited("infer:chat", "infer:code"))
    assert "spec.scopes: cannot be changed" in raised.value.parts[0]


def test_where_engines_run_is_compared_as_a_whole(tmp_path: Path) -> None:
    mesh = full()
    placement = server_pb2.Placement(node_selector={"zone": "true"}, gpus=server_pb2.Gpus(count=1))
    placement.tolerations.add(key="a", operator=server_pb2.TOLERATION_OPERATOR_EXISTS)
    mesh.servers[0].spec.placement.CopyFrom(placement)
    (same,) = planned(tmp_path, dumped(declared(mesh.servers[0]), "yaml"), mesh)
    assert same.verb == "unchanged"
    head = f"{API}kind: ModelServe\nmetadata: {{name: s, annotations: {{llamesh.dev/id: 0f0c6a0e-1}}}}\n"
    spec = "modelUuid: smol, replicas: 2, idleSleep: 10m, parameters: {ctxSize: 2048}"
    (other,) = planned(tmp_path, f"{head}spec: {{{spec}, placement: {{gpus: {{count: 2}}}}}}\n", mesh)
    assert [str(change) for change in other.changes] == [
        "spec.placement: --node-selector zone=true --toleration a --gpus 1 -> --gpus 2"
    ]
    assert changes_of(other) == server_pb2.ServerChanges(placement=server_pb2.Placement(gpus=server_pb2.Gpus(count=2)))
    for empty in ("", ", placement: {}"):
        (gone,) = planned(tmp_path, f"{head}spec: {{{spec}{empty}}}\n", mesh)
        assert [change.after for change in gone.changes] == ["default"]
        assert changes_of(gone).HasField("placement")
