"""Envoy's API as protobuf messages, from one committed descriptor set.

No package of generated Envoy code is imported: the only one overwrites files of other packages, and its import name equals the name of our
data folder. `envoy/api.binpb` (made by tools/envoy_api.py) is loaded into a descriptor pool of its own, separate from the default pool.

Invariant: the messages of `parse` are valid for the descriptor. A field that Envoy does not know is an error here, not a NACK later.
"""

import functools
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

TYPE_URL = "type.googleapis.com/"
_TYPED_STRUCT = "xds.type.v3.TypedStruct"
_API_FILE = Path(__file__).parents[2] / "envoy" / "api.binpb"


class EnvoyConfigError(ValueError):
    """A configuration is invalid for Envoy's API; the message names the field."""


@functools.cache
def pool() -> descriptor_pool.DescriptorPool:
    """Return the descriptor pool with Envoy's API and nothing else."""
    files = descriptor_pb2.FileDescriptorSet.FromString(_API_FILE.read_bytes())
    own = descriptor_pool.DescriptorPool()
    for file in files.file:
        own.AddSerializedFile(file.SerializeToString())
    return own


@functools.cache
def message_class(name: str) -> Any:
    """Return the class of the message with this full name, for instance `envoy.service.auth.v3.CheckRequest`.

    The type is `Any` because the fields are known only at run time.

    Raises:
        KeyError: the descriptor set has no such message.
    """
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(name))


def parse(config: dict[str, Any], name: str) -> Any:
    """Make the message `name` from `config`, which is written as in Envoy's own YAML.

    An extension whose type is not in the descriptor set is packed as xds.type.v3.TypedStruct, which Envoy resolves.

    Raises:
        EnvoyConfigError: a field is unknown or has a value of the wrong kind.
    """
    message = message_class(name)()
    try:
        return json_format.ParseDict(_packable(config, message.DESCRIPTOR), message, descriptor_pool=pool())
    except json_format.ParseError as error:
        raise EnvoyConfigError(f"{name}: {error}") from error


def pack(message: Message) -> Any:
    """Pack a message into a google.protobuf.Any; equal messages give equal bytes."""
    packed = message_class("google.protobuf.Any")()
    packed.type_url = TYPE_URL + message.DESCRIPTOR.full_name
    packed.value = message.SerializeToString(deterministic=True)
    return packed


def _packable(value: Any, descriptor: Descriptor) -> Any:
    """Replace every extension whose type is not in the descriptor set by a TypedStruct. Values of type Struct stay unchanged."""
    if not isinstance(value, dict) or descriptor.full_name == "google.protobuf.Struct":
        return value
    if descriptor.full_name == "google.protobuf.Any":
        return _packable_extension(value)
    fields = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    return {key: _packable_field(item, fields.get(key)) for key, item in value.items()}


def _packable_field(value: Any, field: FieldDescriptor | None) -> Any:
    if field is None or field.message_type is None:
        return value
    if field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: _packable_field(item, inner) for key, item in value.items()}
    if isinstance(value, list):
        return [_packable(item, field.message_type) for item in value]
    return _packable(value, field.message_type)


def _packable_extension(value: dict[str, Any]) -> dict[str, Any]:
    url = value.get("@type", "")
    content = {key: item for key, item in value.items() if key != "@type"}
    try:
        descriptor = pool().FindMessageTypeByName(url.removeprefix(TYPE_URL))
    except KeyError:
        return {"@type": TYPE_URL + _TYPED_STRUCT, "type_url": url, "value": content}
    return {"@type": url, **_packable(content, descriptor)}
