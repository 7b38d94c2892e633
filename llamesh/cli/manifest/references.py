"""Resolves what a document refers to outside the manifest: a model's file, a user's password, the file of a key's token.

Paths are relative to the manifest. Invariant: nothing is written, and no secret is part of a message.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from buf.validate import validate_pb2
from llamesh.cli.bounded_file import read_bounded
from llamesh.cli.companions import NO_FILE, Companions
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.manifest.document import Document
from llamesh.locations import expanded
from llamesh.model_addresses import is_address
from llamesh.v1 import gateway_pb2

MAX_SECRET_FILE = 4096
"""Bytes of a file that holds a password."""


def source_of(document: Document) -> str:
    """Return the source of a model: an address, or the absolute path of a file of this machine; empty if none is given."""
    spec: Any = document.spec
    return _source(document, spec.source, "spec.source")


def companions_of(document: Document) -> Companions:
    """Return the projector and the adapters that a model is to have, their sources as `source_of` gives them."""
    spec: Any = document.spec
    try:
        given = Companions.read(spec.projector, spec.adapters)
    except CommandError as error:
        words = f"{document.place('spec.adapters')}: {error.cause.replace('--lora ', '')}"
        raise CommandError(words, hint="write each as NAME=SOURCE", code=Exit.USAGE) from error
    projector = given.projector
    if projector != NO_FILE:
        projector = _source(document, projector, "spec.projector")
    adapters = given.adapters and {
        name: _source(document, source, "spec.adapters") for name, source in given.adapters.items()
    }
    return Companions(projector, adapters)


def _source(document: Document, source: str, field: str) -> str:
    if not source or is_address(source):
        return str(source)
    return str((document.folder / expanded(source, document.place(field))).absolute())


def token_path(document: Document) -> Path:
    """Return the file that a key's token is written to."""
    spec: Any = document.spec
    return document.folder / expanded(spec.secret_file, document.place("spec.secret_file"))


def password_of(document: Document) -> str:
    """Return the password of a new user. CommandError if there is none that the mesh takes."""
    spec: Any = document.spec
    reference = spec.password_from
    if reference.env:
        place, found = document.place("spec.password_from"), os.environ.get(reference.env, "")
        if not found:
            raise CommandError(f"{place}: the environment variable {reference.env} is not set", code=Exit.USAGE)
    else:
        place = document.place("spec.password_from.file")
        found = _content(document.folder / expanded(reference.file, place), place)
    rules = gateway_pb2.CreateUserRequest.DESCRIPTOR.fields_by_name["password"].GetOptions()
    limits = rules.Extensions[validate_pb2.field].string
    if not limits.min_len <= len(found) <= limits.max_len:
        words = f"{reference.env or reference.file} holds no password: it must have {limits.min_len} to {limits.max_len} characters"
        raise CommandError(f"{place}: {words}", code=Exit.USAGE)
    return found


def _content(path: Path, place: str) -> str:
    try:
        return read_bounded(path, MAX_SECRET_FILE).decode().removesuffix("\n").removesuffix("\r")
    except CommandError as error:
        hint = "name a file that holds the password only"
        raise CommandError(f"{place}: {error.cause}", hint=hint, code=Exit.USAGE) from error
    except (OSError, UnicodeDecodeError) as error:
        words = getattr(error, "strerror", None) or "is not UTF-8"
        raise CommandError(f"{place}: {path}: {words}", code=Exit.USAGE) from error
