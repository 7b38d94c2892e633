"""Words of the contract's enums as people write them: Q8_0 for CACHE_TYPE_Q8_0, NoSchedule for TAINT_EFFECT_NO_SCHEDULE."""

from __future__ import annotations

import re
from typing import Any

from llamesh.v1 import options_pb2


def enum_words(field: Any) -> dict[str, str]:
    """Full names of an enum's values by the words without their prefix."""
    names = [value.name for value in field.enum_type.values]
    prefix = re.sub(r"UNSPECIFIED$", "", names[0])
    return {name.removeprefix(prefix): name for name in names[1:]}


def spellings(field: Any) -> dict[str, str]:
    """Full names of an enum's values by each way to write them in a manifest: NO_SCHEDULE, no_schedule, NoSchedule and the full name.

    Words of llama.cpp have no form in camel case.
    """
    words = enum_words(field)
    in_camel_case = {
        camel_case(word): name
        for word, name in words.items()
        if not field.enum_type.values_by_name[name].GetOptions().HasExtension(options_pb2.llama_value)
    }
    lower = {word.lower(): name for word, name in words.items()}
    return {**words, **lower, **in_camel_case, **{name: name for name in words.values()}}


def full_name(field: Any, word: str) -> str:
    """Return the full name of the value that a word in any case means. KeyError if it means none."""
    if word in field.enum_type.values_by_name:
        return word
    return spellings(field).get(word) or enum_words(field)[word.upper()]


def camel_case(word: str) -> str:
    """Return a word of an enum as Kubernetes writes words: DOES_NOT_FIT is DoesNotFit."""
    return "".join(part.capitalize() for part in word.split("_"))
