"""Resolves an id, a name, or the beginning of an id to an id. An ambiguous name is an error that lists the ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamesh.v1 import model_pb2

MIN_PREFIX = 4
"""Least length of a prefix that stands for an id. The prefix must be that of one id only."""


class AmbiguousNameError(LookupError):
    """Several objects have the name; the message lists their ids."""

    def __init__(self, name: str, ids: Sequence[str]) -> None:
        super().__init__(f"{name!r} is the name of {len(ids)}; give one of the ids")
        self.name = name
        self.ids = tuple(ids)


def names_of(model: model_pb2.Model) -> list[tuple[str, str]]:
    """Return the id of a model with each of its names."""
    return [(model.model_uuid, name) for name in (model.name, *model.aliases)]


def resolve(wanted: str, known: Sequence[tuple[str, str]], *, shortened: bool = False) -> str:
    """Resolve a word among (id, name) pairs: as an id, else a name, else, if `shortened`, a prefix of an id. Return other words unchanged.

    Pass `shortened` only for ids that the mesh makes: an id that a person chose may be a prefix of another. AmbiguousNameError if several
    objects match.
    """
    if any(wanted == item for item, _ in known):
        return wanted
    for meant in (
        [item for item, name in known if name == wanted],
        [item for item, _ in known if shortened and len(wanted) >= MIN_PREFIX and item.startswith(wanted)],
    ):
        if len(meant) > 1:
            raise AmbiguousNameError(wanted, meant)
        if meant:
            return meant[0]
    return wanted
