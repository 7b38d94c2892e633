"""The table of errors: each reason has a code, a remedy and an example that programs can read; errors survive the wire."""

from __future__ import annotations

import json
import re

import grpc
import pytest

from llamesh.cli.remedies import REMEDIES
from llamesh.kit.errors import MeshError, Reason, name_of, spec_of

REASONS = [number for number in Reason.values() if number]


@pytest.mark.parametrize("reason", REASONS, ids=name_of)
def test_a_reason_has_code_remedy_and_example(reason: int) -> None:
    spec = spec_of(reason)
    assert re.fullmatch(r"[A-Z][A-Z_]{2,62}", name_of(reason))
    assert MeshError(reason, "m").code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    assert re.fullmatch(r".{10,200}\.", spec.remedy)
    example = json.loads(spec.example)
    assert all(isinstance(value, str) and re.fullmatch(r"[a-z][A-Za-z]*", key) for key, value in example.items())


@pytest.mark.parametrize("reason", REASONS, ids=name_of)
def test_the_status_of_a_reason_carries_it(reason: int) -> None:
    example = json.loads(spec_of(reason).example)
    status = MeshError(reason, "what happened", example).status()
    from google.rpc import error_details_pb2

    info, text = error_details_pb2.ErrorInfo(), error_details_pb2.LocalizedMessage()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(text)
    assert (info.reason, info.domain, dict(info.metadata)) == (name_of(reason), "llamesh", example)
    assert text.message == spec_of(reason).remedy
    assert status.message == "what happened"
    assert status.code == MeshError(reason, "m").code.value[0]


def test_an_error_says_its_reason_to_people() -> None:
    assert str(MeshError(Reason.ERROR_REASON_MODEL_NOT_FOUND, "no model m1")) == "MODEL_NOT_FOUND: no model m1"


def test_each_remedy_with_a_rest_call_has_a_command_equivalent() -> None:
    rest = re.compile(r"\b(GET|POST|PATCH|DELETE|PUT) [/:]")
    remedies = {name_of(reason): spec_of(reason).remedy for reason in REASONS}
    speak_rest = {name for name, remedy in remedies.items() if rest.search(remedy)}
    assert speak_rest - REMEDIES.keys() == set()


@pytest.mark.parametrize("reason", ["MODEL_NOT_READY", "DOWNLOAD_CONFLICT"])
def test_a_hint_about_a_download_that_has_not_ended_names_the_command_that_ends_it(reason: str) -> None:
    assert "`llamesh downloads cancel m1`" in REMEDIES[reason].format_map({"modelUuid": "m1"})
