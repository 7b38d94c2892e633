"""How the tests of flags read a refusal."""

from __future__ import annotations

import pytest

from llamesh.kit.errors import MeshError
from services.contract.flag_parser import parse


def refused(text: str) -> MeshError:
    """The error that a text of flags is refused with."""
    with pytest.raises(MeshError) as caught:
        parse(text)
    return caught.value
