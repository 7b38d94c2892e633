"""What `llamesh describe` shows of a model: the columns of `llamesh models`, with labels that need no table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llamesh.cli.models import MODEL
from llamesh.cli.output import text

if TYPE_CHECKING:
    from llamesh.v1.model_pb2 import Model

_LABELS = {
    "QUANT": "Quantisation",
    "CONTEXT": "Trained context",
    "FOR": "Modalities",
    "CHAT": "Can do",
    "ADDED": "Fetched",
    "BY": "Fetched by",
    "SHA256": "SHA-256",
}
"""Labels of columns whose titles are short for a table."""
WIDTH = max(len(label) for label in _LABELS.values()) + 2
"""Characters of a label and the gap behind it."""


def lines(model: Model) -> Iterator[str]:
    """Yield one line for each fact about a model."""
    for column in MODEL:
        yield row(_LABELS.get(column.title, column.title.capitalize()), column.value(model))


def row(label: str, value: object) -> str:
    """Return a line with a label and a value."""
    return f"{label:<{WIDTH}}{text(value)}"
