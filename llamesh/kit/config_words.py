"""Messages about invalid settings: the name, the value unless it is a secret, and the allowed values."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from types import NoneType
from typing import Any

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo

MAX_VALUE = 80
"""Maximum number of characters of a value in a message."""


def refusal(name: str, field: FieldInfo, error: Mapping[str, Any]) -> str:
    """Describe an error of pydantic in one sentence."""
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, ValueError):
        # Our own validators raise complete messages.
        return f"setting {name}: {reason}"
    meant = allowed(field)
    if is_secret(field):
        return f"setting {name}: its value is not {meant}"
    value = str(error.get("input", ""))
    shown = value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}..."
    return f"setting {name}: {shown!r} is not {meant}"


def allowed(field: FieldInfo) -> str:
    """Describe the allowed values of a setting, as the end of "it is not ..."."""
    kinds = [kind for kind in typing.get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    if typing.get_origin(field.annotation) is typing.Literal:
        *most, last = (str(kind) for kind in kinds)
        return f"{', '.join(most)} or {last}"
    if kinds == [bool]:
        return "true or false"
    if kinds in ([int], [float]):
        return ("a whole number" if kinds == [int] else "a number") + _range(field)
    return "text"


def is_secret(field: FieldInfo) -> bool:
    """Whether the value of a setting must not be shown."""
    return SecretStr in (typing.get_args(field.annotation) or (field.annotation,))


def _range(field: FieldInfo) -> str:
    above = least = most = None
    for bound in field.metadata:
        if isinstance(bound, annotated_types.Gt):
            above = bound.gt
        elif isinstance(bound, annotated_types.Ge):
            least = bound.ge
        elif isinstance(bound, annotated_types.Le):
            most = bound.le
    # test_settings_have_bounds checks that every number has both bounds.
    if above is not None:
        return f" above {_number(above)} and at most {_number(most)}"
    return f" from {_number(least)} to {_number(most)}"


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
