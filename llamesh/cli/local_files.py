"""Model files of this machine: validates a path and links the file into the mesh's import folder.

A mesh on this machine reads files below LLAMESH_HOME/import only. `handed_over` links the file, or all parts of a model, into
`import/handed-over` (copies if the file is on another file system) and removes the links when the fetch has ended, unless another command
has used them too (`handed_folder`); if the command ends earlier, the download service removes them. Invariant: a link's path depends on the
names, the identity and the time of change of the files, and on what they are for, so that the same files for the same model are the same
source, and changed files are another one.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llamesh.cli.checkpoint_folder import PATH_BEGINNINGS, as_path, checkpoint_files, folder_of, is_part_of_checkpoint
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.printing import note
from llamesh.cli.silence import is_silent
from llamesh.client.handed_folder import HandedFolder
from llamesh.client.own_files import home_here, place_of
from llamesh.client.profile import Profile, on_this_machine
from llamesh.locations import expanded
from llamesh.nearest import nearest
from llamesh.part_names import parts_of
from llamesh.regular_files import NotRegularError

if TYPE_CHECKING:
    from llamesh.client.sync import Pull

MAGIC = b"GGUF"
_MAX_LISTED = 5
_LOOK_SECONDS = 2.0
"""Deadline in seconds of a call that only shows what listens at an address."""


def is_path(word: str) -> bool:
    """Whether a word names a file: it begins as a path does, or there is such a file."""
    if "://" in word or word.startswith("file:"):
        return False
    if written_as_path(word):
        return True
    try:
        return Path(word).exists()
    except (OSError, ValueError):
        return False


def written_as_path(word: str) -> bool:
    """Whether a word can only be meant as a path, because no name begins or ends like it."""
    return word in {".", ".."} or word.startswith(PATH_BEGINNINGS) or word.endswith("/")


def model_file(word: str) -> Path:
    """The GGUF file that a path names. CommandError if there is none.

    A link keeps its own name (`own_name`): it names the model, and the name of a part leads to the other parts.
    """
    try:
        path = expanded(word).absolute()
        found = path.resolve(strict=True)
    except FileNotFoundError:
        raise CommandError(f"there is no file {word}", hint=_nearest(word), code=Exit.NOT_FOUND) from None
    except (OSError, RuntimeError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CommandError(f"{word}: {words}", code=Exit.USAGE) from None
    if found.is_dir():
        inside = gguf_names(found)
        hint = checkpoint_hint(word, found) or "name a GGUF file"
        if inside:
            hint = f"name a file of it: {shown_path(word, inside[0])}"
        names = [", ".join(inside[:_MAX_LISTED])] * bool(inside)
        raise CommandError(f"{word} is a directory", parts=names, hint=hint, code=Exit.USAGE)
    if not found.is_file():
        words = str(NotRegularError(Path(word), found.stat().st_mode))
        raise CommandError(words, hint="name a GGUF file", code=Exit.USAGE)
    _check_content(word, path)
    return own_name(path)


def own_name(path: Path) -> Path:
    """The absolute path with the links of its folders resolved. Its last name stays if it is a link: its user has chosen that name, while
    the target's may mean nothing (a cache calls files by their digests)."""
    return path.resolve() if path.name in {"", ".."} else path.parent.resolve() / path.name


