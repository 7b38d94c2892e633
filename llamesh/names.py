"""The names that Python, Envoy's configuration and its Lua filters agree on.

Invariant: no other Python module writes out a header, a prefix of clusters, the lifeline, or a metadata namespace of claims or usage. YAML
and Lua cannot import names and repeat them; tests/unit/test_names_are_agreed_on.py compares. This module needs the standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

HEADER_PREFIX = "x-llamesh-"
"""Prefix of the headers that only the mesh sets. Envoy removes a client's headers of this prefix."""
CLUSTER_HEADER = HEADER_PREFIX + "cluster"
"""The Envoy cluster that an inference request is for, set by envoy/lua/route.lua."""
CLAIMS_HEADER = HEADER_PREFIX + "claims"
"""The payload of a verified token in base64url, set by Envoy on management calls."""
CLIENT_ADDRESS_HEADER = HEADER_PREFIX + "client-address"
"""The address that a management call comes from, set by Envoy."""
SCOPES_HEADER = HEADER_PREFIX + "scopes"
"""The caller's scopes for inference, separated by commas, unusual characters as %XX: the waker lists models by them."""
HELD_SINCE_HEADER = HEADER_PREFIX + "held-since"
"""When Envoy began to hold a request for the waker, in seconds since 1970."""
AWAKE_HEADER = HEADER_PREFIX + "awake"
"""Set to 1 on the waker's answer: an engine is ready, and Envoy sends the request again."""
RETRY_HEADER = HEADER_PREFIX + "retry"
"""Set to 1 on an answer for a connection that no engine accepted: Envoy sends the request again."""

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"
"""Resource of a Kubernetes node that counts its GPUs, if a placement names none."""

METADATA = "llamesh"
"""Namespace of the dynamic metadata that the Lua filters set."""
USAGE_METADATA = "llamesh.usage"
"""Namespace of the dynamic metadata in which envoy/lua/answers.lua stores the tokens and times of an answer."""
CLAIMS_METADATA = "envoy.filters.http.jwt_authn"
"""Namespace of the dynamic metadata in which Envoy keeps a verified token's payload under the key `claims`."""
ISSUER = "llamesh"
AUDIENCE = "llamesh"
"""The claims `iss` and `aud` of the mesh's tokens."""

GATEWAY = "gateway"
CONTRACT = "contract"
DOWNLOAD = "download"
QUANT = "quant"
"""The members to which Envoy routes calls. Envoy's cluster of a member, its socket and its log have the same name."""
CONTROLLER = "controller"
ENVOY = "envoy"
"""Envoy as a member: in the calls that it makes it is the caller."""
MEMBERS = (GATEWAY, CONTRACT, DOWNLOAD, CONTROLLER, QUANT, ENVOY)
"""All members that have an identity of their own where members call each other over TCP."""
WAKER = "waker"
"""Envoy's cluster of the waker, and its socket."""
ENVOY_ADMIN = "envoy-admin"
"""The socket of Envoy's admin interface."""
DRAIN_PATH = "/drain"
"""Path of the waker that the supervisor puts to when the mesh stops. Envoy sends no PUT to the waker."""
INFERENCE_LISTENER = "inference"
HELD_LISTENER = "held"
"""Envoy's internal listener between the clusters of servers and the waker."""
ADMISSION_LOG = "admission"
"""Name of the access log of the requests that Envoy has sent to Admission."""

_SERVER = "s:"
_MODEL = "m:"

LIFELINE = "LLAMESH_LIFELINE_FD"
"""Environment variable with the read end of a pipe whose write end only the supervisor has. If it is set, a supervisor started this
process."""

DEFAULT_NAMESPACE = "default"
"""Default namespace of servers, if it is allowed: see `default_namespace`."""

_UNUSABLE = re.compile(r"[^A-Za-z0-9._:/@+-]+")
_MAX_SERVED_NAME = 128


def server_cluster(server_uuid: str) -> str:
    """Return Envoy's cluster of one server."""
    return _SERVER + server_uuid


def model_cluster(name: str) -> str:
    """Return Envoy's cluster of all servers that serve the model `name`."""
    return _MODEL + name


def stat_name(cluster: str) -> str:
    """Return the name of a cluster in Envoy's statistics: without dots and colons, at which Envoy would split the name or replace it."""
    return quote(cluster, safe="/@+-_").replace(".", "%2E")


def cluster_of_stat(name: str) -> str:
    """Return the cluster of a name that `stat_name` made."""
    return unquote(name)


def server_of(cluster: str) -> str | None:
    """Return the server_uuid of a server's cluster; None for any other cluster."""
    return cluster.removeprefix(_SERVER) if cluster.startswith(_SERVER) else None


def model_of(cluster: str) -> str | None:
    """Return the model name of a model's cluster; None for any other cluster."""
    return cluster.removeprefix(_MODEL) if cluster.startswith(_MODEL) else None


def default_namespace(allowed: Sequence[str]) -> str:
    """Return the namespace of a server for which none is given: "default" if it is allowed, else the first that is."""
    return allowed[0] if allowed and DEFAULT_NAMESPACE not in allowed else DEFAULT_NAMESPACE


def served_name(name: str, model_uuid: str) -> str:
    """Return the default name for `model` in requests for a model called `name`: its usable characters, or its id if there are none."""
    usable = _UNUSABLE.sub("-", name).lstrip("._:/@+-")[:_MAX_SERVED_NAME]
    return usable or model_uuid


def hidden_socket(socket: Path) -> Path:
    """Return the path to which a retiring engine renames its socket.

    It is no longer than the path it replaces, so it is within the limit of a socket's path, and its end is the same, so it tells apart
    the engines of one server, which may retire at the same time.
    """
    return socket.with_name(f"~{socket.stem[1:]}{socket.suffix}")
