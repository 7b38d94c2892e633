"""Runtime parameters as llama.cpp's flags, in canonical form, for people: `--ctx-size 2048 --no-warmup`.

Read from the contract's own options, so no flag is named here.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from llamesh.v1 import options_pb2
from llamesh.v1.server_pb2 import RuntimeParameters


def flags(parameters: RuntimeParameters) -> str:
    """What is set, in the order of the contract."""
    return " ".join(written for field, value in parameters.ListFields() if (written := _written(field, value)))


def _written(field: FieldDescriptor, value: Any) -> str:
    option = field.GetOptions().Extensions[options_pb2.llama]
    if value is True:
        return option.flag
    if value is False:
        return option.negative
    if field.enum_type is not None:
        value = field.enum_type.values_by_number[value].GetOptions().Extensions[options_pb2.llama_value]
    elif isinstance(value, float):
        value = f"{value:.10g}"
    return f"{option.flag} {value}"
