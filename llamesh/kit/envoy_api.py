"""Envoy's API as messages, read from one committed descriptor set.

No package of generated Envoy code is imported: the only one there is overwrites files of other packages, and its import name is taken by our data folder.
`envoy/api.binpb` (made by tools/envoy_api) is loaded into a descriptor pool of its own, so its google.* files never meet the process's own.

Invariant: what `parse` returns is valid for the descriptor; a field that Envoy does not know is an error here, not a NACK later.
"""

import functools
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

TYPE_URL = "type.googleapis.com/"
_TYPED_STRUCT = "xds.type.v3.TypedStruct"
_API_FILE = Path(__file__).parents[2] / "envoy" / "api.binpb"


class EnvoyConfigError(ValueError):
    """A configuration does not fit Envoy's API; the message names the field."""


@functools.cache
def pool() -> descriptor_pool.DescriptorPool:
    """The pool that holds Envoy's API and nothing else."""
    files = descriptor_pb2.FileDescriptorSet.FromString(_API_FILE.read_bytes())
    own = descriptor_pool.DescriptorPool()
    for file in files.file:
        own.AddSerializedFile(file.SerializeToString())
    return own


@functools.cache
def message_class(name: str) -> Any:
    """The class of the message with this full name, for instance `envoy.service.auth.v3.CheckRequest`.

    Its fields are known only at run time, hence `Any`.

    Raises:
        KeyError: the descriptor set has no such message.
    """
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(name))


def parse(config: dict[str, Any], name: str) -> Any:
    """The message `name` made of `config`, written as in Envoy's own YAML.

    An extension whose type the descriptor set lacks is packed as xds.type.v3.TypedStruct, which Envoy resolves itself.

    Raises:
        EnvoyConfigError: a field is unknown or has a value of the wrong kind.
    """
    try:
        return json_format.ParseDict(_with_typed_structs(config), message_class(name)(), descriptor_pool=pool())
    except json_format.ParseError as error:
        raise EnvoyConfigError(f"{name}: {error}") from error


def pack(message: Message) -> Any:
    """`message` in a google.protobuf.Any, its bytes the same for the same content."""
    packed = message_class("google.protobuf.Any")()
    packed.type_url = TYPE_URL + message.DESCRIPTOR.full_name
    packed.value = message.SerializeToString(deterministic=True)
    return packed


def _with_typed_structs(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_typed_structs(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {key: _with_typed_structs(item) for key, item in value.items()}
    url = fields.get("@type")
    if url is None or _is_known(url):
        return fields
    del fields["@type"]
    return {"@type": TYPE_URL + _TYPED_STRUCT, "type_url": url, "value": fields}


def _is_known(url: str) -> bool:
    try:
        pool().FindMessageTypeByName(url.removeprefix(TYPE_URL))
    except KeyError:
        return False
    return True
