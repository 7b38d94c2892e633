"""Words of the contract's enums as people write them: Q8_0 for CACHE_TYPE_Q8_0."""

from __future__ import annotations

import re
from typing import Any


def enum_words(field: Any) -> dict[str, str]:
    """Full names of an enum's values by the words without their prefix."""
    names = [value.name for value in field.enum_type.values]
    prefix = re.sub(r"UNSPECIFIED$", "", names[0])
    return {name.removeprefix(prefix): name for name in names[1:]}
