"""The answers that Envoy itself gives: the tables below envoy/replies as mappers of local replies.

Invariant: a client never reads Envoy's own error messages. REST and gRPC clients get the same google.rpc.Status. The inference listener
answers in OpenAI's format, in Anthropic's on the paths of its API, and in Ollama's below `/api/`, where nothing is served.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from google.protobuf import json_format

from controller.xds import templates
from llamesh import names
from llamesh.kit.errors import PREFIX, FieldViolation, MeshError, Reason
from llamesh.kit.inference_errors import ANTHROPIC_PATHS, anthropic_type

Entry: TypeAlias = Mapping[str, Any]

_STATUS = "response.code"
_OF_STATUS = {"status", "statuses", "least"}
_OPENAI = {
    "UNAUTHENTICATED": ("authentication_error", "invalid_api_key"),
    "DEADLINE_EXCEEDED": ("server_error", "timeout"),
}
"""OpenAI's type and code by reason. All other reasons mean an invalid request."""
_GRPC: list[dict[str, Any]] = [
    {
        "header_filter": {
            "header": {"name": "content-type", "string_match": {"safe_regex": {"regex": r"application/grpc(\+.*)?"}}}
        }
    },
    # A transcoded REST call looks like gRPC, but has this header.
    {"header_filter": {"header": {"name": "x-envoy-original-path", "present_match": False}}},
]
_ANTHROPIC = {
    "header_filter": {"header": {"name": ":path", "string_match": {"safe_regex": {"regex": ANTHROPIC_PATHS}}}}
}
_CEL_FORMATTER = {
    "name": "envoy.formatter.cel",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.formatter.cel.v3.Cel",
        "cel_config": {"enable_string_functions": True},
    },
}
_AS_IT_IS = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}, "content_type": "application/json"}
# Refusals of the Lua filters have the right format already.
_OF_LUA = {
    "filter": {
        "metadata_filter": {
            "matcher": {"filter": names.METADATA, "path": [{"key": "refused"}], "value": {"bool_match": True}},
            "match_if_key_not_found": False,
        }
    },
    "body_format_override": _AS_IT_IS,
}


