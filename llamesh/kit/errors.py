"""The error type of the mesh. Any code raises it with a reason of the contract; the interceptor turns it into a rich gRPC status.

Invariant: the gRPC code and the remedy of each reason are read from the descriptor of error_reason.proto, and defined nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from llamesh.v1 import error_reason_pb2, options_pb2

DOMAIN = "llamesh"
DETAILS_KEY = "grpc-status-details-bin"
PREFIX = "ERROR_REASON_"

Reason = error_reason_pb2.ErrorReason

_CODES = {code.value[0]: code for code in grpc.StatusCode}


@cache
def spec_of(reason: error_reason_pb2.ErrorReason.ValueType) -> options_pb2.ErrorSpec:
    """Return the code, remedy and example that the contract gives for a reason."""
    options = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_number[reason].GetOptions()
    return options.Extensions[options_pb2.error]


@cache
def name_of(reason: error_reason_pb2.ErrorReason.ValueType) -> str:
    """Return a reason as ErrorInfo carries it: without the enum's prefix."""
    return Reason.Name(reason).removeprefix(PREFIX)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field that breaks a rule: its path in the request, and the problem."""

    field: str
    description: str


class StartRefused(Exception):  # noqa: N818 - not an error of the program
    """The process cannot start with its configuration. The process prints the message, which names the remedy, and exits with 2."""


@dataclass(slots=True, eq=False)
class MeshError(Exception):
    """An error with a reason of the contract.

    `metadata` has every variable of the message, for programs. `fields` are the invalid fields. `retry_after` is the time in seconds
    after which a retry may succeed.
    """

    reason: error_reason_pb2.ErrorReason.ValueType
    message: str
    metadata: Mapping[str, object] = field(default_factory=dict)
    fields: Sequence[FieldViolation] = ()
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{name_of(self.reason)}: {self.message}"

    @property
    def code(self) -> grpc.StatusCode:
        """gRPC code of the reason."""
        return _CODES[spec_of(self.reason).code]

    @property
    def remedy(self) -> str:
        """Instruction for the caller."""
        return spec_of(self.reason).remedy

    def status(self) -> status_pb2.Status:
        """Return the error as google.rpc.Status: ErrorInfo, the remedy as LocalizedMessage, and BadRequest and RetryInfo if they apply."""
        info = error_details_pb2.ErrorInfo(reason=name_of(self.reason), domain=DOMAIN)
        for key, value in self.metadata.items():
            info.metadata[key] = str(value)
        details: list[any_pb2.Any] = [_packed(info)]
        if self.remedy:
            details.append(_packed(error_details_pb2.LocalizedMessage(locale="en", message=self.remedy)))
        if self.fields:
            violations = [
                error_details_pb2.BadRequest.FieldViolation(field=item.field, description=item.description)
                for item in self.fields
            ]
            details.append(_packed(error_details_pb2.BadRequest(field_violations=violations)))
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(int(self.retry_after * 1000))
            details.append(_packed(retry))
        return status_pb2.Status(code=self.code.value[0], message=self.message, details=details)


def invalid_field(name: str, description: str) -> MeshError:
    """Return the error for one field that breaks a rule."""
    return MeshError(
        Reason.ERROR_REASON_INVALID_FIELD,
        f"{name}: {description}",
        {"fields": name},
        (FieldViolation(name, description),),
    )


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: MeshError) -> None:
    """End a call with an error; raises grpc.aio.AbortError."""
    await context.abort(error.code, error.message, ((DETAILS_KEY, error.status().SerializeToString()),))


def _packed(message: error_details_pb2.ErrorInfo | object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed


def component_unavailable(component: str, why: str = "does not answer") -> MeshError:
    """Return the error for a service of the mesh that cannot be used now; the caller may retry after a second."""
    return MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
        f"the {component} service {why}",
        {"component": component},
        retry_after=1,
    )


def component_not_ready(component: str) -> MeshError:
    """Return the error for a call that cannot be answered before a component, for instance the database, answers this mesh."""
    return MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE,
        f"the {component} is not ready: this service waits for it",
        {"component": component},
        retry_after=1,
    )


def raise_from_rpc(error: grpc.aio.AioRpcError, component: str) -> NoReturn:
    """Raise the error of another member as `error_from_rpc` returns it."""
    raise error_from_rpc(error, component) from error


def error_from_rpc(error: grpc.aio.AioRpcError, component: str) -> MeshError:
    """Return the error of another member as a MeshError: with that member's reason, else COMPONENT_UNAVAILABLE or INTERNAL."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode("latin-1"))
            return _from_status(status)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return component_unavailable(component, "did not answer in time")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return component_unavailable(component)
    return MeshError(Reason.ERROR_REASON_INTERNAL, f"the {component} service failed")


def _from_status(status: status_pb2.Status) -> MeshError:
    """Read the status that `MeshError.status` makes."""
    error = MeshError(Reason.ERROR_REASON_INTERNAL, status.message)
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            # A newer member may have reasons that are unknown here: those stay INTERNAL.
            if PREFIX + info.reason in Reason.keys():  # noqa: SIM118 - the enum's wrapper is no mapping
                error.reason = Reason.Value(PREFIX + info.reason)
            error.metadata = dict(info.metadata)
        elif detail.Unpack(bad):
            error.fields = tuple(FieldViolation(item.field, item.description) for item in bad.field_violations)
        elif detail.Unpack(retry):
            error.retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return error
