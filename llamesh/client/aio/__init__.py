"""The mesh with `await`: `AsyncClient` and its parts, one module for each noun.

Answers are the contract's own messages (llamesh.v1). Every call takes `timeout` (seconds, for the whole call) and raises a class
of `llamesh.errors`. tools/sync_client.py writes the package `sync` from this one.
"""

from llamesh.client.aio.client import AsyncClient
from llamesh.client.aio.contracts import AsyncContracts
from llamesh.client.aio.keys import AsyncKeys
from llamesh.client.aio.models import AsyncModels
from llamesh.client.aio.part import AsyncPart
from llamesh.client.aio.pull import AsyncPull
from llamesh.client.aio.quant import AsyncQuant
from llamesh.client.aio.servers import AsyncServers
from llamesh.client.aio.users import AsyncUsers

__all__ = [
    "AsyncClient",
    "AsyncContracts",
    "AsyncKeys",
    "AsyncModels",
    "AsyncPart",
    "AsyncPull",
    "AsyncQuant",
    "AsyncServers",
    "AsyncUsers",
]
