"""The files of a checkpoint that a conversion reads: a model in the format of Hugging Face. No I/O.

Invariant: only files of data are read, by a list of names. A pickle file, or a module of Python, may run code when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from services.download.sources.source import SourceRefusedError

CONFIG = "config.json"
_TEXTS = frozenset(
    {
        CONFIG,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "added_tokens.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "model.safetensors.index.json",
    }
)
_ONE_FILE = "model.safetensors"
_PART = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
_PICKLE = re.compile(r"\.(?:bin|pt|pth|ckpt|pkl|pickle)", re.ASCII)
MAX_PARTS = 1_000
"""Maximum number of files of weights. Models of 400 billion weights have about 200."""
MAX_TEXT_BYTES = 64 << 20
"""Maximum size of a file that has no weights. The tokenizer of 250,000 tokens has about 20 MiB."""


def is_of_checkpoint(name: str) -> bool:
    """Return whether a conversion may read a file of this name."""
    return name in _TEXTS or name == _ONE_FILE or _PART.fullmatch(name) is not None


def is_pickle(name: str) -> bool:
    """Return whether a name is that of weights in a format that may run code."""
    return _PICKLE.search(name) is not None


def checkpoint_files(sizes: Mapping[str, int], where: str, *, has_pickles: bool) -> list[str]:
    """Return the files that a conversion of a checkpoint reads, those without weights first. Raises SourceRefusedError.

    `sizes` are the lengths of its files in bytes by name; `where` names the checkpoint in messages.
    """
    names = sizes.keys()
    if CONFIG not in names:
        raise SourceRefusedError(
            f"{where} has no config.json: it is no model in the format of Hugging Face", rule="checkpoint"
        )
    weights = [_ONE_FILE] if _ONE_FILE in names else _parts(names, where)
    if not weights:
        why = (
            "its weights in pickle files, which may run code when they are read: take a checkpoint in safetensors files"
            if has_pickles
            else "no model.safetensors and no model-00001-of-...safetensors"
        )
        raise SourceRefusedError(f"{where} has {why}", rule="pickle" if has_pickles else "checkpoint")
    texts = sorted(_TEXTS.intersection(names))
    for name in texts:
        if sizes[name] > MAX_TEXT_BYTES:
            raise SourceRefusedError(f"{name} of {where} has more than {MAX_TEXT_BYTES >> 20} MiB", rule="files")
    return [*texts, *weights]


def _parts(names: Iterable[str], where: str) -> list[str]:
    found = {name: (int(part[1]), int(part[2])) for name in names if (part := _PART.fullmatch(name))}
    if not found:
        return []
    counts = {count for _, count in found.values()}
    count = max(counts)
    missing = sorted(set(range(1, count + 1)) - {number for number, _ in found.values()}) if count <= MAX_PARTS else []
    if len(counts) != 1 or count > MAX_PARTS or missing or len(found) != count:
        what = f"lacks part {missing[0]} of {count} of its weights" if missing else "has weights of more than one model"
        raise SourceRefusedError(f"{where} {what}", rule="parts")
    return sorted(found)
