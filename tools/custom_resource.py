"""Write the CustomResourceDefinition of ModelServe from the contracts: `make gen`.

The schema of `spec` is ServerSpec as protobuf's JSON writes it (camel case), the schema of `status` is what Server says beyond the spec.
Types, bounds, enums and descriptions come from `proto/llamesh/v1/server.proto`. Rules of protovalidate in CEL become rules of Kubernetes
in CEL, those of messages too. A field that ServerChanges lacks cannot be changed, so it becomes immutable.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from buf.validate import validate_pb2
from llamesh.cli.manifest.kinds import API_VERSION
from llamesh.cli.manifest.spec import DURATION
from llamesh.enum_words import spellings
from llamesh.v1.server_pb2 import Server, ServerChanges, ServerSpec
from tools.comments import ROOT, comments_of

DEFINITION = ROOT / "deploy" / "kubernetes" / "modelserves.yaml"
OF_CHART = ROOT / "deploy" / "chart" / "files" / "modelserves.yaml"
"""The same for the chart, which cannot read files outside of its folder."""
GROUP, VERSION = API_VERSION.split("/")
TIMESTAMP = "google.protobuf.Timestamp"
_NUMBER = r"[0-9]+(\.[0-9]{1,9})?"
LENGTH = rf"^({_NUMBER}h({_NUMBER}m)?({_NUMBER}s)?|{_NUMBER}m({_NUMBER}s)?|{_NUMBER}s)$"
"""Durations that both the mesh and Kubernetes understand: of hours, minutes and seconds, none of them negative."""
CONDITION_STATUSES = ("True", "False", "Unknown")
"""Spelling of Kubernetes, which `kubectl wait --for=condition=Ready` expects."""
MEMORY = {
    "engineMemoryBytes": "Bytes of memory that one engine is expected to take, as the contract service estimates.",
    "sharedWeightsBytes": "Bytes of engineMemoryBytes that engines of the same model on one machine share.",
}
COLUMNS = (
    ("Model", "string", ".spec.modelName", 0),
    ("State", "string", ".status.state", 0),
    ("Ready", "integer", ".status.readyReplicas", 0),
    ("Endpoint", "string", ".status.endpoint", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Wanted", "integer", ".spec.replicas", 1),
    ("Why", "string", '.status.conditions[?(@.type=="Ready")].message', 1),
)
"""Columns of `kubectl get`: name, type, path, and 1 for those of `-o wide`."""
_MAX_ITEMS = 64
"""Maximum length of a list in a status. Kubernetes bounds the cost of rules by it."""


def definition() -> str:
    """Return the definition as YAML."""
    schema = {
        "type": "object",
        "description": "A model server that the mesh keeps running: llama.cpp with one model, reached through Envoy.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _spec(),
            "status": _status(),
        },
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
            for name, kind, path, priority in COLUMNS
        ],
    }
    document = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"modelserves.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": "ModelServe",
                "listKind": "ModelServeList",
                "plural": "modelserves",
                "singular": "modelserve",
                "shortNames": ["ms"],
                "categories": ["all", "llamesh"],
            },
            "versions": [version],
        },
    }
    head = "# Generated from proto/llamesh/v1/server.proto by `make gen`; do not edit.\n"
    return head + yaml.safe_dump(document, sort_keys=False, width=130, allow_unicode=True)


def _spec() -> dict[str, Any]:
    made = _message(ServerSpec.DESCRIPTOR)
    made["required"] = ["modelUuid"]
    words = "must be at least 1; a server sleeps by idleSleep, or by `llamesh sleep`"
    made["properties"]["replicas"] |= {
        "default": 1,
        "x-kubernetes-validations": [{"rule": "self >= 1", "message": words}],
    }
    changeable = ServerChanges.DESCRIPTOR.fields_by_name
    for field in ServerSpec.DESCRIPTOR.fields:
        if field.name not in changeable:
            rule = {"rule": "self == oldSelf", "message": "cannot be changed; declare another ModelServe"}
            made["properties"][field.json_name].setdefault("x-kubernetes-validations", []).append(rule)
    return made


def _status() -> dict[str, Any]:
    made = _message(Server.DESCRIPTOR)
    properties = made["properties"]
    # The object has it itself. Everything else stays, because `-o yaml` writes it and kubectl refuses unknown fields.
    del properties["spec"]
    properties["selector"] = {"type": "string", "description": "The labels of the pods, for the scale subresource."}
    for name, words in MEMORY.items():
        properties[name] = {"type": "integer", "format": "int64", "description": words}
    properties["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    condition = properties["conditions"]["items"]
    condition["required"] = ["type", "status"]
    condition["properties"]["status"]["enum"] = list(CONDITION_STATUSES)
    properties["replicaStatuses"]["x-kubernetes-list-type"] = "atomic"
    return made


def _message(descriptor: Descriptor) -> dict[str, Any]:
    """Return the schema of a message. Each field has the name of protobuf's JSON."""
    comments = comments_of("server.proto")
    properties = {
        field.json_name: {"description": comments[f"{descriptor.name}.{field.name}"], **_field(field)}
        for field in descriptor.fields
    }
    made: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [field.json_name for field in descriptor.fields if _rules(field).required]:
        made["required"] = required
    if rules := descriptor.GetOptions().Extensions[validate_pb2.message].cel:
        made["x-kubernetes-validations"] = [
            {"rule": _rule_of_message(rule.expression, descriptor), "message": rule.message} for rule in rules
        ]
    return made


