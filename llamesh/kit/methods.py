"""The rights that a method requires according to its contract (options.proto `access`), and the check of a caller.

Invariant: the contract is the only source: neither handlers nor Envoy have a list of rights of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.identity import Identity, read_claims
from llamesh.kit.rights import Rights
from llamesh.v1 import options_pb2


@dataclass(frozen=True, slots=True)
class RpcMethod:
    """A method as its contract describes it."""

    name: str
    """As on the wire, for instance "/llamesh.v1.GatewayService/Serve"."""
    access: options_pb2.Access | None
    """The required right; None for a method that is in no contract of the mesh."""
    quiet: bool
    """Log success at debug level only: health probes and polling between services are too frequent."""
    is_read_only: bool = False
    """Whether the method changes nothing. It is then cancelled when its caller leaves; all other methods run to their end."""
    has_etag: bool = True
    """Whether its request has an `etag`, which If-Match sets. If it has none, a call with If-Match is refused."""

    target: tuple[str, ...] = ()
    """Fields of its request that name what the call is about: those in the path of its route. Their values are in the call's log line."""

    @property
    def demands(self) -> bool:
        """Whether it requires a right of its caller."""
        return self.access is not None and not (self.access.anonymous or self.access.internal)


def method_of(name: str) -> RpcMethod:
    """Look up a method in its contract."""
    try:
        found = descriptor_pool.Default().FindMethodByName(name.strip("/").replace("/", "."))
    except KeyError:
        return RpcMethod(name, None, quiet=False)
    options = found.GetOptions()
    access = options.Extensions[options_pb2.access]
    read_only = options.idempotency_level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    quiet = read_only and (access.internal or access.anonymous)
    return RpcMethod(
        name,
        access,
        quiet,
        read_only,
        has_etag="etag" in found.input_type.fields_by_name,
        target=_fields_of_path(options.Extensions[annotations_pb2.http]),
    )


def _fields_of_path(route: http_pb2.HttpRule) -> tuple[str, ...]:
    """Return the fields in the path of a route; none for a method without a route."""
    kind = route.WhichOneof("pattern")
    return tuple(re.findall(r"\{(\w+)\}", getattr(route, kind))) if kind else ()


def authorise(
    access: options_pb2.Access | None,
    claims: str | None,
    *,
    from_outside: bool = False,
    rights: Rights | None = None,
) -> Identity | None:
    """Return the identity of the caller, None if it has none and needs none.

    `from_outside`: the call came through Envoy, which routes no internal method; one that arrives nevertheless is refused here.
    `rights`: present rights of all callers; None in a process whose methods are all internal.

    Raises:
        MeshError: UNAUTHENTICATED or SCOPE_MISSING if the contract demands more than the caller may do now.
    """
    if access is not None and access.internal and from_outside:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "this call is for members of the mesh only")
    identity = read_claims(claims) if claims else None
    if access is None or access.anonymous or access.internal:
        return identity
    if identity is None:
        raise MeshError(Reason.ERROR_REASON_UNAUTHENTICATED, "this call needs a token")
    present = rights.of(identity) if rights else identity
    if access.scope and not present.has(access.scope):
        lost = (
            f"{identity.subject} no longer has"
            if identity.has(access.scope)
            else f"the token of {identity.subject} lacks"
        )
        raise MeshError(
            Reason.ERROR_REASON_SCOPE_MISSING, f"{lost} the scope {access.scope!r}", {"scope": access.scope}
        )
    return present
