"""Translates the last messages of llama.cpp before a failure into instructions for a person."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamesh.installation import install_command

TOO_SHORT = "the text is too short for an importance matrix: it needs 1,024 tokens, about 5,000 letters"
NO_MEMORY = "the memory of this machine does not suffice"
_MEANINGS = (
    (r"bad_alloc|(?:unable|failed) to allocate|insufficient memory|[Cc]annot allocate memory|MemoryError", NO_MEMORY),
    (
        r"requires an imatrix|missing importance matrix",
        "the type needs an importance matrix that has this tensor: set importance_matrix, or measure it with a longer text",
    ),
    (
        r"requantizing from type (\S+) is disabled",
        "the source has tensors of type {0} already: start from its F16 or BF16 file, or set allow_requantize",
    ),
    (r"unknown (?:model )?architecture:? '?([\w-]+)", "this build of llama.cpp does not know the architecture {0}"),
    (
        r"you need at least (\d+) tokens|tokenizes to only (\d+) tokens",
        TOO_SHORT,
    ),
    (r"not within the file bounds|corrupted or incomplete", "the source is truncated: fetch it again"),
    (r"iostream error|No space left on device", "the variant could not be written: look at the disk of LLAMESH_HOME"),
    (r"invalid magic|failed to read magic", "the source is not a GGUF file"),
    (r"no program|No such file or directory: '([^']+)'", "{0} cannot be started"),
    (r"ModuleNotFoundError: No module named '?([\w.]+)", f"{{0}} is not installed: {install_command('quant')}"),
)


def translate(lines: Sequence[str]) -> str:
    """Return instructions for the last lines of llama.cpp; the last line if no message is known; empty if there are no lines."""
    for line in reversed(lines):
        for pattern, meaning in _MEANINGS:
            if found := re.search(pattern, line):
                return meaning.format(*(group or "" for group in found.groups()))
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
