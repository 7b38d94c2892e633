"""Reads the files of a checkpoint that have no weights, before and for its conversion. Every file is read without trust."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from services.quant.checkpoint_config import (
    CODE_FILES,
    CheckpointConfig,
    CheckpointRefusedError,
    read_config,
    shown,
    uses_own_converter,
)
from services.quant.step.report import StepRefusedError
from services.quant.step.untrusted_json import MAX_MARKS, check_bounds, parse_json
from services.quant.step.vocabulary import Vocabulary, VocabularyRefusedError, read_vocabulary


@dataclass(frozen=True, slots=True)
class CheckpointTexts:
    """What a checkpoint says of its model: its numbers, its tokens, and which of them are special."""

    config: CheckpointConfig
    vocabulary: Vocabulary
    special: gguf.SpecialVocab


def read_texts(checkpoint: Path) -> CheckpointTexts:
    """Read the files in a folder. Raises StepRefusedError if llamesh cannot convert the checkpoint."""
    try:
        config = read_config(read_json(checkpoint / "config.json"))
        vocabulary = read_vocabulary(read_json(checkpoint / "tokenizer.json"), config.vocabulary)
        byte_pairs = vocabulary.kind == "gpt2"
        _check_bounds(checkpoint)
        special = gguf.SpecialVocab(checkpoint, load_merges=byte_pairs, n_vocab=config.vocabulary)
    except (CheckpointRefusedError, VocabularyRefusedError) as error:
        raise StepRefusedError("QUANT_REFUSED", str(error)) from error
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        # The reader of special tokens trusts the files.
        raise StepRefusedError("QUANT_REFUSED", f"its tokenizer files cannot be read: {shown(error)}") from error
    if byte_pairs:
        # llama.cpp would add one for some patterns.
        special.add_special_token.setdefault("bos", False)
    return CheckpointTexts(config, vocabulary, special)


def _check_bounds(checkpoint: Path) -> None:
    """Raise ValueError if a file is too large for the reader of special tokens, which has no bounds of its own."""
    for path in checkpoint.glob("*.json"):
        check_bounds(path.read_bytes())
    merges = checkpoint / "merges.txt"
    if merges.exists() and merges.read_bytes().count(b"\n") > MAX_MARKS:
        raise ValueError(f"{merges.name} has more than {MAX_MARKS:,} lines")


def converted_here(checkpoint: Path, program: str) -> bool:
    """Return whether llamesh's own converter takes the checkpoint in a folder. `program` is another one, if it is set."""
    documents = [read_json(checkpoint / name) for name in CODE_FILES if (checkpoint / name).exists()]
    return uses_own_converter(program, documents)


def read_json(path: Path) -> Any:
    """Return a parsed JSON file of a checkpoint. Raises StepRefusedError."""
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise StepRefusedError("QUANT_REFUSED", f"the checkpoint has no {path.name}") from None
    except ValueError as error:
        raise StepRefusedError("QUANT_REFUSED", f"{path.name} cannot be read: {error}") from error
