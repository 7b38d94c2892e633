# Written from aio/__init__.py by tools/sync_client.py; edit there.
"""The mesh without `await`: `Client` and its parts. tools/sync_client.py writes this package from `aio`."""

from llamesh.client.sync.client import Client
from llamesh.client.sync.contracts import Contracts
from llamesh.client.sync.keys import Keys
from llamesh.client.sync.models import Models
from llamesh.client.sync.part import Part
from llamesh.client.sync.pull import Pull
from llamesh.client.sync.quant import Quant
from llamesh.client.sync.servers import Servers
from llamesh.client.sync.users import Users

__all__ = [
    "Client",
    "Contracts",
    "Keys",
    "Models",
    "Part",
    "Pull",
    "Quant",
    "Servers",
    "Users",
]
