"""Every mistake in a manifest is named with file, document, line, field and remedy, before a mesh is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.manifest import reader
from llamesh.cli.manifest.document import Document
from llamesh.v1 import server_pb2
from tools.manifest_schema import SCHEMA, schema

HEAD = "apiVersion: llamesh.dev/v1alpha1\nkind: ModelServe\nmetadata: {name: chat}\n"


def read(tmp_path: Path, text: str) -> list[Document]:
    path = tmp_path / "mesh.yaml"
    path.write_text(text)
    return reader.read([str(path)])


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(CommandError) as raised:
        read(tmp_path, text)
    assert raised.value.code == Exit.USAGE
    return [part.replace(f"{tmp_path}/", "") for part in raised.value.parts]


@pytest.mark.parametrize(
    "spec",
    [
        "{model_uuid: smol, idle_sleep: 600s, parameters: {ctx_size: 2048, flash_attn: SWITCH_ON, cache_type_k: Q8_0}}",
        "{modelUuid: smol, idleSleep: 10m, parameters: {ctxSize: 2048, flashAttn: on, cacheTypeK: q8_0}}",
        "{modelUuid: smol, idleSleep: 600, parameters: {ctxSize: 2048, flashAttn: on, cacheTypeK: q8_0}}",
        "{modelUuid: smol, idleSleep: 600s, parameters: {ctxSize: 2048, flashAttn: on, cacheTypeK: q8_0}}",
    ],
)
def test_every_spelling_of_names_enums_and_durations_is_taken(tmp_path: Path, spec: str) -> None:
    (document,) = read(tmp_path, f"{HEAD}spec: {spec}\n")
    wanted = server_pb2.ServerSpec(model_uuid="smol")
    wanted.idle_sleep.FromSeconds(600)
    wanted.parameters.ctx_size = 2048
    wanted.parameters.flash_attn = server_pb2.SWITCH_ON
    wanted.parameters.cache_type_k = server_pb2.CACHE_TYPE_Q8_0
    assert document.spec == wanted


@pytest.mark.parametrize(
    "placement",
    [
        "{node_selector: {zone: a}, tolerations: [{key: k, operator: Exists, effect: NoSchedule}], gpus: {count: 2}}",
        "{nodeSelector: {zone: a}, tolerations: [{key: k, operator: exists, effect: NO_SCHEDULE}], gpus: {count: 2}}",
    ],
)
def test_a_placement_is_read(tmp_path: Path, placement: str) -> None:
    (document,) = read(tmp_path, f"{HEAD}spec: {{model_uuid: smol, placement: {placement}}}\n")
    toleration = server_pb2.Toleration(
        key="k", operator=server_pb2.TOLERATION_OPERATOR_EXISTS, effect=server_pb2.TAINT_EFFECT_NO_SCHEDULE
    )
    assert document.spec == server_pb2.ServerSpec(
        model_uuid="smol",
        placement=server_pb2.Placement(
            node_selector={"zone": "a"}, tolerations=[toleration], gpus=server_pb2.Gpus(count=2)
        ),
    )


@pytest.mark.parametrize(
    ("spec", "line", "said"),
    [
        ("  replicass: 2\n", 6, "spec.replicass: unknown field; did you mean replicas?"),
        ("  parameters:\n    ctx_sise: 1\n", 7, "spec.parameters.ctx_sise: unknown field; did you mean ctx_size?"),
        ("  placement: {nodeSelector: {zone: 1}}\n", 6, "spec.placement.node_selector.zone: must be a text in quotes"),
        (
            "  placement: {nodeSelector: [zone]}\n",
            6,
            "spec.placement.node_selector: must be a mapping of names to texts",
        ),
        ("  placement: {nodeSelector: {zone: a b}}\n", 6, "spec.placement.node_selector: 'a b' does not match"),
        ("  placement:\n    tolerations: {key: a}\n", 7, "spec.placement.tolerations: must be a list"),
        (
            "  placement:\n    tolerations:\n    - {key: a}\n    - {key: b, effect: Never}\n",
            9,
            "spec.placement.tolerations[1].effect: must be one of NO_SCHEDULE",
        ),
        ("  placement: {gpus: {count: 65}}\n", 6, "spec.placement.gpus.count: must be between 1 and 64, not 65"),
        ("  replicas: many\n", 6, "spec.replicas: must be a whole number that is not negative"),
        ("  replicas: 1001\n", 6, "spec.replicas: must be between 0 and 1000, not 1001"),
        ("  idle_sleep: soon\n", 6, 'spec.idle_sleep: must be a length of time, for instance "600s" or "10m"'),
        ("  metered: perhaps\n", 6, "spec.metered: must be true or false"),
        ("  parameters: {pooling: x}\n", 6, "spec.parameters.pooling: must be one of NONE"),
        ("  modelName: 7\n", 6, "spec.model_name: must be a text in quotes"),
        ("  model_uuid: other\n", 6, "spec.model_uuid: is given twice"),
        ("  parameters: 3\n", 6, "spec.parameters: must be a mapping of fields to values"),
        ("  replicas: !env X\n", 6, "spec.replicas: must be a whole number that is not negative"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, spec: str, line: int, said: str) -> None:
    (problem,) = problems(tmp_path, f"{HEAD}spec:\n  modelUuid: smol\n{spec}")
    assert problem.startswith(f"mesh.yaml:{line}: document 1 (ModelServe/chat): {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Model\n", "mesh.yaml:1: document 1: apiVersion: is missing"),
        (HEAD.replace("v1alpha1", "v2"), "mesh.yaml:1: document 1: apiVersion: 'llamesh.dev/v2' is not known; write"),
        (HEAD.replace("ModelServe", "Modelserv"), "did you mean ModelServe?"),
        (
            HEAD.replace("metadata", "metdata"),
            "mesh.yaml:3: document 1: metdata: unknown field; did you mean metadata?",
        ),
        (HEAD, "document 1 (ModelServe/chat): spec.model_uuid: is missing"),
        (HEAD.replace("chat", "'a b/\u00fc'"), "metadata.name: 'a b/ü' must be letters, digits and"),
        (HEAD.replace("chat", "a" * 129), "mesh.yaml:3: document 1: metadata.name: is longer than 128 characters"),
        ("a: [1\n", "mesh.yaml:2: not YAML"),
        ("- 1\n", "mesh.yaml:1: document 1: must be a mapping"),
        (HEAD + "spec: &a [*a, *a]\n", "more than 50000 values or 50 levels"),
        (f"{HEAD}spec: {{gpu: {':'.join(['1'] * 100)}}}\n", "a value is longer than 64 characters"),
        (f"{HEAD}spec: {{model_uuid: {'a' * 65_537}}}\n", "a value is longer than 65536 characters"),
        (f"{HEAD}spec:\n  ? {'a' * 60_000}\n  : 1\n", f"spec.{'a' * 77}...: unknown field"),
        (f"? {'a' * 60_000}\n: 1\n", f"document 1: {'a' * 77}...: unknown field"),
        (HEAD.replace("ModelServe", "a" * 60_000), f"'{'a' * 77}...' is not known"),
        ("x: " + "[" * 3000 + "]" * 3000, "nested deeper"),
    ],
)
def test_a_file_that_is_not_a_document_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    assert said in problems(tmp_path, text)[0]


def test_all_mistakes_of_all_documents_are_said_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path, f"{HEAD}spec: {{modelUuid: a, x: 1, y: 2}}\n---\nkind: 1\n---\n{HEAD}spec: {{modelUuid: a}}\n"
    )
    assert len(found) == 3


def test_all_documents_of_a_file_share_one_limit_of_values(tmp_path: Path) -> None:
    document = f"{HEAD}spec: {{a: [{'0,' * 30_000}]}}\n---\n"
    found = problems(tmp_path, document * 4)
    assert len(found) == 2, "nothing is read after the limit"
    assert "document 2: more than 50000 values" in found[1]


def test_an_object_is_declared_once(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, f"{HEAD}spec: {{modelUuid: a}}\n---\n{HEAD}spec: {{modelUuid: b}}\n")
    assert problem.startswith("mesh.yaml:8: document 2 (ModelServe/chat): metadata.name: declared before: mesh.yaml:3")


def test_a_file_that_is_too_large_or_missing_is_refused(tmp_path: Path) -> None:
    for text in ("#" * (reader.MAX_FILE + 1), None):
        path = tmp_path / "mesh.yaml"
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)
        with pytest.raises(CommandError):
            reader.read([str(path)])


def test_empty_documents_declare_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "---\n---\n# nothing\n") == []


def test_status_is_for_readers(tmp_path: Path) -> None:
    (document,) = read(tmp_path, f"{HEAD}spec: {{modelUuid: a}}\nstatus: {{state: X}}\n")
    assert document.name == "chat"


def test_the_schema_equals_the_output_of_the_generator() -> None:
    assert SCHEMA.read_text() == schema()
    assert yaml.safe_load(schema())["oneOf"]
