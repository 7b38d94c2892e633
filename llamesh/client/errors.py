"""One class for each reason of the contract, under one for each gRPC code: `except errors.DoesNotFit as e: print(e.remedy)`.

The classes are made from error_reason.proto's descriptor: `DoesNotFit` is DOES_NOT_FIT, its metadata are attributes in snake case
(`e.needed_bytes`, a number if the contract's example is one). If Python has a builtin exception for the gRPC code, the class is
also of that type, for instance TimeoutError or LookupError.
"""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from llamesh.v1 import error_reason_pb2, options_pb2

PREFIX = "ERROR_REASON_"
_DETAILS = "grpc-status-details-bin"
_BROKEN_OFF = ("RST_STREAM", "Stream removed", "Socket closed")
"""Words of the transport if a connection breaks off during a call. gRPC reports it as UNAVAILABLE, INTERNAL or UNKNOWN."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of the request that breaks a rule."""

    field: str
    description: str


class MeshError(Exception):
    """A call that was refused or that failed."""

    code = "UNKNOWN"
    """The gRPC code."""
    reason = ""
    """The reason's name in the contract, for instance "DOES_NOT_FIT"; empty if the answer had none."""
    remedy = ""
    """What the caller can do."""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        fields: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        """Every variable of the message, for programs."""
        self.fields = fields
        """The invalid fields of the request."""
        self.retry_after = retry_after
        """Seconds after which a retry may succeed; None if the server gave no delay."""

    def __str__(self) -> str:
        return self.message


def _by_code() -> dict[str, type[MeshError]]:
    also: dict[str, type[Exception]] = {
        "DEADLINE_EXCEEDED": TimeoutError,
        "NOT_FOUND": LookupError,
        "PERMISSION_DENIED": PermissionError,
        "UNAUTHENTICATED": PermissionError,
        "UNAVAILABLE": ConnectionError,
        "INVALID_ARGUMENT": ValueError,
        "UNIMPLEMENTED": NotImplementedError,
    }
    classes: dict[str, type[MeshError]] = {}
    for code in code_pb2.Code.keys():  # noqa: SIM118 an enum wrapper is no dict
        bases = (MeshError, also[code]) if code in also else (MeshError,)
        if code != "OK":
            classes[code] = _made(_camel(code), bases, {"code": code, "__doc__": f"The gRPC code {code}."})
    return classes


def _by_reason() -> dict[str, type[MeshError]]:
    classes: dict[str, type[MeshError]] = {}
    for value in error_reason_pb2.ErrorReason.DESCRIPTOR.values:
        if value.number == 0:
            continue
        reason = value.name.removeprefix(PREFIX)
        spec = value.GetOptions().Extensions[options_pb2.error]
        base = _BY_CODE[code_pb2.Code.Name(spec.code)]
        members: dict[str, Any] = {"reason": reason, "remedy": spec.remedy, "__doc__": f"{reason}. {spec.remedy}"}
        for key, example in json.loads(spec.example or "{}").items():
            # `fields` and `retry_after` are attributes of every error already.
            if (name := _snake(key)) not in {"fields", "code", "reason"}:
                members[name] = _metadatum(key, numeric=example.isdecimal())
        name = _camel(reason)
        if name == base.__name__:
            # INTERNAL, UNAUTHENTICATED and DEADLINE_EXCEEDED have the names of their codes. One class serves as both, so that an answer
            # that Envoy itself makes, which has no reason, has the remedy too.
            for key, member in members.items():
                setattr(base, key, member)
            classes[reason] = base
        else:
            # Do not hide a builtin name of Python (NotImplemented).
            classes[reason] = _made(f"Mesh{name}" if hasattr(builtins, name) else name, (base,), members)
    return classes


def _made(name: str, bases: tuple[type[Exception], ...], members: dict[str, Any]) -> type[MeshError]:
    return type(name, bases, {"__module__": __name__, **members})


def _metadatum(key: str, *, numeric: bool) -> property:
    def read(error: MeshError) -> str | int | None:
        value = error.metadata.get(key)
        return int(value) if numeric and value is not None and value.isdecimal() else value

    return property(read, doc=f"`{key}` of the metadata; None if the answer lacks it.")


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


_BY_CODE = _by_code()
_BY_REASON = _by_reason()
globals().update({made.__name__: made for made in [*_BY_CODE.values(), *_BY_REASON.values()]})


def __getattr__(name: str) -> type[MeshError]:
    # Gives type checkers the type of the classes. At run time Python calls it only for a name that does not exist.
    raise AttributeError(f"no error of the mesh is called {name!r}")


def of_reason(reason: str, message: str, **details: Any) -> MeshError:
    """Make the error for a reason. A reason that a newer mesh added gives a plain MeshError with that reason."""
    made = _BY_REASON.get(reason, MeshError)(message, **details)
    made.reason = reason
    return made


def of_call(error: grpc.RpcError) -> MeshError:
    """Translate the gRPC error of a failed call."""
    # Both error classes of grpc have these methods, but no common base class declares them.
    failed: Any = error
    code: grpc.StatusCode = failed.code()
    message: str = failed.details() or code.name.lower().replace("_", " ")
    for key, value in failed.trailing_metadata() or ():
        if key == _DETAILS:
            try:
                return _of_status(status_pb2.Status.FromString(value), code.name)
            except DecodeError:
                break
    if code.name in {"INTERNAL", "UNKNOWN"} and any(words in message for words in _BROKEN_OFF):
        return _BY_CODE["UNAVAILABLE"](message)
    return _BY_CODE.get(code.name, MeshError)(message)


def _of_status(status: status_pb2.Status, code: str) -> MeshError:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, localised = error_details_pb2.RetryInfo(), error_details_pb2.LocalizedMessage()
    details: dict[str, Any] = {}
    remedy = ""
    for detail in status.details:
        if detail.Unpack(info):
            details["metadata"] = info.metadata
        elif detail.Unpack(bad):
            details["fields"] = tuple(FieldViolation(item.field, item.description) for item in bad.field_violations)
        elif detail.Unpack(retry):
            details["retry_after"] = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(localised):
            remedy = localised.message
    if info.reason:
        made = of_reason(info.reason, status.message, **details)
        made.code = code
    else:
        made = _BY_CODE.get(code, MeshError)(status.message, **details)
    if remedy:
        made.remedy = remedy
    return made
