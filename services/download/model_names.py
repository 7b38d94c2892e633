"""Which texts may be names of models. Pure.

Invariant: no name is an address, begins as a path (`./x`, `/x`), or is a file in a folder (`a/x.gguf`), because `llamesh run` takes these
too. A name may be that of a file (`x.gguf`, as default names are): `run` then takes the model, and `./x.gguf` is the file.
"""

from __future__ import annotations

from llamesh.kit.errors import invalid_field
from llamesh.model_addresses import SCHEMES, is_address, shown_address
from llamesh.names import served_name


def check_name(field: str, name: str) -> None:
    """Raise INVALID_FIELD if a name looks like an address or a path."""
    if not _may_be_name(name):
        words = f"{shown_address(name) or 'the name'} looks like an address or a path: take a name such as words, qwen:latest or org/words"
        raise invalid_field(field, words)


def default_name(name: str, model_uuid: str) -> str:
    """Return the default name of a model whose source calls it `name`: its id if the source gives no name that may be one."""
    usable = served_name(name, model_uuid)
    return usable if _may_be_name(usable) else model_uuid


def _may_be_name(name: str) -> bool:
    steps, lower = name.split("/"), name.lower()
    is_path = bool({"", ".", ".."} & set(steps)) or (len(steps) > 1 and lower.endswith(".gguf"))
    return not (is_path or is_address(name) or lower.startswith(tuple(f"{scheme}:" for scheme in SCHEMES)))
