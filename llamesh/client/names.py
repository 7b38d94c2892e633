"""Resolves what a person wrote (an id, a name, the beginning of an id) to an id. An ambiguous name is an error that lists the ids."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST_PREFIX = 4
"""Characters of an id that are taken for it, as long as only one id begins so."""


class AmbiguousNameError(LookupError):
    """A name means several things; the ids say which."""

    def __init__(self, name: str, ids: Sequence[str]) -> None:
        super().__init__(f"{name!r} is the name of {len(ids)}; give one of the ids")
        self.name = name
        self.ids = tuple(ids)


def resolve(wanted: str, known: Sequence[tuple[str, str]], *, shortened: bool = False) -> str:
    """The id that is meant among (id, name) pairs: an id, else a name, else the beginning of an id if `shortened`; else what was given.

    Only ids that the mesh makes are shortened: those that people give may begin with each other. AmbiguousNameError where it means several.
    """
    if any(wanted == item for item, _ in known):
        return wanted
    for meant in (
        [item for item, name in known if name == wanted],
        [item for item, _ in known if shortened and len(wanted) >= SHORTEST_PREFIX and item.startswith(wanted)],
    ):
        if len(meant) > 1:
            raise AmbiguousNameError(wanted, meant)
        if meant:
            return meant[0]
    return wanted
