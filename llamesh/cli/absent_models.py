"""Refuses words that name no model of the mesh with what they name instead: an address, a file, a variant or a download."""

from __future__ import annotations

from collections.abc import Iterable
from shlex import quote
from typing import TYPE_CHECKING

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.local_files import checkpoint_hint, gguf_names, is_path, model_file, shown_path, written_as_path
from llamesh.cli.output import text
from llamesh.locations import expanded
from llamesh.model_addresses import canonical, is_address, names_user

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.model_pb2 import Model


def refuse_source(word: str, models: Iterable[Model]) -> None:
    """Refuse an address or a path where a model of the mesh is needed, with the commands that take it, or the model that came from it.

    A folder that has the name of a model by chance is no path unless it is written as one (see `refuse_folder`).
    """
    if is_address(word):
        _refuse_address(word, models)
    if not is_path(word):
        return
    if written_as_path(word):
        refuse_folder(word)
        # It refuses what is no model file, with its reason.
        model_file(word)
    if expanded(word).is_file():
        raise _fetchable(text(word), "a file", quote(word))


def refuse_folder(word: str) -> None:
    """Refuse the path of a folder where a model of the mesh is needed, with the command that takes a file of it."""
    try:
        folder = expanded(word)
        if not word or not folder.is_dir():
            return
    except (OSError, ValueError):
        return
    hint = checkpoint_hint(word, folder) or "`llamesh models` lists the models"
    if inside := gguf_names(folder):
        hint = f"`llamesh run {shown_path(word, inside[0])}` fetches a file of it, serves it and talks to it"
    raise CommandError(f"{text(word)} is a directory, not a model of the mesh", hint=text(hint), code=Exit.USAGE)


def _refuse_address(word: str, models: Iterable[Model]) -> None:
    try:
        source = canonical(word)
    except ValueError:
        source = word
    fetched = next((model for model in models if model.source == source), None)
    shown = "the address with a user name" if names_user(word) else text(word)
    if fetched:
        hint = f"did you mean {text(fetched.model_uuid)}? It was fetched from there"
        raise CommandError(f"{shown} is an address, not a model of the mesh", hint=hint, code=Exit.USAGE)
    raise _fetchable(shown, "an address", "SOURCE" if names_user(word) else quote(word))


def _fetchable(shown: str, what: str, given: str) -> CommandError:
    """Return the refusal of a source with the commands that take it."""
    hint = f"`llamesh run {given}` fetches it, serves it and talks to it; `llamesh pull {given}` only fetches it"
    return CommandError(f"{shown} is {what}, not a model of the mesh", hint=hint, code=Exit.USAGE)


def refuse_coming(mesh: Client, word: str) -> None:
    """Refuse the name of a variant that is not fetched yet, or of a model whose download has brought nothing yet."""
    from llamesh.cli.downloads import refuse_undownloaded

    refuse_unfetched(mesh, word)
    refuse_undownloaded(mesh, word)


def refuse_unfetched(mesh: Client, word: str) -> None:
    """Refuse the id of a variant that the Quant service of the mesh has published, because a model has to be fetched before its use."""
    from llamesh.client.errors import MeshError

    try:
        variant = mesh.quant.variant(word).model_uuid
    except MeshError:
        # There is no such variant, or no Quant service.
        return
    address = quote(f"quant:{variant}")
    hint = f"`llamesh pull {address}` fetches it, `llamesh run {address}` fetches it and talks to it"
    raise CommandError(f"{text(word)} is a variant that is not fetched yet", hint=hint, code=Exit.NOT_FOUND)


def refuse_known(mesh: Client, word: str) -> None:
    """Refuse a name of the mesh where a source is needed: of a model that it has, or one whose download has brought nothing yet."""
    model = next((item for item in mesh.models.list() if word in (item.model_uuid, item.name, *item.aliases)), None)
    if model is not None:
        name = quote(word)
        hint = (
            f"`llamesh run {name}` talks to it, `llamesh describe {name}` shows where it came from; a file is ./{name}"
        )
        raise CommandError(f"the mesh has the model {text(word)} already", hint=text(hint), code=Exit.USAGE)
    refuse_coming(mesh, word)
