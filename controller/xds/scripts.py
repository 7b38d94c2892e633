"""The Lua scripts of Envoy's filters: the files below envoy/lua, combined with their tables.

Envoy accepts one text for each filter, so the modules come first, each as a function for `require`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.xds import anonymous_callers, templates
from controller.xds.public_api import PublicApi
from llamesh.kit import limits
from llamesh.kit.errors import PREFIX, Reason, spec_of
from llamesh.kit.inference_errors import ANTHROPIC_TYPES

_LIMITS_MODULES = (
    "json_text",
    "word_length",
    "character_sets",
    "grammar_text",
    "grammar_branches",
    "grammar_recursion",
    "grammar_cost",
    "schema_text",
    "schema_budget",
    "schema_document",
    "schema_values",
    "schema_beginnings",
    "schema_cost",
    "media",
    "request_shapes",
    "request_refusal",
    "request_totals",
    "request_texts",
    "request_products",
    "request_limits",
)
_ROUTE_MODULES = ("quotation", "json_body", "admission_digest", "callers", "clock", "token_scopes")
_ANSWERS_MODULES = ("engine_errors", "clock", "first_token", "usage")
_STRICT_MODULES = ("quotation", "json_body", "json_tree", "field_kinds", "nearest", "rpc_status")
_STRICT_REASONS = ("INVALID_FIELD", "NOT_IMPLEMENTED")


def route(changed: Mapping[str, int]) -> str:
    """Return the filter that decides about an inference request. `changed` has the limits that differ from the table's defaults."""
    return limits_modules(changed) + modules(*_ROUTE_MODULES) + file("route")


def answers() -> str:
    """Return the filter that measures an answer and converts an engine's errors to the format of the API."""
    table = literal(
        {
            "entries": [
                {key: item[key] for key in item if key != "why"} for item in templates.raw("replies/engine.yaml")
            ],
            "types": ANTHROPIC_TYPES,
        }
    )
    return module("engine_errors_table", f"return {table}") + modules(*_ANSWERS_MODULES) + file("answers")


_JOBS = " Jobs are at the port of the Quant service: 8300, or LLAMESH_QUANT_PORT."


def strict_json(api: PublicApi, elsewhere: str = "") -> str:
    """Return the filter that checks REST calls against their contracts. `elsewhere`: where calls are that the API does not have."""
    known = {
        "ELSEWHERE": f" {elsewhere}".rstrip(),
        "JOBS": _JOBS,
        "RULES": api.body_rules(),
        "REMEDIES": {reason: _remedy(reason) for reason in _STRICT_REASONS},
        "MAX_WITHOUT_TOKEN": anonymous_callers.MAX_BODY_BYTES,
    }
    head = "".join(f"local {name} = {literal(value)}\n" for name, value in known.items())
    return head + modules(*_STRICT_MODULES) + file("strict_json")


def without_token() -> str:
    """Return the filter that decides under which host names a management call needs no token."""
    head = f"local REMEDY = {literal(_remedy('HOST_NOT_ALLOWED'))}\n"
    return head + modules("quotation", "callers", "rpc_status") + file("without_token")


def empty() -> str:
    """Return the filter that drops a request's body on its way to the waker."""
    return file("empty")


def limits_modules(changed: Mapping[str, int]) -> str:
    """Return the modules that check a body against the table of limits, and the table. `changed` has the limits that differ from it."""
    table = literal({"limits": limits.changed(changed), "shapes": limits.shapes(), "paths": limits.paths()})
    return module("limits_table", f"return {table}") + modules(*_LIMITS_MODULES)


def file(name: str) -> str:
    """Return the source of a script below envoy/lua."""
    return (templates.FOLDER / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def modules(*names: str) -> str:
    """Return a Lua text that makes these files available to `require`."""
    return "".join(module(name, file(name)) for name in names)


def module(name: str, source: str) -> str:
    """Return a Lua text that makes the module `name` available to `require`."""
    return f"package.preload[{name!r}] = function(...)\n{source}\nend\n"


def literal(value: Any) -> str:
    """Return the Lua literal, in ASCII, of a value that JSON can express."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"[{literal(key)}]={literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ",".join(map(literal, value)) + "}"
    if isinstance(value, str):
        return f'"{"".join(_byte(byte) for byte in value.encode())}"'
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "nil"}[value]
    return str(value)


def _byte(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in b'"\\'
    return chr(byte) if plain else f"\\{byte:03d}"


def _remedy(reason: str) -> str:
    return spec_of(Reason.Value(PREFIX + reason)).remedy
