"""llamesh: serve llama.cpp models on your own hardware, through typed contracts.

from llamesh import Client, errors

`Client`, `AsyncClient` and `errors` are loaded at their first use, so importing `llamesh` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamesh.client import errors
    from llamesh.client.aio import AsyncClient
    from llamesh.client.sync import Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__", "errors"]

_LAZY = {"AsyncClient": "llamesh.client.aio", "Client": "llamesh.client.sync", "errors": "llamesh.client"}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        module = import_module(_LAZY[name])
        return import_module("llamesh.client.errors") if name == "errors" else getattr(module, name)
    raise AttributeError(f"module 'llamesh' has no attribute {name!r}")
