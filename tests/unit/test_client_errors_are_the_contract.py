"""The client's error classes are the contract's reasons, and an answer becomes the right one."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from llamesh.client import errors
from llamesh.v1 import error_reason_pb2, options_pb2

REASONS = [value for value in error_reason_pb2.ErrorReason.DESCRIPTOR.values if value.number]


class Failed(grpc.RpcError):
    """A labelled fake of what grpc raises."""

    def __init__(self, code: grpc.StatusCode, message: str, trailers: tuple[tuple[str, Any], ...] = ()) -> None:
        super().__init__()
        self._answer = code, message, trailers

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> str:
        return self._answer[1]

    def trailing_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._answer[2]


def failed(code: grpc.StatusCode, message: str, *details: Any) -> Failed:
    packed = []
    for detail in details:
        item = any_pb2.Any()
        item.Pack(detail)
        packed.append(item)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    return Failed(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


@pytest.mark.parametrize("value", REASONS, ids=lambda value: str(value.name))
def test_each_reason_has_a_class_under_its_code_with_its_remedy(value: Any) -> None:
    spec = value.GetOptions().Extensions[options_pb2.error]
    reason = value.name.removeprefix("ERROR_REASON_")
    code = getattr(grpc.StatusCode, code_pb2.Code.Name(spec.code))
    error = errors.of_call(failed(code, "no", error_details_pb2.ErrorInfo(reason=reason, domain="llamesh")))
    assert error.reason == reason
    assert error.code == code.name
    assert error.remedy == spec.remedy
    assert type(error) is not errors.MeshError
    assert isinstance(error, getattr(errors, "".join(word.capitalize() for word in code.name.split("_"))))


def test_metadata_are_attributes_and_are_numbers_if_the_example_is_a_number() -> None:
    info = error_details_pb2.ErrorInfo(reason="DOES_NOT_FIT", metadata={"neededBytes": "21", "freeBytes": "8"})
    code = code_pb2.Code.Name(
        error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name["ERROR_REASON_DOES_NOT_FIT"]
        .GetOptions()
        .Extensions[options_pb2.error]
        .code
    )
    with pytest.raises(errors.DoesNotFit) as caught:
        raise errors.of_call(failed(getattr(grpc.StatusCode, code), "too big", info))
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (21, 8)  # type: ignore[attr-defined]
    assert str(caught.value) == "too big"


def test_fields_and_the_time_to_come_back_are_read() -> None:
    bad = error_details_pb2.BadRequest(field_violations=[{"field": "replicas", "description": "too many"}])
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(2500)
    info = error_details_pb2.ErrorInfo(reason="INVALID_FIELD")
    error = errors.of_call(failed(grpc.StatusCode.INVALID_ARGUMENT, "no", info, bad, retry))
    assert error.fields == (errors.FieldViolation("replicas", "too many"),)
    assert error.retry_after == 2.5


@pytest.mark.parametrize(
    ("code", "builtin"),
    [
        ("NOT_FOUND", LookupError),
        ("DEADLINE_EXCEEDED", TimeoutError),
        ("PERMISSION_DENIED", PermissionError),
        ("UNAVAILABLE", ConnectionError),
        ("INVALID_ARGUMENT", ValueError),
    ],
)
def test_an_error_with_a_python_equivalent_is_also_a_subclass_of_it(code: str, builtin: type[Exception]) -> None:
    error = errors.of_call(Failed(getattr(grpc.StatusCode, code), "no"))
    assert isinstance(error, builtin)
    assert isinstance(error, errors.MeshError)
    assert str(error) == "no"


def test_a_reason_of_a_newer_mesh_keeps_its_name_and_remedy() -> None:
    info = error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE")
    words = error_details_pb2.LocalizedMessage(locale="en", message="Do this.")
    error = errors.of_call(failed(grpc.StatusCode.ABORTED, "no", info, words))
    assert (error.reason, error.code, error.remedy) == ("FROM_THE_FUTURE", "ABORTED", "Do this.")


def test_damaged_details_still_give_the_codes_error() -> None:
    damaged = Failed(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff\xff"),))
    assert isinstance(errors.of_call(damaged), errors.NotFound)


BROKEN_OFF = "Stream removed (RST_STREAM from the peer with error code 2)"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        (grpc.StatusCode.UNKNOWN, BROKEN_OFF),
        (grpc.StatusCode.INTERNAL, "Socket closed"),
    ],
)
def test_a_stream_that_breaks_off_is_unavailable(code: grpc.StatusCode, message: str) -> None:
    assert errors.of_call(Failed(code, message)).code == "UNAVAILABLE"


def test_an_internal_error_of_the_mesh_stays_one() -> None:
    info = error_details_pb2.ErrorInfo(reason="INTERNAL")
    assert errors.of_call(failed(grpc.StatusCode.INTERNAL, BROKEN_OFF, info)).code == "INTERNAL"
    assert errors.of_call(Failed(grpc.StatusCode.INTERNAL, "a bug")).code == "INTERNAL"
    assert errors.of_call(Failed(grpc.StatusCode.NOT_FOUND, BROKEN_OFF)).code == "NOT_FOUND"


def test_no_class_hides_a_name_of_python() -> None:
    import builtins

    made = [
        name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, errors.MeshError)
    ]
    assert len(made) > len(REASONS)
    assert [name for name in made if hasattr(builtins, name)] == []