def _check_content(word: str, path: Path) -> None:
    """Refuse a file that the mesh would refuse, before it is linked or copied."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(MAGIC))
    except OSError as error:
        raise CommandError(f"{word} cannot be read: {error.strerror}", code=Exit.USAGE) from None
    if beginning != MAGIC:
        what = "is empty" if not beginning else "is no GGUF file: its first four bytes are not GGUF"
        hint = (
            "`llamesh quantize ./FOLDER --types Q4_K_M` makes one of a checkpoint of Hugging Face, llama.cpp's convert_hf_to_gguf.py of"
            " other formats"
        )
        if is_part_of_checkpoint(path):
            hint = f"`llamesh quantize {folder_of(word)} --types Q4_K_M` converts the checkpoint"
        raise CommandError(f"{word} {what}", hint=hint, code=Exit.USAGE)


def _nearest(word: str) -> str:
    """A file of the same directory with nearly the same name, as a hint."""
    directory, name = os.path.split(word)
    names = [item.name for item in _listing(expanded(directory or "."))]
    meant = nearest(name, names)
    return f"did you mean {shown_path(directory or '.', meant)}?" if meant else ""


def gguf_names(folder: Path) -> list[str]:
    """The names of the GGUF files of a folder, sorted; empty if it cannot be read."""
    return sorted(item.name for item in _listing(folder) if item.name.endswith(".gguf"))


def checkpoint_hint(word: str, folder: Path) -> str:
    """The command that converts a checkpoint, as a hint for its folder as it was written; empty for another folder."""
    is_checkpoint = (folder / "config.json").is_file()
    return f"`llamesh quantize {as_path(word)} --types Q4_K_M` converts a checkpoint" if is_checkpoint else ""


def shown_path(directory: str, name: str) -> str:
    """The path of a file of a directory as it was written, quoted for a shell."""
    return shlex.quote(os.path.join(directory, name))  # noqa: PTH118 - a Path would drop the leading ./


def _listing(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


@contextmanager
def handed_over(path: Path, profile: Profile, *, purpose: str) -> Iterator[HandedOver]:
    """Put a file where the mesh may read it, for as long as the block lasts; of a model in parts, all parts.

    CommandError if a part is missing, or the mesh is not on this machine.

    `purpose` tells apart several fetches of one file: none removes the link of another.
    """
    with _handed(path, {part.name: part for part in parts_beside(path)}, profile, purpose) as handed:
        yield handed


@contextmanager
def handed_over_folder(path: Path, profile: Profile) -> Iterator[HandedOver]:
    """Put the files of a checkpoint where the mesh may read them, in a folder of the same name, as `handed_over` does."""
    files = checkpoint_files(path)
    with _handed(path, {f"{path.name}/{file.name}": file for file in files}, profile, "job") as handed:
        yield handed


@contextmanager
def handed_over_file(path: Path, profile: Profile) -> Iterator[HandedOver]:
    """Put a file that is no model where the mesh may read it, as `handed_over` does."""
    with _handed(path, {path.name: path}, profile, "job") as handed:
        yield handed


@contextmanager
def _handed(path: Path, files: Mapping[str, Path], profile: Profile, purpose: str) -> Iterator[HandedOver]:
    """Link files into a folder of the mesh, by their paths there.

    At the end they are removed, unless the mesh may still read them or another command has used the folder.
    """
    home = home_for(profile, path)
    # The mesh follows no link that leads out of the folder.
    if all(place.is_relative_to((home / "import").resolve()) for place in (path, path.resolve())):
        yield HandedOver(path.as_uri())
        return
    place = place_of(home, files, purpose)
    folder = HandedFolder(place, announce=note)
    try:
        folder.place(files)
    except OSError as error:
        raise _not_placed(path, home, error) from error
    handed = HandedOver((place / path.name).as_uri())
    try:
        yield handed
    except BaseException as error:
        if not handed.asked:
            handed.kept = _may_be_accepted(error)
        raise
    finally:
        if not handed.kept:
            folder.remove()


def parts_beside(path: Path) -> list[Path]:
    """The files of the model that one of them names. CommandError if one is missing."""
    try:
        parts = [path.with_name(name) for name in parts_of(path.name)]
    except ValueError as error:
        raise CommandError(f"{path.name}: {error}", code=Exit.USAGE) from None
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CommandError(
            f"{len(missing)} of {len(parts)} parts of the model are missing beside {path.name}",
            parts=missing[:_MAX_LISTED],
            hint=f"put them into {path.parent}",
            code=Exit.NOT_FOUND,
        )
    return parts


def _may_be_accepted(error: BaseException) -> bool:
    """Whether the mesh may have started the download although the call failed: the answer did not arrive."""
    return isinstance(error, KeyboardInterrupt | SystemExit) or getattr(error, "code", "") in {
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
    }


class HandedOver:
    """A file that the mesh may read."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.kept = False
        """The mesh may still read the file after this command: the download service removes the link when the fetch has ended."""
        self.asked = False
        """Whether the mesh has answered that it fetches the file, so that `kept` is known."""

    @contextmanager
    def fetched_by(self, pull: Pull, *, again: str = "") -> Iterator[None]:
        """Keep the file as long as the download may read it. The block waits for the download.

        A block that fails before the download has ended says how to go on: by `again`, the command that was interrupted.
        """
        self.kept = self.asked = True
        try:
            yield
        except BaseException as error:
            if not pull.ended and getattr(error, "reason", "") != "DOWNLOAD_NOT_FOUND":
                model = pull.model_uuid
                command = again or f"llamesh pull --uuid {model}"
                if is_silent(pull.silence, error):
                    note(
                        f"it is not known whether the mesh goes on fetching {model}: `{command}` waits for it again if"
                        " the mesh answers"
                    )
                elif pull.paused:
                    note(f"the download of {model} stays paused: `llamesh downloads resume {model}` lets it go on")
                else:
                    note(f"the mesh goes on fetching {model}: `{command}` waits for it again,")
                    note(
                        f"`llamesh downloads` shows it, `llamesh downloads pause {model}` and `cancel {model}` stop it"
                    )
            raise
        finally:
            self.kept = not pull.ended


def home_for(profile: Profile, path: Path) -> Path:
    """Return the home of the selected mesh. CommandError if the mesh cannot be given a file of this machine."""
    if home := home_here(profile.url):
        return home
    if on_this_machine(profile.url):
        from llamesh.cli.connection import check_gateway, connected

        # No file can be handed over at the port of another service, which says so itself.
        with connected(profile.url) as mesh:
            check_gateway(mesh, _LOOK_SECONDS)
        raise CommandError(
            f"the home of the mesh at {profile.url} is not known, so {path.name} cannot be handed over",
            hint="LLAMESH_HOME names its home, if this machine has it; else name a file that it can read: file:///folder/model.gguf",
            code=Exit.UNAVAILABLE,
        )
    raise CommandError(
        f"the mesh at {profile.url} is on another machine and cannot read {path.name} of this one",
        hint="give an https address, or copy the file there and name it as that machine does: file:///folder/model.gguf",
        code=Exit.USAGE,
    )


def _not_placed(path: Path, home: Path, error: OSError) -> CommandError:
    hint = (
        "free some space there"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}
        else "run the command as the user of the mesh"
    )
    return CommandError(f"{path.name} cannot be put into {home / 'import'}: {error.strerror}", hint=hint)
