"""The public API for Envoy's filters: methods, those that need no token, and the fields of JSON bodies.

Invariant: everything is read from the descriptor set that Envoy transcodes with, so a new call needs no change here.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from buf.validate import validate_pb2
from llamesh.v1 import options_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    _Field.TYPE_STRING: "string",
    _Field.TYPE_BOOL: "bool",
    _Field.TYPE_INT32: "int32",
    _Field.TYPE_UINT32: "uint32",
    _Field.TYPE_INT64: "int64",
    _Field.TYPE_UINT64: "uint64",
    _Field.TYPE_FLOAT: "number",
    _Field.TYPE_DOUBLE: "number",
    _Field.TYPE_ENUM: "enum",
    _Field.TYPE_MESSAGE: "message",
}
"""The types of fields that strict_json.lua checks. The transcoder alone checks other types and messages of google.protobuf."""
_WELL_KNOWN = {"google.protobuf.Duration": "duration", "google.protobuf.Timestamp": "timestamp"}
_VARIABLE = re.compile(r"\{([^}=]+)(?:=([^}]*))?\}")
# Characters with a special meaning in a Lua pattern.
_MAGIC = re.compile(r"([-^$()%.\[\]*+?])")


@dataclass(frozen=True)
class Binding:
    """One REST form of a method."""

    verb: str
    path: str
    """The template of google.api.http, for instance `/servers/{server_uuid}:scale`."""
    body: str
    """Empty: no body. `*`: the body is the whole request. Otherwise: the name of the field that the body is."""


@dataclass(frozen=True)
class Method:
    """One method of a public service."""

    path: str
    """As in gRPC: `/llamesh.v1.GatewayService/GetHealth`."""
    request: str
    """Full name of the request message."""
    anonymous: bool
    """Needs no token."""
    internal: bool
    """Only for members of the mesh; Envoy has no route for it."""
    streams: bool
    """Answers with a stream of messages."""
    bindings: tuple[Binding, ...]

    @property
    def service(self) -> str:
        """Full name of its service."""
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        """Its own name, without that of its service."""
        return self.path.split("/")[2]

    @property
    def is_read_only(self) -> bool:
        """Whether the method changes nothing: every REST form of it is a GET."""
        return bool(self.bindings) and all(binding.verb == "GET" for binding in self.bindings)


class PublicApi:
    """The methods of the named services, and single methods of others (`llamesh.v1.GatewayService/GetHealth`).

    Raises:
        KeyError: the descriptor set lacks one of the services.
    """

    def __init__(self, descriptor_file: Path, services: Iterable[str], single: Iterable[str] = ()) -> None:
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_file.read_bytes())
        self._messages = {
            name: message for file in files.file for name, message in _messages(file.package, file.message_type)
        }
        self._enums = {name: values for file in files.file for name, values in _enums(file)}
        present = {f"{file.package}.{service.name}": service for file in files.file for service in file.service}
        named = [(name, method) for name in services for method in present[name].method]
        for each in single:
            service, _, wanted = each.partition("/")
            named += [(service, method) for method in present[service].method if method.name == wanted]
        self.methods = tuple(_method(name, method) for name, method in named)

    def body_rules(self) -> dict[str, Any]:
        """Return the table for strict_json.lua: the REST bindings of all calls, and the fields of every message that they use.

        A binding has its verb, the pattern of its path, the message of its body (empty if it has no body), the message of its query, and
        whether it streams or has an etag. A field has its name, its kind, `list` if it is repeated, and the name of its message or the
        values of its enum.
        """
        bindings: list[dict[str, Any]] = [
            {
                "verb": binding.verb,
                "path": _lua_pattern(binding.path),
                "message": self._body_message(method, binding),
                "query": method.request,
                "streams": method.streams,
                "etag": any(field.name == "etag" for field in self._messages[method.request].field),
            }
            for method in self.methods
            for binding in method.bindings
            if not method.internal
        ]
        reached: dict[str, Any] = {}
        for binding in bindings:
            self._reach(binding["message"], reached)
            self._reach(binding["query"], reached)
        return {"bindings": bindings, "messages": reached}

    def _body_message(self, method: Method, binding: Binding) -> str:
        if binding.body in ("", "*"):
            return method.request if binding.body else ""
        field = next(field for field in self._messages[method.request].field if field.name == binding.body)
        return field.type_name.removeprefix(".")

    def _reach(self, name: str, reached: dict[str, Any]) -> None:
        if not name or name in reached:
            return
        fields: dict[str, Any] = {}
        reached[name] = fields
        for field in self._messages[name].field:
            rule = self._rule(field)
            fields[field.name] = fields[field.json_name] = rule
            if rule["kind"] == "message":
                self._reach(rule["of"], reached)

    def _rule(self, field: descriptor_pb2.FieldDescriptorProto) -> dict[str, Any]:
        rule: dict[str, Any] = {"name": field.name, "kind": _KINDS.get(field.type, "any")}
        kind = field.type_name.removeprefix(".")
        bounds = field.options.Extensions[validate_pb2.field].uint32
        if field.type == _Field.TYPE_UINT32 and bounds.HasField("lte"):
            rule |= {"least": bounds.gte, "most": bounds.lte}
        if field.type == _Field.TYPE_MESSAGE and kind.startswith("google.protobuf."):
            rule["kind"] = _WELL_KNOWN.get(kind, "any")
        elif field.type == _Field.TYPE_MESSAGE and self._messages[kind].options.map_entry:
            return rule | {"kind": "any"}
        elif field.type == _Field.TYPE_MESSAGE:
            rule["of"] = kind
        elif field.type == _Field.TYPE_ENUM:
            rule["values"] = self._enums[kind]
        return rule | {"list": True} if field.label == _Field.LABEL_REPEATED else rule


def _messages(
    package: str, messages: Iterable[descriptor_pb2.DescriptorProto]
) -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
    for message in messages:
        name = f"{package}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)


def _enums(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, list[str]]]:
    outer = [(file.package, file.enum_type)]
    outer += [(name, message.enum_type) for name, message in _messages(file.package, file.message_type)]
    for package, enums in outer:
        for enum in enums:
            yield f"{package}.{enum.name}", [value.name for value in enum.value]


def _method(service: str, method: descriptor_pb2.MethodDescriptorProto) -> Method:
    access = method.options.Extensions[options_pb2.access]
    rule = method.options.Extensions[annotations_pb2.http]
    bindings = tuple(
        Binding(each.WhichOneof("pattern").upper(), getattr(each, each.WhichOneof("pattern")), each.body)
        for each in (rule, *rule.additional_bindings)
        if each.WhichOneof("pattern") in ("get", "put", "post", "delete", "patch")
    )
    path = f"/{service}/{method.name}"
    return Method(
        path, method.input_type.removeprefix("."), access.anonymous, access.internal, method.server_streaming, bindings
    )


def _lua_pattern(template: str) -> str:
    parts = _VARIABLE.split(template)
    pattern = _MAGIC.sub(r"%\1", parts[0])
    for glob, literal in zip(parts[2::3], parts[3::3], strict=True):
        pattern += (".+" if glob and "**" in glob else "[^/]+") + _MAGIC.sub(r"%\1", literal)
    return f"^{pattern}$"
