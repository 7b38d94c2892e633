"""`llamesh backup` and `llamesh restore`: a home in one file, and a home of that file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from llamesh import __version__
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh import archive, restoration, tables, unfinished
from llamesh.cli.mesh.authority import Files
from llamesh.cli.mesh.catalogue import pulls
from llamesh.cli.output import size
from llamesh.cli.printing import note
from llamesh.locations import expanded, home_directory


def backup(
    file: str,
    /,
    *,
    models: Annotated[bool, Parameter(negative="")] = False,
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write users, keys, contracts, servers, settings and secrets of the mesh of this machine to a file. The mesh may run.

    The file holds the secrets that sign tokens, and the key of the authority of `llamesh tls init`: keep it as you keep them.

    Tables in PostgreSQL are dumped into it with pg_dump.

    Parameters
    ----------
    file
        Where to.
    models
        Include the models. Without them they are fetched again after a restore.
    force
        Overwrite the file if it is there. Only a regular file is overwritten.
    """
    home, target = home_directory(os.environ), expanded(file, "FILE").absolute()
    settings = Path(os.environ.get("LLAMESH_CONFIG") or home / "config.env")
    try:
        archive.check_replaceable(target)
        if not force and target.exists():
            overwrites = shlex.join(["llamesh", "backup", file, *(["--models"] if models else []), "--force"])
            raise CommandError(f"{target} is there already", hint=f"`{overwrites}` overwrites it", code=Exit.USAGE)
        manifest = archive.write(home, target, __version__, settings, models=models, dump=tables.dump)
    except archive.ArchiveError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error
    except OSError as error:
        raise CommandError(f"{_shown(error, target)}: {error.strerror or error}") from error
    note(f"{target} ({size(target.stat().st_size)}) holds {home}" + ("" if models else ", without models (--models)"))
    if archive.is_backed_up(key := Files(home).authority_key):
        note(f"it includes {key}, which can sign certificates for any host: clients that trust this mesh accept them")
    if manifest.tables_elsewhere:
        note("pg_dump cannot be used here, so the tables are not in it. Dump them too; it asks for the password:")
        note(tables.commands()[0])


def _shown(error: OSError, result: Path) -> Path | str:
    """The file of a failure; the result instead of a file below the folder in which it is made."""
    place = Path(str(error.filename or result))
    temporary = {unfinished.path_of(result, parent) for parent in (result.parent, result)}
    return result if temporary & {place, *place.parents} else place


def restore(file: str, /) -> None:
    """Make the home of a mesh of a backup; only where there is none. Then `llamesh up` starts it.

    Tables of PostgreSQL go to the database of DATABASE_URL (else that of the backup's settings), which must be empty.

    Trust a backup as you trust a program: its settings may name programs to run.

    Paths in the settings that lie below the home of the backup are changed to this one.

    Parameters
    ----------
    file
        What `llamesh backup` wrote.
    """
    home, source = home_directory(os.environ), expanded(file, "FILE").absolute()
    try:
        restored = restoration.restore(source, home, __version__, tables.load)
    except archive.ArchiveError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error
    except OSError as error:
        # Without a file it is one that is read; the files below the work folder become the home.
        place = _shown(error, home) if error.filename else source
        raise CommandError(f"{place}: {error.strerror or error}", code=Exit.USAGE) from error
    manifest = restored.manifest
    note(f"{home} is as it was on {manifest.made} (llamesh {manifest.version}): llamesh up")
    if changed := restored.moved.changed:
        note(f"paths below {manifest.home} lie below {home} now, in config.env: {', '.join(changed)}")
    if left := restored.moved.left:
        note(
            f"these settings cannot hold the path {home}, and still name {manifest.home} in config.env: {', '.join(left)}"
        )
    if (named := os.environ.get("LLAMESH_CONFIG")) and Path(named).absolute() != home / archive.SETTINGS:
        note(f"LLAMESH_CONFIG names {named}: the mesh reads that file instead of {home / archive.SETTINGS}")
    if not manifest.models:
        note("models are not in this backup; after the start, fetch those that you need again:")
        for command in pulls(home):
            note(command)
    if manifest.tables_elsewhere:
        note("the tables are not in this backup, restore them before the start, onto an empty database:")
        for command in tables.commands()[1:]:
            note(command)
