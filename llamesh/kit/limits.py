"""Limits of inference requests (envoy/limits.yaml), and the settings that change them.

Invariant: settings cannot move a limit out of the bounds in the file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamesh.kit.yaml_files import read_yaml

_FILE = Path(__file__).parents[2] / "envoy" / "limits.yaml"


@dataclass(frozen=True)
class Limit:
    """A limit: its default, its bounds, and a description."""

    default: int
    least: int
    most: int
    about: str


def table() -> dict[str, Limit]:
    """Return every limit by name, in the order of the file."""
    return {name: Limit(**row) for name, row in _document()["limits"].items()}


def shapes() -> dict[str, Any]:
    """Return the places in a request at which limits apply; the head of the file explains them."""
    return dict(_document()["shapes"])


def paths() -> dict[str, str]:
    """Return the shape of the request body for each path below /v1/."""
    return dict(_document()["paths"])


def changed(changes: Mapping[str, int]) -> dict[str, int]:
    """Return the value of every limit after `changes`, which come from `parse`."""
    return {name: changes.get(name, limit.default) for name, limit in table().items()}


def parse(text: str) -> dict[str, int]:
    """Read `name=value,...`; ValueError names the limit and its bounds."""
    limits = table()
    changes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator:
            raise ValueError(f"{name!r} has no value: limits are written name=value,name=value")
        if name not in limits:
            raise ValueError(f"there is no limit {name!r}; docs/reference/limits.md lists them")
        limit = limits[name]
        if name in changes:
            raise ValueError(f"{name} is given twice")
        if not (value.isascii() and value.isdigit() and limit.least <= int(value[:12]) <= limit.most):
            raise ValueError(f"{name} must be a whole number from {limit.least} to {limit.most}, not {value[:40]!r}")
        changes[name] = int(value)
    return changes


@functools.cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = read_yaml(_FILE)
    return document
