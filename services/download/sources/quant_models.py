"""The location of a model in a Quant service."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.json_format import ParseDict, ParseError

from llamesh.v1.quant_pb2 import QuantReport

MAX_NOT_MEASURED = 500
"""Maximum length of the recorded reason for which a model was not measured."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class QuantModel:
    """The location of a model of Quant: in its store under `key`, or in the file `path` of this machine.

    `size` and `report` are None, and `bucket`, `name` and `sha256` are "", if Quant does not give them.
    """

    key: str
    bucket: str
    name: str
    size: int | None
    sha256: str
    path: str = ""
    report: QuantReport | None = None


class QuantModels(Protocol):
    """The part of a Quant service that models are fetched with."""

    async def find(self, model_uuid: str) -> QuantModel:
        """Return the location of a model. Raises SourceError."""


def read_model(document: Any, model_uuid: str) -> QuantModel:
    """Read an answer about a model: the message QuantModel as JSON, in either spelling of its names. Raises ValueError."""
    key, size = field_of(document, "object_key"), field_of(document, "size_bytes")
    if not isinstance(key, str) or not key:
        raise ValueError("its answer has no object_key")
    if field_of(document, "model_uuid") not in (None, model_uuid):
        raise ValueError("its answer is about another model")
    bucket, name, sha256 = (_text(document, name) for name in ("bucket", "name", "sha256"))
    # The JSON form of a message has 64-bit numbers as texts.
    number = int(size) if isinstance(size, int | str) and str(size).isascii() and str(size).isdecimal() else None
    digest = sha256.lower().removeprefix("sha256:")
    digest = digest if _DIGEST.fullmatch(digest) else ""
    return QuantModel(key, bucket, name, number or None, digest, report=_report(field_of(document, "report")))


def _report(document: Any) -> QuantReport | None:
    """Read the results of the checks; None if there are none, or if they are not such results."""
    if not isinstance(document, dict):
        return None
    try:
        report = ParseDict(document, QuantReport(), ignore_unknown_fields=True)
    except ParseError:
        return None
    report.not_measured = "".join(filter(str.isprintable, report.not_measured))[:MAX_NOT_MEASURED]
    numbers = [value for _, value in report.ListFields() if not isinstance(value, str)]
    return report if all(0 <= number < math.inf for number in numbers) else None


def field_of(document: Any, name: str) -> Any:
    """Return a field of a message as JSON, in either spelling of its name; None if it is missing."""
    first, *rest = name.split("_")
    camel = first + "".join(map(str.capitalize, rest))
    return document.get(name, document.get(camel)) if isinstance(document, Mapping) else None


def _text(document: Any, name: str) -> str:
    value = field_of(document, name)
    return value if isinstance(value, str) else ""
