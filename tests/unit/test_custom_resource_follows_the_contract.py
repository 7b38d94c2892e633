"""The definition of ModelServe accepts and refuses what the contract accepts and refuses."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import protovalidate
import pytest
import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from buf.validate import validate_pb2
from llamesh.cli.manifest.export import declared
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import RuntimeParameters, ServerSpec
from tools.custom_resource import DEFINITION, OF_CHART, definition

VERSION = yaml.safe_load(definition())["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
NUMBERS = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_DOUBLE}
BOUNDED = [
    field.name
    for field in RuntimeParameters.DESCRIPTOR.fields
    if field.cpp_type in NUMBERS and field.GetOptions().Extensions[validate_pb2.field].WhichOneof("type")
]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse unknown fields, as the API server does if it is asked to validate strictly; kubectl does ask."""
    made = copy.deepcopy(schema)
    if "properties" in made:
        made["properties"] = {name: strict(each) for name, each in made["properties"].items()}
        made["additionalProperties"] = False
    if "items" in made:
        made["items"] = strict(made["items"])
    # Kubernetes has the exclusive bounds of an older JSON schema: a flag beside the bound.
    if made.pop("exclusiveMinimum", False):
        made["exclusiveMinimum"] = made.pop("minimum")
    return made


STRICT = strict(SCHEMA)
STRICT["properties"]["metadata"] = {"type": "object"}
SPEC = STRICT["properties"]["spec"]


