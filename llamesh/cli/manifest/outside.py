"""Checks what documents refer to outside the manifest, before a plan: files of models and passwords, variables, files of new tokens.

Invariant: nothing is written. The plan takes the result as plain values and refuses a document only if its reference is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from llamesh.cli.companions import NO_FILE
from llamesh.cli.failure import CommandError
from llamesh.cli.manifest import token_file
from llamesh.cli.manifest.document import Document
from llamesh.cli.manifest.holdings import Holdings
from llamesh.cli.manifest.references import companions_of, password_of, source_of, token_path
from llamesh.cli.sources import check_source
from llamesh.client.profile import Profile

_REFERENCES = {"Model": "spec.source", "User": "spec.password_from.file", "Key": "spec.secret_file"}
"""The field of each kind that names a file."""


def unusable(documents: Sequence[Document], held: Holdings, profile: Profile) -> dict[tuple[str, int], str]:
    """The problem of each document, by its file and number, whose reference cannot be used on this machine."""
    checks: dict[str, Callable[[Document], object]] = {
        "Model": partial(_model, profile),
        "User": password_of,
        "Key": partial(_key, token_file.ended_tokens(held.keys), {}),
    }
    found = {}
    for document in documents:
        try:
            if document.kind in checks:
                checks[document.kind](document)
        except CommandError as error:
            found[document.position] = f"{error.cause}; {error.hint}" if error.hint else error.cause
        except ValueError as error:
            # A path may hold a NUL byte, which no message of the system names with its field.
            words = str(error)
            field = _REFERENCES[document.kind]
            found[document.position] = words if field in words else f"{document.place(field)}: {words}"
    return found


def _model(profile: Profile, document: Document) -> None:
    companions = companions_of(document)
    projector = "" if companions.projector == NO_FILE else companions.projector
    sources = [("spec.source", source_of(document)), ("spec.projector", projector)]
    for field, source in sources + [("spec.adapters", source) for source in (companions.adapters or {}).values()]:
        try:
            check_source(source, profile)
        except CommandError as error:
            raise CommandError(f"{document.place(field)}: {error.cause}", hint=error.hint) from error


def _key(has_ended: Callable[[str], bool], files: dict[Path, Document], document: Document) -> None:
    other = files.setdefault(token_path(document).absolute(), document)
    if other is not document:
        words = f"is the file of another key: {other.place('spec.secret_file')}"
        raise CommandError(f"{document.place('spec.secret_file')}: {words}")
    token_file.check(document, has_ended)
