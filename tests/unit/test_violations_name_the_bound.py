"""What is wrong with a field of a request is said in words: no regular expression reaches a person."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from llamesh.kit.errors import MeshError
from llamesh.kit.validation import validate
from llamesh.kit.violations import PATTERNS
from llamesh.v1 import contract_pb2, gateway_pb2, quant_pb2
from tests.unit.test_checks_of_requests_are_bounded import requests


def _patterns(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from filter(None, (rules.string.pattern, rules.repeated.items.string.pattern))


def test_each_pattern_of_the_contracts_has_words() -> None:
    used = {pattern for message in requests() for pattern in _patterns(message)}
    assert used == PATTERNS.keys()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            contract_pb2.CreateKeyRequest(display_name="a", scopes=["foo"]),
            "scopes[0]: is not a scope: manage, metrics, infer:*, infer:MODEL or infer:SERVER_UUID",
        ),
        (contract_pb2.CreateKeyRequest(), "display_name: is missing"),
        (gateway_pb2.ServeRequest(), "model_uuid: is missing"),
        (gateway_pb2.ScaleServerRequest(), "server_uuid: is missing"),
        (
            quant_pb2.CreateQuantJobRequest(model_uuid="m", types=["Q8_0"], name="a b"),
            "name: must be 1 to 111 characters of A-Z, a-z, 0-9 and ._-, the first a letter or digit",
        ),
    ],
)
def test_a_violation_names_the_bound(request_: Message, said: str) -> None:
    with pytest.raises(MeshError) as caught:
        validate(request_)
    assert said in caught.value.message.split("; ")
