"""`llamesh backup` and `llamesh restore`: a home in one file, and a home of that file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from llamesh import __version__
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.mesh import archive
from llamesh.cli.output import note, size
from llamesh.locations import home_directory


def backup(file: str, /, *, models: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Write users, keys, contracts, servers, settings and secrets of the mesh of this machine to a file. The mesh may run.

    The file holds the secrets that sign tokens: keep it as you keep them.

    Parameters
    ----------
    file
        Where to; replaced if it is there.
    models
        Include the models. Without them they are fetched again after a restore.
    """
    home, target = home_directory(os.environ), Path(file).expanduser().absolute()
    settings = Path(os.environ.get("LLAMESH_CONFIG") or home / "config.env")
    try:
        archive.write(home, target, __version__, settings, models=models)
    except archive.ArchiveError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error
    except OSError as error:
        raise CommandError(f"{error.filename or target}: {error.strerror or error}") from error
    note(f"{target} ({size(target.stat().st_size)}) holds {home}" + ("" if models else ", without models"))
    if os.environ.get("DATABASE_URL") or _names_postgres(settings):
        note(
            'the tables are in PostgreSQL, back them up too: pg_dump --format=custom --file=llamesh.dump "$DATABASE_URL"'
        )
        note('(onto an empty database: pg_restore --dbname="$DATABASE_URL" llamesh.dump)')


def restore(file: str, /) -> None:
    """Make the home of a mesh of a backup; only where there is none. Then `llamesh up` starts it.

    Parameters
    ----------
    file
        What `llamesh backup` wrote.
    """
    home, source = home_directory(os.environ), Path(file).expanduser().absolute()
    try:
        manifest = archive.restore(source, home, __version__)
    except archive.ArchiveError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error
    except OSError as error:
        raise CommandError(f"{error.filename or source}: {error.strerror or error}", code=Exit.USAGE) from error
    note(f"{home} is as it was on {manifest.made} (llamesh {manifest.version}): llamesh up")
    if not manifest.models:
        note("models are not in this backup: pull them again, under the same ids")


def _names_postgres(settings: Path) -> bool:
    try:
        return any(line.strip().upper().startswith("DATABASE_URL=") for line in settings.read_text().splitlines())
    except (OSError, UnicodeDecodeError):
        return False
