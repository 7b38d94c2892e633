"""A placement follows the rules of Kubernetes, in the contract and in the definition of ModelServe alike."""

from __future__ import annotations

from typing import Any

import protovalidate
import pytest
from google.protobuf import json_format

from controller.kubernetes import modelserve
from llamesh.kit.errors import MeshError
from llamesh.kit.validation import validate
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Placement, ServerSpec
from tests.unit.test_custom_resource_follows_the_contract import SPEC, accepts

DIGEST = f"@sha256:{'0' * 64}"

GOOD: list[dict[str, Any]] = [
    {},
    {"nodeSelector": {"zone": "a", "llamesh.dev/pool": "", "topology.kubernetes.io/zone": "eu-1.a_b"}},
    {"nodeSelector": {str(number): "x" for number in range(16)}},
    {"tolerations": [{"key": "dedicated"}]},
    {"tolerations": [{"key": "dedicated", "operator": "TOLERATION_OPERATOR_EQUAL", "value": "llm"}]},
    {"tolerations": [{"key": "dedicated", "value": "llm", "effect": "TAINT_EFFECT_NO_SCHEDULE"}]},
    {"tolerations": [{"key": "nvidia.com/gpu", "operator": "TOLERATION_OPERATOR_EXISTS"}]},
    {"tolerations": [{"key": "flaky", "effect": "TAINT_EFFECT_NO_EXECUTE", "tolerationSeconds": 0}]},
    {"gpus": {"count": 1}},
    {"gpus": {"count": 64, "resource": "amd.com/gpu"}},
    {"priorityClass": "batch.low"},
    {"image": "engine"},
    {"image": "registry.example:5000/team/engine__cuda-12.4:v1_2" + DIGEST},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"nodeSelector": {"zone": "a b"}}, "node_selector"),
    ({"nodeSelector": {"zone": "-a"}}, "node_selector"),
    ({"nodeSelector": {"zone": "a" * 64}}, "node_selector"),
    ({"nodeSelector": {str(number): "x" for number in range(17)}}, "node_selector"),
    ({"tolerations": [{}]}, "tolerations[0].key"),
    ({"tolerations": [{"operator": "TOLERATION_OPERATOR_EXISTS"}]}, "tolerations[0].key"),
    ({"tolerations": [{"key": "a"}, {"key": "b", "value": "a b"}]}, "tolerations[1].value"),
    ({"tolerations": [{"key": "a"}] * 17}, "tolerations"),
    ({"gpus": {}}, "gpus.count"),
    ({"gpus": {"count": 65}}, "gpus.count"),
    ({"gpus": {"count": 1, "resource": "gpu"}}, "gpus.resource"),
    ({"gpus": {"count": 1, "resource": "nvidia.com/"}}, "gpus.resource"),
    ({"priorityClass": "High"}, "priority_class"),
    ({"image": "engine:"}, "image"),
    ({"image": "../engine"}, "image"),
    ({"image": "registry.example/a/../b"}, "image"),
    ({"image": "Engine"}, "image"),
    ({"image": "engine@sha256:12"}, "image"),
    ({"image": "e" * 513}, "image"),
]
BAD_BY_RULES: list[tuple[dict[str, Any], str]] = [
    ({"nodeSelector": {"": "a"}}, "node_selector"),
    ({"nodeSelector": {"a b": "a"}}, "node_selector"),
    ({"nodeSelector": {"Domain/zone": "a"}}, "node_selector"),
    ({"nodeSelector": {"a/b/c": "a"}}, "node_selector"),
    ({"tolerations": [{"key": "a", "operator": "TOLERATION_OPERATOR_EXISTS", "value": "x"}]}, "tolerations[0]"),
    ({"tolerations": [{"key": "a", "tolerationSeconds": 5}]}, "tolerations[0]"),
    ({"tolerations": [{"key": "a", "effect": "TAINT_EFFECT_NO_SCHEDULE", "tolerationSeconds": 5}]}, "tolerations[0]"),
]
"""What a rule of Kubernetes in CEL refuses, which is no part of the schema."""


def of(placement: dict[str, Any]) -> ServerSpec:
    spec = ServerSpec(model_uuid="smol")
    json_format.ParseDict(placement, spec.placement)
    return spec


@pytest.mark.parametrize("placement", GOOD)
def test_a_placement_is_taken(placement: dict[str, Any]) -> None:
    protovalidate.validate(of(placement))
    assert accepts({"modelUuid": "smol", "placement": placement})


@pytest.mark.parametrize(("placement", "field"), BAD)
def test_the_definition_refuses_it_too(placement: dict[str, Any], field: str) -> None:
    assert not accepts({"modelUuid": "smol", "placement": placement})


@pytest.mark.parametrize(("placement", "field"), BAD + BAD_BY_RULES)
def test_a_placement_is_refused_with_its_field(placement: dict[str, Any], field: str) -> None:
    with pytest.raises(MeshError) as caught:
        validate(of(placement))
    assert any(each.field.startswith(f"placement.{field}") for each in caught.value.fields)
    assert "^" not in caught.value.message


def test_rules_of_the_definition_know_every_spelling_and_what_is_absent() -> None:
    placement = SPEC["properties"]["placement"]["properties"]
    value, seconds = [each["rule"] for each in placement["tolerations"]["items"]["x-kubernetes-validations"]]
    assert value == (
        "!(has(self.operator) && self.operator in ['EXISTS', 'exists', 'Exists', 'TOLERATION_OPERATOR_EXISTS'])"
        " || (has(self.value) ? self.value : '') == ''"
    )
    assert seconds == (
        "!has(self.tolerationSeconds) || (has(self.effect) && self.effect in "
        "['NO_EXECUTE', 'no_execute', 'NoExecute', 'TAINT_EFFECT_NO_EXECUTE'])"
    )
    (keys,) = placement["nodeSelector"]["x-kubernetes-validations"]
    assert keys["rule"].startswith("self.all(key, key.matches('^(")
    assert placement["tolerations"]["items"]["required"] == ["key"]
    assert placement["gpus"]["required"] == ["count"]


@pytest.mark.parametrize("effect", ["NO_SCHEDULE", "no_schedule", "NoSchedule", "TAINT_EFFECT_NO_SCHEDULE"])
def test_an_object_may_write_words_as_kubernetes_does(effect: str) -> None:
    spec = {
        "modelUuid": "smol",
        "placement": {
            "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "a", "operator": "Exists", "effect": effect}],
        },
    }
    assert accepts(spec)
    metadata = {"namespace": "n", "uid": "u", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    found = modelserve.declared({"metadata": metadata, "spec": spec}).spec.placement
    toleration = server_pb2.Toleration(
        key="a", operator=server_pb2.TOLERATION_OPERATOR_EXISTS, effect=server_pb2.TAINT_EFFECT_NO_SCHEDULE
    )
    assert found == Placement(node_selector={"a": "b"}, tolerations=[toleration])


def test_a_merge_patch_removes_what_is_gone_and_keeps_what_stays() -> None:
    before = {"a": 1, "map": {"x": "1", "y": "2", "deep": {"z": 1}}, "list": [1], "gone": {"b": 2}}
    after = {"a": 1, "map": {"x": "1", "y": "3", "deep": {}}, "list": [2], "new": {"c": 3}}
    assert modelserve.merge_patch(before, after) == {
        "map": {"y": "3", "deep": {"z": None}},
        "list": [2],
        "gone": None,
        "new": {"c": 3},
    }
    assert modelserve.merge_patch(before, before) == {}