def management(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the mappers of a management listener. `values` fill the placeholders of the messages."""
    mappers = [_OF_LUA]
    for entry in _entries("management", values):
        error = _mesh_error(entry)
        mappers += [_grpc_mapper(entry, error), _rest_mapper(entry, error)]
    return mappers


def inference(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the mappers of the inference listener. `values` fill the placeholders of the messages."""
    entries = _entries("inference", values)
    admission, *others = entries
    mappers = [_OF_LUA, *_inference_mappers(admission)]
    # Admission's refusals have the right format too.
    mappers.append({"filter": _filter({"flags": ["UAEX"]}), "body_format_override": _AS_IT_IS})
    for entry in others:
        mappers += _inference_mappers(entry)
    return mappers


def held(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the mappers of the internal listener before the waker."""
    return [
        mapper
        for entry in templates.fill(templates.raw("replies/held.yaml"), values)
        for mapper in _inference_mappers(entry)
    ]


def _entries(listener: Literal["management", "inference"], values: Mapping[str, Any]) -> list[Entry]:
    """Return the listener's table, with the shared table before its first entry that tests a status only."""
    own, shared = templates.raw(f"replies/{listener}.yaml"), templates.raw("replies/shared.yaml")
    first = next(at for at, entry in enumerate(own) if entry["when"].keys() <= _OF_STATUS)
    entries: list[Entry] = templates.fill([*own[:first], *shared, *own[first:]], values)
    return entries


def _filter(when: Mapping[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    """Return Envoy's filter for `when`: all its conditions, and `more`, must hold."""
    parts: list[dict[str, Any]] = list(more)
    conditions = []
    if details := when.get("details"):
        conditions.append(" || ".join(f"response.code_details.startsWith({json.dumps(each)})" for each in details))
    if statuses := when.get("statuses") or ([when["status"]] if "status" in when else []):
        conditions.append(" || ".join(f"{_STATUS} == {each}" for each in statuses))
    if "least" in when:
        conditions.append(f"{_STATUS} >= {when['least']}")
    if conditions:
        parts.append(_cel(" && ".join(f"({each})" for each in conditions)))
    if flags := when.get("flags"):
        parts.append({"response_flag_filter": {"flags": flags}})
    if header := when.get("header"):
        match = {"string_match": {"prefix": when["begins"]}} if "begins" in when else {"present_match": True}
        parts.append({"header_filter": {"header": {"name": header, **match}}})
    if key := when.get("metadata"):
        matcher = {"filter": names.METADATA, "path": [{"key": key}], "value": {"present_match": True}}
        parts.append({"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}})
    return parts[0] if len(parts) == 1 else {"and_filter": {"filters": parts}}


def _cel(expression: str) -> dict[str, Any]:
    config = {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        "expression": expression,
    }
    return {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": config}}


def _mapper(entry: Entry, filtered: dict[str, Any], body: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    if "retry_after" in entry:
        headers = {**headers, "retry-after": str(entry["retry_after"])}
    mapper: dict[str, Any] = {"filter": filtered, "body_format_override": body}
    if "status" in entry:
        mapper["status_code"] = entry["status"]
    if headers:
        mapper["headers_to_add"] = [
            {"header": {"key": key, "value": _literal(value)}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in headers.items()
        ]
    return mapper


def _mesh_error(entry: Entry) -> MeshError:
    fields = (FieldViolation(entry["field"], entry["message"]),) if "field" in entry else ()
    metadata = {**({"fields": entry["field"]} if fields else {}), **entry.get("metadata", {})}
    reason = Reason.Value(PREFIX + entry["reason"])
    return MeshError(reason, entry["message"], metadata, fields, entry.get("retry_after"))


def _grpc_mapper(entry: Entry, error: MeshError) -> dict[str, Any]:
    details = base64.b64encode(error.status().SerializeToString(deterministic=True)).rstrip(b"=").decode()
    headers = {
        "grpc-status": str(error.code.value[0]),
        # Envoy sets it from the body for gRPC, but not for gRPC-Web.
        "grpc-message": quote(error.message, safe=" !\"#$&'()*+,-./:;<=>?@[]^_`{|}~"),
        "grpc-status-details-bin": details,
    }
    body = {"text_format_source": {"inline_string": _literal(error.message)}}
    return _mapper(entry, _filter(entry["when"], *_GRPC), body, headers)


def _rest_mapper(entry: Entry, error: MeshError) -> dict[str, Any]:
    status = json_format.MessageToDict(error.status(), preserving_proto_field_name=True)
    return _mapper(entry, _filter(entry["when"]), {"json_format": _literals(status)}, {})


def _inference_mappers(entry: Entry) -> list[dict[str, Any]]:
    """Return two mappers: Anthropic's format on the paths of its API, OpenAI's on all others. Ollama's shape needs one."""
    if entry.get("shape") == "ollama":
        return [_mapper(entry, _filter(entry["when"]), {"json_format": {"error": entry["message"]}}, {})]
    kind, code = _OPENAI.get(entry.get("reason", ""), ("invalid_request_error", "invalid_request"))
    message = entry["message"]
    openai = {
        "message": message,
        "type": entry.get("type", kind),
        "param": entry.get("param"),
        "code": entry.get("code", code),
    }
    status = entry.get("status", 500 if openai["type"] == "server_error" else 400)
    anthropic = {"type": "error", "error": {"type": anthropic_type(status), "message": message}}
    formatters = {"formatters": [_CEL_FORMATTER]} if "%CEL(" in message else {}
    return [
        _mapper(entry, _filter(entry["when"], _ANTHROPIC), {"json_format": anthropic, **formatters}, {}),
        _mapper(entry, _filter(entry["when"]), {"json_format": {"error": openai}, **formatters}, {}),
    ]


def _literal(text: str) -> str:
    return text.replace("%", "%%")


def _literals(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literals(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literals(item) for item in value]
    return _literal(value) if isinstance(value, str) else value
