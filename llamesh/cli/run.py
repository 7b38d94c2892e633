"""`llamesh run`: from a model's name, address or file to a conversation, by the steps that are missing: fetch, serve, wait, chat.

Invariant: existing models and servers are used. A second `run` of the same model fetches nothing and declares no second server.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from llamesh.cli.absent_models import refuse_coming
from llamesh.cli.addressee import Addressee
from llamesh.cli.chat import converse
from llamesh.cli.connection import connected
from llamesh.cli.declaring import declaring
from llamesh.cli.durations import Duration, IdleSleep
from llamesh.cli.local_files import is_path
from llamesh.cli.lookups import own_server
from llamesh.cli.models import pulled
from llamesh.cli.output import text
from llamesh.cli.printing import note
from llamesh.cli.readiness import awaited
from llamesh.cli.served_names import say_name, warn_of_shared
from llamesh.cli.sources import no_source
from llamesh.client.names import names_of, resolve
from llamesh.model_addresses import is_address
from llamesh.server_conditions import staying

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.server_pb2 import Server

IDLE_SLEEP = 600.0
"""Seconds without a request after which a server that `run` has started sleeps: its memory is free until the next request."""


def run(
    model: str,
    prompt: str = "",
    *,
    ctx_size: PositiveInt | None = None,
    idle_sleep: IdleSleep = IDLE_SLEEP,
    timeout: Duration = 300.0,
    system: str = "",
    temperature: float | None = None,
    max_tokens: int | None = None,
    verbose: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Fetch a model if needed, serve it if needed, and talk to it.

    Parameters
    ----------
    model
        A served name, a model of the catalogue, or where to fetch one: hf:OWNER/REPO:Q4_K_M, ollama:NAME:TAG, the https address of a GGUF
        file, oci://HOST/REPOSITORY:TAG, s3://NAME/KEY, quant:MODEL, or the path of a file: ./FILE.gguf.
    prompt
        The question. Without it: standard input, or a conversation in a terminal.
    ctx_size
        Tokens of context, if the model is not served yet.
    idle_sleep
        Time without a request after which a server that this command started sleeps, or never; the next request wakes it.
    timeout
        How long to wait for a server that starts.
    system
        System prompt.
    temperature
        Randomness; 0 for none.
    max_tokens
        Most tokens of an answer.
    verbose
        Show tokens per second and the context used.
    """
    with connected() as mesh:
        server = _server(mesh, model, ctx_size=ctx_size, idle_sleep=idle_sleep)
        _await(mesh, server, timeout)
        addressee = Addressee(_address(server, staying(mesh.servers.list())), server.model_uuid)
    converse(addressee, prompt, system=system, temperature=temperature, max_tokens=max_tokens, verbose=verbose)


def _server(mesh: Client, word: str, *, ctx_size: int | None, idle_sleep: float) -> Server:
    """The server that WORD names, declared if there is none."""
    # A server that is being removed answers no new question.
    servers = staying(mesh.servers.list())
    fetch = names_source(mesh, word, servers)
    if not fetch:
        found = _named(word, servers)
        if found:
            return found
    uuid = _pulled(mesh, word) if fetch else _model(mesh, word, servers)
    with declaring(mesh.profile.url, "run"):
        # Again, because the fetch took time and another `run` may have declared one.
        servers = staying(mesh.servers.list())
        if serving := next((server for server in servers if server.model_uuid == uuid), None):
            return serving
        parameters = {} if ctx_size is None else {"ctx_size": ctx_size}
        server = mesh.servers.serve(uuid, idle_sleep=idle_sleep, parameters=parameters)
    note(text(f"serving {server.model_name or uuid}; `llamesh stop {server.server_uuid[:8]}` ends it"))
    say_name(server, word)
    warn_of_shared(server, servers)
    return server


def _named(word: str, servers: Sequence[Server]) -> Server | None:
    """The server with this id, name or beginning of an id. Servers that share a name and a model are one."""
    same = [server for server in servers if server.model_name == word]
    if same and len({server.model_uuid for server in same}) == 1:
        return same[0]
    return own_server(word, servers)


def names_source(mesh: Client, word: str, servers: Sequence[Server]) -> bool:
    """Whether WORD is a source. A name of the mesh goes before a file of the working directory: ./NAME is always the file."""
    if is_address(word) or not is_path(word):
        return is_address(word)
    names = {name for item in mesh.models.list() for pair in names_of(item) for name in pair}
    return word not in names | {server.model_name for server in servers}


def _pulled(mesh: Client, word: str) -> str:
    """The id of the model from a source, which is fetched if the mesh lacks it."""
    return pulled(mesh, word, again=shlex.join(["llamesh", "run", word])).model_uuid


def _model(mesh: Client, word: str, servers: Sequence[Server]) -> str:
    """The id of the model that WORD names."""
    models = [pair for item in mesh.models.list() for pair in names_of(item)]
    meant = resolve(word, models)
    if not any(meant == uuid for uuid, _ in models):
        known = [name for pair in models for name in pair] + [server.model_name for server in servers]
        refuse_coming(mesh, word)
        raise no_source(word, known)
    return meant


def _await(mesh: Client, server: Server, timeout: float) -> None:
    """Wait for a server that starts. One that sleeps is woken by the first request."""
    from llamesh.v1 import server_pb2

    if server.state not in {server_pb2.SERVER_STATE_SLEEPING, server_pb2.SERVER_STATE_READY}:
        awaited(mesh, server, timeout)


def _address(server: Server, servers: Sequence[Server]) -> str:
    """The name of a server if it means this model alone, else its id."""
    same = {item.model_uuid for item in servers if item.model_name == server.model_name}
    return server.model_name if server.model_name and len(same) == 1 else server.server_uuid
