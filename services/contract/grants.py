"""The scopes that a new token carries, from role, contract and the maker's scopes. Pure. Each use of a token checks again.

Invariant: a token never carries a scope that the role, the contract or the maker lacks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.rights import ADMIN, INFER, INFER_ANY, ROLE_SCOPES
from llamesh.v1.gateway_pb2 import Role

ANY_MODEL = "*"


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a contract. The default means no contract, which limits nothing."""

    contract_id: str = ""
    models: tuple[str, ...] = (ANY_MODEL,)
    max_concurrent_requests: int = 0

    @property
    def limited(self) -> bool:
        """Whether the contract limits anything: Envoy must then ask about the requests of its holders."""
        return self.max_concurrent_requests > 0 or ANY_MODEL not in self.models

    def allows(self, model: str) -> bool:
        """Whether the contract grants a model, by its name or by a server's id."""
        return ANY_MODEL in self.models or model in self.models


def role_scopes(role: Role.ValueType, terms: Terms) -> list[str]:
    """Return the scopes of a login token. A contract narrows inference only, so that an administrator can always change the contract."""
    return _narrowed(ROLE_SCOPES[role], terms)


def key_scopes(requested: Sequence[str], held: Collection[str], terms: Terms) -> list[str]:
    """Return the scopes of a key that a caller with the scopes `held` requests; all inference that the caller may use if it requests none.

    Raises SCOPE_MISSING if the caller or the key's contract lacks a scope.
    """
    if not requested:
        return _all_inference(held, terms)
    for scope in requested:
        if not _covers(held, scope):
            raise _missing(scope, "the caller's token lacks it")
        model = scope.removeprefix(INFER)
        if scope.startswith(INFER) and model != ANY_MODEL and not terms.allows(model):
            raise _missing(scope, f"contract {terms.contract_id} does not include it")
    return _narrowed(requested, terms)


def inference_scopes(held: Collection[str], contracts: Iterable[Terms | None]) -> list[str]:
    """Return the inference scopes of `held` that the contracts grant. None is a contract that was deleted; it grants nothing."""
    left = {scope for scope in held if scope.startswith(INFER)}
    for terms in contracts:
        models = terms.models if terms else ()
        if ANY_MODEL in models:
            continue
        left = {INFER + model for model in models if _covers(left, INFER + model)}
    return sorted(left)


def _all_inference(held: Collection[str], terms: Terms) -> list[str]:
    offered = _narrowed([INFER_ANY], terms)
    if _covers(held, INFER_ANY):
        return offered
    both = [scope for scope in sorted(held) if scope.startswith(INFER) and _covers(offered, scope)]
    if not both:
        raise _missing(INFER_ANY, "the caller's token lacks it")
    return both


def _narrowed(scopes: Sequence[str], terms: Terms) -> list[str]:
    wide = [
        item
        for scope in scopes
        for item in ([INFER + model for model in terms.models] if scope == INFER_ANY else [scope])
    ]
    return list(dict.fromkeys(wide))


def _covers(held: Collection[str], scope: str) -> bool:
    return scope in held or ADMIN in held or (scope.startswith(INFER) and INFER_ANY in held)


def _missing(scope: str, why: str) -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_SCOPE_MISSING, f"a key with the scope {scope!r} cannot be made: {why}", {"scope": scope}
    )
