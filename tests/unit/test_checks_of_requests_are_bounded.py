"""What a check of a request costs and says does not grow with what a caller sends."""

from __future__ import annotations

import time

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from llamesh.kit.errors import MeshError
from llamesh.kit.validation import LARGE, validate
from llamesh.v1 import (
    admission_pb2,
    checkpoint_pb2,
    contract_pb2,
    controller_pb2,
    download_pb2,
    gateway_pb2,
    quant_pb2,
)

CONTRACTS = (admission_pb2, checkpoint_pb2, contract_pb2, controller_pb2, download_pb2, gateway_pb2, quant_pb2)


def requests() -> list[Descriptor]:
    """Every message that a call takes, and every message in it."""
    found: dict[str, Descriptor] = {}
    left = [
        method.input_type
        for each in CONTRACTS
        for service in each.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    while left:
        message = left.pop()
        if message.full_name.startswith("llamesh.") and message.full_name not in found:
            found[message.full_name] = message
            left += [field.message_type for field in message.fields if field.message_type]
    return list(found.values())


@pytest.mark.parametrize("message", requests(), ids=lambda message: message.full_name)
def test_every_list_in_a_request_has_a_longest(message: Descriptor) -> None:
    for field in message.fields:
        if field.is_repeated and not field.containing_type.GetOptions().map_entry:
            rules = field.GetOptions().Extensions[validate_pb2.field]
            assert rules.repeated.max_items or rules.map.max_pairs, field.full_name


def refused(request: Message) -> tuple[MeshError, float]:
    started = time.process_time()
    with pytest.raises(MeshError) as caught:
        validate(request)
    return caught.value, time.process_time() - started


@pytest.mark.parametrize("scope", ["x", "infer:*"])
def test_items_are_counted_before_they_are_looked_at(scope: str) -> None:
    error, seconds = refused(contract_pb2.CreateKeyRequest(display_name="k", scopes=[scope] * 300_000))
    assert [(item.field, item.description) for item in error.fields] == [
        ("scopes", "must have at most 100 items, not 300000")
    ]
    assert seconds < 1


def test_a_large_request_is_refused_for_its_first_fault() -> None:
    request = contract_pb2.CreateKeyRequest(display_name="k" * LARGE, scopes=["x"] * 100)
    error, _ = refused(request)
    assert len(error.fields) == 1


def test_every_fault_of_a_small_request_is_listed() -> None:
    error, _ = refused(contract_pb2.CreateKeyRequest(scopes=["x", "y"]))
    assert [item.field for item in error.fields] == ["display_name", "scopes[0]", "scopes[1]"]
