"""The file of an importance matrix that a person names: handed over to the mesh, or an address that the mesh can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.local_files import handed_over_file, own_name
from llamesh.client.profile import Profile
from llamesh.file_limits import MAX_MATRIX_BYTES
from llamesh.locations import expanded
from llamesh.regular_files import NotRegularError


@contextmanager
def matrix_source(word: str, profile: Profile, *, kept: bool) -> Iterator[str]:
    """Return the address of the matrix that `--imatrix` names; empty if it names none. CommandError if it cannot be used.

    `kept`: the file stays after the block, because the job reads it when it has its turn.
    """
    if not word or word.startswith("file:"):
        yield word
        return
    with handed_over_file(_file(word), profile) as handed:
        yield handed.url
        handed.kept = kept


def _file(word: str) -> Path:
    try:
        path = own_name(expanded(word).absolute())
        length = path.stat().st_size
    except (OSError, RuntimeError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CommandError(f"{word}: {words}", hint="--imatrix FILE", code=Exit.NOT_FOUND) from None
    if not path.is_file():
        words = str(NotRegularError(Path(word), path.stat().st_mode))
        raise CommandError(words, hint="--imatrix FILE", code=Exit.USAGE)
    if not 0 < length <= MAX_MATRIX_BYTES:
        raise CommandError(
            f"{word} has {length} bytes, an importance matrix has 1 to {MAX_MATRIX_BYTES}", code=Exit.USAGE
        )
    return path
