"""Decides what `llamesh delete -f` removes. Pure.

Invariant: an object is removed only if it is the one that the document declares. A name alone does not make it that: a server of another
model may have the same served name. An id in the document does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.manifest.document import Document
from llamesh.cli.manifest.holdings import AmbiguousObjectError, Holdings, identity
from llamesh.cli.manifest.kinds import ID_ANNOTATION, ORDER
from llamesh.cli.manifest.plan import FIXED, Action, comparison, conflicts, find


def to_remove(documents: Sequence[Document], held: Holdings) -> list[tuple[Document, Any]]:
    """Each document with its object, None if it is not there; dependants first. CommandError lists every document that is not clear."""
    compare = comparison(documents, held)
    found: list[tuple[Document, Any]] = []
    problems: list[str] = []
    for document in sorted(documents, key=lambda item: ORDER.index(item.kind), reverse=True):
        try:
            if document.kind in FIXED and not document.id:
                action = compare(document)
                problems.extend(_refusals(action))
                present = action.present
            else:
                present = find(document, held)
        except AmbiguousObjectError as error:
            if not document.id:
                problems.append(error.words(document))
            present = None
        # The id of an object that is gone does not mean a later one of the same name.
        meant = present is not None and document.id in ("", identity(present))
        found.append((document, present if meant else None))
    if problems:
        raise CommandError("nothing was removed: the files declare other objects", parts=problems, code=Exit.USAGE)
    return found


def label(document: Document, present: Any) -> str:
    """Kind and name of a document, and the id of its object if that is not its name."""
    known = identity(present)
    return document.label if known == document.name else f"{document.label} ({known})"


def _refusals(action: Action) -> list[str]:
    known = identity(action.present) if action.present is not None else ""
    return [
        f"{action.document.place(change.path)}: {known} has {change.before}, not {change.after};"
        f" if it is meant, set metadata.annotations.{ID_ANNOTATION} to {known}"
        for change in conflicts(action)
    ]
