"""`llamesh alias`: further names of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from llamesh.cli.connection import connected
from llamesh.cli.downloads import ModelName
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.lookups import find_model
from llamesh.cli.models import MODEL
from llamesh.cli.output import Column, Output, show_one, text

NAMES = (MODEL[0], Column("NAME", lambda model: model.name), Column("ALIASES", lambda model: ",".join(model.aliases)))


def alias(
    model: ModelName,
    /,
    *names: str,
    remove: Annotated[bool, Parameter(negative="")] = False,
    output: Output = "table",
) -> None:
    """Give a model further names, which stand for it in every command; without NAMES, show the model.

    Parameters
    ----------
    names
        Letters, digits and ._:/@+-; at most 16 for one model. A name that is another model's is refused.
    remove
        Take the names away instead.
    """
    if "" in names:
        raise CommandError("llamesh alias: a name in NAMES is empty", hint="llamesh alias MODEL NAME", code=Exit.USAGE)
    from llamesh.cli.refusals import refused_in_words

    with connected() as mesh:
        uuid = find_model(mesh, model)
        add, gone = ((), names) if remove else (names, ())
        if remove and (others := sorted({*names} - {*mesh.models.get(uuid).aliases})):
            raise CommandError(
                text(f"{model} has no alias {', '.join(others)}; nothing was changed"),
                hint=text(f"llamesh alias {model}"),
                code=Exit.NOT_FOUND,
            )
        with refused_in_words(lambda words: _with_names(words, names), hint="`llamesh alias --help`"):
            changed = mesh.models.change_aliases(uuid, add=add, remove=gone) if names else mesh.models.get(uuid)
        show_one(changed, output, NAMES)


def _with_names(words: str, names: Sequence[str]) -> str:
    """Return a message with the names that were given in place of fields of the request."""
    return re.sub(r"\b(?:add|remove)\[(\d+)\](?=:)", lambda found: repr(names[int(found[1])]), words)