def accepts(spec: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(SPEC).is_valid(spec)


def contract_accepts(spec: ServerSpec) -> bool:
    try:
        protovalidate.validate(spec)
    except protovalidate.ValidationError:
        return False
    return True


def test_the_definition_equals_the_output_of_the_generator() -> None:
    for file in (DEFINITION, OF_CHART):
        assert file.read_text(encoding="utf-8") == definition()


def test_every_field_has_a_type_and_a_description() -> None:
    def check(schema: dict[str, Any], path: str) -> None:
        assert schema.get("type"), path
        for name, each in schema.get("properties", {}).items():
            assert path == "" or each.get("description"), f"{path}.{name}"
            check(each, f"{path}.{name}")
        if "items" in schema:
            check(schema["items"], f"{path}[]")

    check(SCHEMA, "")


def test_a_manifest_that_the_command_prints_applies_unchanged() -> None:
    spec = ServerSpec(model_uuid="smol", model_name="smol", replicas=2, metered=True)
    spec.idle_sleep.FromSeconds(600)
    spec.wake_budget.FromSeconds(60)
    spec.parameters.ctx_size = 2048
    spec.parameters.cache_type_k = server_pb2.CACHE_TYPE_Q8_0
    spec.placement.node_selector["zone"] = "a"
    spec.placement.tolerations.add(key="a", effect=server_pb2.TAINT_EFFECT_NO_EXECUTE, toleration_seconds=5)
    spec.placement.gpus.count = 1
    server = server_pb2.Server(
        server_uuid="0f0c6a0e-0000-4000-8000-000000000000",
        model_uuid="smol",
        model_name="smol",
        state=server_pb2.SERVER_STATE_READY,
        endpoint="http://127.0.0.1:8080/x/v1",
        replicas=2,
        ready_replicas=1,
        runtime_params="--ctx-size 2048",
        spec=spec,
        replica_statuses=[
            server_pb2.Replica(index=1, state=server_pb2.REPLICA_STATE_STARTING, instance="7", restarts=2)
        ],
        generation=3,
        observed_generation=3,
        etag="3",
        owner="admin",
    )
    server.conditions.add(type="Ready", status=server_pb2.CONDITION_STATUS_TRUE, reason="Serving")
    for moment in (server.create_time, server.update_time, server.next_start_time):
        moment.GetCurrentTime()
    document = declared(server)
    # Kubernetes drops `status` of what is applied before it checks the values, but refuses its unknown fields.
    names = STRICT["properties"]["status"]["properties"]
    assert set(document["status"]) <= set(names)
    assert {field for each in document["status"]["conditions"] for field in each} <= set(
        names["conditions"]["items"]["properties"]
    )
    document.pop("status")
    jsonschema.Draft202012Validator(STRICT).validate(document)


@pytest.mark.parametrize("name", BOUNDED)
def test_numbers_have_the_bounds_of_the_contract(name: str) -> None:
    field = RuntimeParameters.DESCRIPTOR.fields_by_name[name]
    limits = SPEC["properties"]["parameters"]["properties"][field.json_name]
    step = 0.5 if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE else 1
    lowest, highest = limits.get("minimum", limits.get("exclusiveMinimum")), limits["maximum"]
    tried = 0
    for value in (lowest - step, lowest, highest, highest + step):
        spec = ServerSpec(model_uuid="smol")
        try:
            json_format.ParseDict({"parameters": {name: value}}, spec)
        except json_format.ParseError:
            right = False
        else:
            right = contract_accepts(spec)
        assert accepts({"modelUuid": "smol", "parameters": {field.json_name: value}}) is right, value
        tried += right
    assert 0 < tried < 4


@pytest.mark.parametrize(
    ("spec", "right"),
    [
        ({}, False),
        ({"modelUuid": "smol"}, True),
        ({"modelUuid": "../smol"}, False),
        ({"modelUuid": "s" * 129}, False),
        ({"modelUuid": "smol", "modelName": ""}, True),
        ({"modelUuid": "smol", "modelName": "a b"}, False),
        ({"modelUuid": "smol", "replicas": 1001}, False),
        ({"modelUuid": "smol", "replicas": "2"}, False),
        ({"modelUuid": "smol", "replica": 2}, False),
        ({"modelUuid": "smol", "parameters": {"ctx_size": 2048}}, False),
        ({"modelUuid": "smol", "parameters": {"cacheTypeK": "Q8_0"}}, True),
        ({"modelUuid": "smol", "parameters": {"cacheTypeK": "q8_0"}}, True),
        ({"modelUuid": "smol", "parameters": {"cacheTypeK": "CACHE_TYPE_Q8_0"}}, True),
        ({"modelUuid": "smol", "parameters": {"cacheTypeK": "CACHE_TYPE_UNSPECIFIED"}}, False),
        ({"modelUuid": "smol", "parameters": {"chatTemplate": "chatml"}}, True),
        ({"modelUuid": "smol", "parameters": {"chatTemplate": "{{ messages }}"}}, False),
        ({"modelUuid": "smol", "parameters": {"lora": "style:0.5,law"}}, True),
        ({"modelUuid": "smol", "parameters": {"lora": "style;law"}}, False),
    ],
)
def test_specs_are_accepted_and_refused(spec: dict[str, Any], right: bool) -> None:
    assert accepts(spec) is right


def test_rules_across_values_come_from_the_contract() -> None:
    fields = SCHEMA["properties"]["spec"]["properties"]
    rules = {name: [each["rule"] for each in made.get("x-kubernetes-validations", [])] for name, made in fields.items()}
    assert rules["replicas"] == ["self >= 1"]
    assert rules["modelUuid"] == rules["namespace"] == ["self == oldSelf"]
    assert rules["modelName"][0].startswith("size(self) == 0 || (!self.matches(")
    assert rules["idleSleep"][0].startswith("self == duration('0s') || ")
    assert rules["wakeBudget"] == ["self >= duration('0s') && self <= duration('3600s')"]
    assert not [rule for each in rules.values() for rule in each if "this" in rule]


def test_a_condition_can_be_waited_for_with_kubectl() -> None:
    conditions = SCHEMA["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert conditions["items"]["properties"]["status"]["enum"] == ["True", "False", "Unknown"]
    assert VERSION["subresources"]["scale"]["specReplicasPath"] == ".spec.replicas"
