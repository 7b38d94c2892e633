"""Comments of the contracts: the comment above a field or value is its description in the command and the docs."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto" / "llamesh" / "v1"
PARAMETERS = ROOT / "llamesh" / "v1" / "parameters.json"
"""Descriptions of runtime parameters for the command: descriptors have no comments at run time, and the contracts are not installed."""


def comments_of(file: str) -> dict[str, str]:
    """Return the comment above each field and value of a contract, on one line, by its name.

    Several messages may have a field of one name; the key "Message.field" is that of one message, "field" that of the first.
    """
    found: dict[str, str] = {}
    block: list[str] = []
    message = ""
    for line in (PROTO / file).read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("//"):
            block.append(text.removeprefix("//").strip())
            continue
        words = text.split("=")[0].split()
        if line.startswith(("message ", "enum ")):
            message = words[1]
        elif words and "=" in text and not text.startswith("("):
            found.setdefault(words[-1], " ".join(block))
            found.setdefault(f"{message}.{words[-1]}", " ".join(block))
        block = []
    return found


def write_parameters(names: list[str]) -> None:
    """Write the comments of these fields of RuntimeParameters."""
    comments = comments_of("server.proto")
    PARAMETERS.write_text(
        json.dumps({name: comments[name] for name in names}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
