"""Admission of inference requests: may this request run now, and how many tokens did it use when it ended?

Envoy decides most requests alone. It asks about tokens with a limited contract, about tokens whose user may have lost rights, and about all
requests to metered servers (docs/adr/0017). `ext_authz` decodes the question and calls `admit`; `access_log` decodes Envoy's report of the
end and calls `end`. No Envoy message is read or written here.

Invariant: a decision uses the present state: revoked keys, the user's standing, the user's contract and the key's contract. A request that
is refused holds no permit; an admitted request holds a permit until `end`.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamesh.kit.errors import MeshError, Reason, name_of
from llamesh.kit.identity import Identity
from llamesh.kit.logs import log
from llamesh.kit.rights import Rights
from services.contract.concurrency import ConcurrencyLimiter
from services.contract.contracts import not_found
from services.contract.decisions import Decisions, RecordedDecision
from services.contract.grants import Terms, inference_scopes
from services.contract.refusals import PolicyRefusal
from services.contract.settlement import TokenUsage
from services.contract.terms_cache import TermsCache
from services.contract.usage import Account, Ledger

MAX_SHOWN_MODELS = 8
"""Maximum number of granted models that a refusal names."""
RETRY_SECONDS = 1
"""Seconds after which a client that was refused for concurrency may retry."""


class Admission:
    """Decides about requests before they reach an engine, and records their usage when they have ended."""

    def __init__(
        self, limiter: ConcurrencyLimiter, terms: TermsCache, rights: Rights, ledger: Ledger, decisions: Decisions
    ) -> None:
        self._limiter = limiter
        self._terms = terms
        self._rights = rights
        self._ledger = ledger
        self._decisions = decisions

    async def admit(self, identity: Identity, target: str, permit_id: str, envoy: str = "") -> None:
        """Let a request run that `envoy` carries. From then on it holds a permit of each contract that limits concurrency.

        Raises UNAUTHENTICATED, USER_DISABLED, CONTRACT_NOT_FOUND, MODEL_NOT_IN_CONTRACT, CONCURRENCY_EXCEEDED; and COMPONENT_UNAVAILABLE if
        the rights or the terms are unknown, because no limit can be enforced without them.
        """
        _, terms = await self._present(identity)
        try:
            limits = _limits(terms, target)
            self._acquire(limits, permit_id, envoy)
        except MeshError as error:
            self._note(identity.subject, target, error)
            raise

    async def listing_scopes(self, identity: Identity) -> list[str]:
        """Return the inference scopes that a caller has now, for a list of models. A list counts against no limit."""
        present, terms = await self._present(identity)
        return inference_scopes(present.scopes, terms.values())

    def end(self, permit_id: str, account: Account, usage: TokenUsage | None) -> None:
        """Record the usage of a request that has ended, and free its permit. `usage` is None if no engine worked on it."""
        self._limiter.release(permit_id)
        if usage is not None:
            self._ledger.add(account, usage)

    def release_all(self, envoy: str = "") -> None:
        """Free all permits of an Envoy: it is gone, and so are its requests, whose ends it would have reported."""
        self._limiter.release_all(envoy)

    async def _present(self, identity: Identity) -> tuple[Identity, Mapping[str, Terms | None]]:
        """Return the caller with its present rights, and the terms of the contracts that apply to it."""
        await self._rights.until_known(identity)
        present = self._rights.of(identity)
        ids = dict.fromkeys((present.contract_id, present.user_contract_id))
        return present, {each: await self._terms.get(each) for each in ids if each}

    def _acquire(self, limits: Mapping[str, int], permit_id: str, envoy: str) -> None:
        full = self._limiter.acquire(limits, permit_id, envoy) if limits else None
        if full is not None:
            raise MeshError(
                Reason.ERROR_REASON_CONCURRENCY_EXCEEDED,
                f"contract {full} allows {limits[full]} requests at the same time, and as many are running",
                {"contractId": full, "limit": str(limits[full])},
                retry_after=RETRY_SECONDS,
            )

    def _note(self, subject: str, target: str, error: MeshError) -> None:
        metadata = {key: str(value) for key, value in error.metadata.items()}
        refusal = PolicyRefusal(name_of(error.reason), error.message, error.remedy, metadata)
        contract_id = metadata.get("contractId", "")
        self._decisions.enqueue(RecordedDecision(subject, "infer", target, contract_id, [refusal]))
        log.info("refused", subject=subject, contract_id=contract_id, reason=refusal.reason)


def _limits(terms: Mapping[str, Terms | None], target: str) -> dict[str, int]:
    """Return the concurrency limits that apply to a request, by contract. Raises if a contract is gone or does not grant the target."""
    limits = {}
    for contract_id, each in terms.items():
        if each is None:
            raise not_found(contract_id)
        if not each.allows(target):
            raise _not_granted(each, target)
        if each.max_concurrent_requests:
            limits[contract_id] = each.max_concurrent_requests
    return limits


def _not_granted(terms: Terms, target: str) -> MeshError:
    """Return the refusal of a model that a contract does not grant; it names some of the models that the contract grants."""
    shown = terms.models[:MAX_SHOWN_MODELS]
    more = len(terms.models) - len(shown)
    granted = (", ".join(shown) + (f" and {more} more" if more else "")) or "no model"
    return MeshError(
        Reason.ERROR_REASON_MODEL_NOT_IN_CONTRACT,
        f"contract {terms.contract_id} does not grant {target}; it grants {granted}",
        {"contractId": terms.contract_id, "model": target, "granted": ",".join(shown)},
    )