def _rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def _field(field: FieldDescriptor) -> dict[str, Any]:
    rules = _rules(field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(rules.map)
    made = _of_type(field, rules)
    optional = rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE
    if rules.cel:
        made.setdefault("x-kubernetes-validations", []).extend(
            {"rule": _rule(rule.expression, optional), "message": rule.message} for rule in rules.cel
        )
    if isinstance(field.default_value, list):
        return {"type": "array", "maxItems": rules.repeated.max_items or _MAX_ITEMS, "items": made}
    return made


def _of_type(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> dict[str, Any]:
    if field.enum_type is not None:
        # `-o yaml` writes full names, people write the words without their prefix.
        return {"type": "string", "enum": list(spellings(field))}
    kind = field.message_type.full_name if field.message_type is not None else ""
    if kind == DURATION:
        return {"type": "string", "format": "duration", "pattern": LENGTH, "maxLength": 32, **_duration_rule(rules)}
    if kind == TIMESTAMP:
        return {"type": "string", "format": "date-time"}
    if kind:
        return _message(field.message_type)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _text(rules)
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return {"type": "number", **_limits(rules)}
    unsigned = field.cpp_type in {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
    return {"type": "integer", "format": "int64", **({"minimum": 0} if unsigned else {}), **_limits(rules)}


def _map(rules: validate_pb2.MapRules) -> dict[str, Any]:
    """Return the schema of a map of texts. Kubernetes has no patterns for keys, so a rule checks them."""
    pattern = rules.keys.string.pattern
    return {
        "type": "object",
        "maxProperties": rules.max_pairs,
        "additionalProperties": _text(rules.values),
        "x-kubernetes-validations": [
            {"rule": f"self.all(key, key.matches('{pattern}'))", "message": f"each key must match {pattern}"}
        ],
    }


def _text(rules: validate_pb2.FieldRules) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    text = rules.string
    if list(getattr(text, "in")):
        return {**made, "enum": list(getattr(text, "in"))}
    if text.pattern:
        made["pattern"] = f"^$|{text.pattern}" if rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE else text.pattern
    if text.min_len:
        made["minLength"] = text.min_len
    if longest := text.max_len or _longest(text.pattern):
        made["maxLength"] = longest
    return made


def _longest(pattern: str) -> int:
    """Return the length of the longest text that a pattern of counted repetitions accepts; 0 without a pattern."""
    return re._parser.parse(pattern).getwidth()[1] if pattern else 0  # type: ignore[attr-defined]


def _limits(rules: validate_pb2.FieldRules) -> dict[str, Any]:
    chosen = rules.WhichOneof("type")
    if chosen not in {"uint32", "int32", "double"}:
        return {}
    names = {"gte": {"minimum": None}, "lte": {"maximum": None}, "gt": {"minimum": None, "exclusiveMinimum": True}}
    made: dict[str, Any] = {}
    for key, limit in getattr(rules, chosen).ListFields():
        made |= {name: limit if value is None else value for name, value in names.get(key.name, {}).items()}
    return made


def _duration_rule(rules: validate_pb2.FieldRules) -> dict[str, Any]:
    limits = rules.duration
    parts = [
        f"self {sign} duration('{getattr(limits, name).ToSeconds()}s')"
        for name, sign in (("gte", ">="), ("lte", "<="))
        if limits.HasField(name)
    ]
    if not parts:
        return {}
    words = f"must be between {limits.gte.ToSeconds()}s and {limits.lte.ToSeconds()}s"
    return {"x-kubernetes-validations": [{"rule": " && ".join(parts), "message": words}]}


def _rule(expression: str, may_be_empty: bool) -> str:
    """Return a rule of protovalidate in the CEL of Kubernetes, which calls the value `self`."""
    rule = re.sub(r"\bthis\b", "self", expression)
    return f"size(self) == 0 || ({rule})" if may_be_empty else rule


def _rule_of_message(expression: str, descriptor: Descriptor) -> str:
    """Return a rule about fields of a message in the CEL of Kubernetes, where an enum is one of its spellings and a default is absent."""

    def compared(found: re.Match[str]) -> str:
        field, sign, value = descriptor.fields_by_name[found[1]], found[2], found[3]
        name = f"self.{field.json_name}"
        if field.enum_type is None:
            return f"(has({name}) ? {name} : '') {sign} {value}"
        meant = field.enum_type.values_by_number[int(value)].name
        words = ", ".join(f"'{word}'" for word, full in spellings(field).items() if full == meant)
        return f"{'!' if sign == '!=' else ''}(has({name}) && {name} in [{words}])"

    def present(found: re.Match[str]) -> str:
        return f"has(self.{descriptor.fields_by_name[found[1]].json_name})"

    rule = re.sub(r"(?<!\()\bthis\.(\w+) (==|!=) (\d+|'[^']*')", compared, expression)
    return re.sub(r"has\(this\.(\w+)\)", present, rule)


if __name__ == "__main__":
    for file in (DEFINITION, OF_CHART):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(definition(), encoding="utf-8")
