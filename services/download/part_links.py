"""Links under the names that llama.cpp expects for the parts of a model: it opens the first and finds the others by name, beside it.

A folder of links belongs to one model and one list of objects: `DIRECTORY/MODEL/DIGEST/`. It appears complete, and nothing in it changes.
Invariant: a link has no bytes, so anything here may be removed at any time; the next `make` makes it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path


class PartLinks:
    """The folders of links below `directory`. All methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()

    def make(self, model_uuid: str, paths: Sequence[Path]) -> list[Path]:
        """Return links to the parts of a model, in their order. Folders of earlier parts of this model are removed. Raises OSError."""
        names = [f"model-{number:05d}-of-{len(paths):05d}.gguf" for number in range(1, len(paths) + 1)]
        words = json.dumps([str(path) for path in paths])
        folder = self._directory / model_uuid / hashlib.sha256(words.encode()).hexdigest()[:32]
        links = [folder / name for name in names]
        if not _are_links(links, paths):
            self._place(folder, links, paths)
            for other in folder.parent.iterdir():
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
        return links

    def remove(self, model_uuid: str) -> None:
        """Remove the links of a model."""
        shutil.rmtree(self._directory / model_uuid, ignore_errors=True)

    def models(self) -> set[str]:
        """Return the models that have links."""
        return {folder.name for folder in self._directory.iterdir()} if self._directory.is_dir() else set()

    def _place(self, folder: Path, links: Sequence[Path], paths: Sequence[Path]) -> None:
        """Make the folder under another name, and rename it."""
        new = folder.with_name(f"new-{secrets.token_hex(8)}")
        new.mkdir(parents=True)
        try:
            for link, path in zip(links, paths, strict=True):
                (new / link.name).symlink_to(path)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise


def _are_links(links: Sequence[Path], paths: Sequence[Path]) -> bool:
    try:
        return all(os.readlink(link) == str(path) for link, path in zip(links, paths, strict=True))  # noqa: PTH115
    except OSError:
        return False
