"""Resolves the source of a model that a person wrote: an address, a file of this machine, or neither."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote as quote_word
from typing import TYPE_CHECKING

from llamesh.cli.checkpoint_folder import folder_of, is_part_of_checkpoint
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.local_files import (
    HandedOver,
    handed_over,
    handed_over_folder,
    home_for,
    is_path,
    model_file,
    own_name,
    parts_beside,
    written_as_path,
)
from llamesh.cli.lookups import find_model
from llamesh.client.names import names_of, resolve
from llamesh.client.profile import Profile
from llamesh.locations import expanded
from llamesh.model_addresses import FORMS, SCHEMES, is_address, likely, names_user
from llamesh.nearest import nearest

if TYPE_CHECKING:
    from llamesh.client.sync import Client

_SCHEME_ALONE = re.compile(rf"(?:{'|'.join(SCHEMES)}):/*", re.IGNORECASE)
MAX_SHOWN = 10
"""Names of the mesh that a refusal shows."""


@contextmanager
def fetchable(source: str, profile: Profile, *, purpose: str = "") -> Iterator[HandedOver]:
    """Return the address from which the mesh can fetch a source. CommandError if there is none."""
    path = _file(source)
    if path is None:
        yield HandedOver(source)
    else:
        with handed_over(path, profile, purpose=purpose) as file:
            yield file


@contextmanager
def quantisable(word: str, mesh: Client, *, kept: bool) -> Iterator[str]:
    """Return what a job is made from: the id of a model of the mesh, or the address of a checkpoint. CommandError if it is neither.

    `kept`: the files of a folder stay after the block, because the job reads them when it has its turn.
    """
    if is_address(word):
        yield word
    elif written_as_path(word):
        path = own_name(expanded(word).absolute())
        if not path.is_dir():
            what = "is a file" if path.exists() else "is not there"
            raise CommandError(f"{word} {what}; a checkpoint is a folder", hint=_instead(word, path), code=Exit.USAGE)
        with handed_over_folder(path, mesh.profile) as folder:
            yield folder.url
            folder.kept = kept
    else:
        yield _model(word, mesh)


def _instead(word: str, path: Path) -> str:
    """Say what to do with a file that is no checkpoint; empty if there is none."""
    if is_part_of_checkpoint(path):
        return f"`llamesh quantize {folder_of(word)} --types Q4_K_M` converts the checkpoint"
    return f"`llamesh pull {quote_word(word)}` makes a GGUF file a model of the mesh" if path.exists() else ""


def _model(word: str, mesh: Client) -> str:
    """The id of the model that a word names. CommandError with the checkpoint that it may mean if it names none."""
    known = [pair for model in mesh.models.list() for pair in names_of(model)]
    if not any(resolve(word, known) == uuid for uuid, _ in known):
        meant = f"./{word}" if Path(word).is_dir() else likely(word)
        if meant.startswith(("./", "hf:")):
            hint = f"`llamesh quantize {quote_word(meant)} --types Q4_K_M` converts a checkpoint"
            raise CommandError(f"there is no model {word}", hint=hint, code=Exit.NOT_FOUND)
    return find_model(mesh, word)


def check_source(source: str, profile: Profile) -> None:
    """CommandError if `fetchable` would refuse a source. Changes nothing."""
    path = _file(source)
    if path is not None:
        parts_beside(path)
        home_for(profile, path)


def _file(source: str) -> Path | None:
    """The file of this machine that a source names; None for an address or no source. CommandError if it is neither."""
    if _SCHEME_ALONE.fullmatch(source):
        raise CommandError(f"{source} names no model", hint=f"give {FORMS}", code=Exit.USAGE)
    if is_address(source) or not source:
        return None
    if is_path(source) or (source.endswith(".gguf") and not likely(source)):
        return model_file(source)
    raise no_source(source)


def no_source(word: str, known: Sequence[str] | None = None) -> CommandError:
    """Return the refusal of an unknown word, with the nearest valid form. `known` are the valid names; None: a name is not valid here."""
    what = "neither an address nor a file" if known is None else "no model of the mesh, no address and no file"
    # What a command prints is kept in logs, as of CI.
    shown = "the address with a user name" if names_user(word) else word
    parts = [f"the mesh has: {', '.join(dict.fromkeys(known[:MAX_SHOWN]))}"] if known else []
    hint = f"give {FORMS}"
    if name := nearest(word, known or ()):
        hint = f"did you mean {name}?"
    elif meant := likely(word):
        hint = f"did you mean {meant}?"
    elif local := _file_nearby(word):
        hint = f"did you mean {local}?"
    elif re.fullmatch(r"[\w.-]+", word):
        # No file of that name is here, see above. Ollama's names have no such end.
        name = quote_word(word.removesuffix(".gguf"))
        ollama = f"ollama:{word} is Ollama's model of this name, `llamesh search {name}` finds others"
        hint = f"{f'`llamesh search {name}` finds models' if word.endswith('.gguf') else ollama}; or give {FORMS}"
    return CommandError(f"{shown} is {what}", parts=parts, hint=hint, code=Exit.NOT_FOUND if known else Exit.USAGE)


def _file_nearby(word: str) -> str:
    """A GGUF file of the working directory with nearly this name."""
    names = [path.name for path in Path().glob("*.gguf")]
    meant = nearest(f"{word.removesuffix('.gguf')}.gguf", names)
    return f"./{meant}" if meant else ""
