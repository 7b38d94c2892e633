"""A checkpoint in a folder of this machine: which of its files the mesh may need, and how the folder is written on a command line."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from llamesh.cli.failure import CommandError, Exit

PATH_BEGINNINGS = ("/", "./", "../", "~")
"""How a word begins that can only be meant as a path."""
_OF_CHECKPOINTS = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja"})
"""Suffixes of the files of a checkpoint that a conversion may read. The mesh chooses among them."""
_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Suffixes of weights in a format that may run code. The mesh refuses them."""
_SAME_WEIGHTS = "consolidated"
"""How files begin that have the weights once more, in another form."""


def checkpoint_files(path: Path) -> list[Path]:
    """Return the files of a checkpoint that a conversion may read. CommandError if there is none, or only in a format that is refused."""
    try:
        present = sorted(path.iterdir())
    except OSError:
        present = []
    files = [
        file
        for file in present
        if file.suffix in _OF_CHECKPOINTS and file.is_file() and not file.name.startswith(_SAME_WEIGHTS)
    ]
    if not path.name or not any(file.name == "config.json" for file in files):
        raise CommandError(
            f"{path} has no config.json, so it is no checkpoint",
            hint="name a folder in the format of Hugging Face; `llamesh pull` takes a GGUF file",
            code=Exit.USAGE,
        )
    suffixes = {file.suffix for file in present}
    if ".safetensors" not in suffixes and suffixes & _PICKLES:
        raise CommandError(
            f"{path} has its weights in pickle files, which may run code when they are read",
            hint="take a checkpoint in safetensors files, or a GGUF file with `llamesh pull`",
            code=Exit.REFUSED,
        )
    return files


def is_part_of_checkpoint(path: Path) -> bool:
    """Whether a file has weights of a checkpoint, which is a folder."""
    return path.suffix == ".safetensors" and path.with_name("config.json").is_file()


def folder_of(word: str) -> str:
    """Return the folder of a file that a word names, quoted for a shell, so that it can only be meant as a path."""
    return as_path(os.path.split(word)[0] or ".")


def as_path(word: str) -> str:
    """Quote the path of a folder for a shell, so that it can only be meant as a path."""
    return shlex.quote(word if word in {".", ".."} or word.startswith(PATH_BEGINNINGS) else f"./{word}")
