"""Write the JSON schema of a manifest from the contracts: `make gen`. It is shipped with llamesh.v1; `llamesh schema` prints it."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from buf.validate import validate_pb2
from llamesh.cli.manifest.kinds import API_VERSION, SPECS
from llamesh.cli.manifest.spec import DURATION
from llamesh.enum_words import spellings
from llamesh.runtime_parameters import about
from tools.comments import ROOT

SCHEMA = ROOT / "llamesh" / "v1" / "manifest.schema.json"
INTEGERS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_INT64)


def schema() -> str:
    """The schema as JSON."""
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "llamesh manifest",
        "oneOf": [_document(kind, spec.DESCRIPTOR) for kind, spec in SPECS.items()],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _document(kind: str, spec: Descriptor) -> dict[str, Any]:
    text = {"type": "object", "additionalProperties": {"type": "string"}}
    metadata = {"name": {"type": "string"}, "annotations": text, "labels": text, "namespace": {"type": "string"}}
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": kind},
            "metadata": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": metadata,
            },
            "spec": message(spec),
            "status": {"type": "object"},
        },
    }


def message(descriptor: Descriptor) -> dict[str, Any]:
    """The schema of a message: each field in snake case and in camel case."""
    properties: dict[str, Any] = {}
    for field in descriptor.fields:
        made = _field(field)
        if descriptor.name == "RuntimeParameters":
            made = {"description": about()[field.name], **made}
        properties[field.json_name] = made
        properties[field.name] = made
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _field(field: FieldDescriptor) -> dict[str, Any]:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if field.enum_type is not None:
        made: dict[str, Any] = {"enum": list(spellings(field))}
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _text(rules.map.values)}
    elif field.message_type is not None and field.message_type.full_name == DURATION:
        number = r"[0-9]+(\.[0-9]{1,9})?"
        made = {
            "type": ["string", "integer"],
            "pattern": f"^(?=.)({number}d)?({number}h)?({number}m)?({number}s?)?$",
        }
    elif field.message_type is not None:
        made = message(field.message_type)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        made = {"type": "boolean"}
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        made = _text(rules)
    else:
        made = {"type": "integer" if field.cpp_type in INTEGERS else "number", **_limits(rules)}
    return {"type": "array", "items": made} if isinstance(field.default_value, list) else made


def _text(rules: validate_pb2.FieldRules) -> dict[str, Any]:
    return {"type": "string", **({"pattern": rules.string.pattern} if rules.string.pattern else {})}


def _limits(rules: validate_pb2.FieldRules) -> dict[str, float]:
    chosen = rules.WhichOneof("type")
    if chosen not in {"uint32", "int32", "double"}:
        return {}
    names = {"gte": "minimum", "lte": "maximum"}
    return {names[key.name]: limit for key, limit in getattr(rules, chosen).ListFields() if key.name in names}


if __name__ == "__main__":
    SCHEMA.write_text(schema(), encoding="utf-8")
