"""The location of a model in a Quant service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class QuantModel:
    """The location of a model of Quant: in its store under `key`, or in the file `path` of this machine.

    `size` is None, and `bucket`, `name` and `sha256` are "", if Quant does not give them.
    """

    key: str
    bucket: str
    name: str
    size: int | None
    sha256: str
    path: str = ""


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
    return QuantModel(key, bucket, name, number or None, digest if _DIGEST.fullmatch(digest) else "")


def field_of(document: Any, name: str) -> Any:
    """Return a field of a message as JSON, in either spelling of its name; None if it is missing."""
    first, *rest = name.split("_")
    camel = first + "".join(map(str.capitalize, rest))
    return document.get(name, document.get(camel)) if isinstance(document, Mapping) else None


def _text(document: Any, name: str) -> str:
    value = field_of(document, name)
    return value if isinstance(value, str) else ""
