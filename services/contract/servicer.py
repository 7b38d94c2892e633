"""The contract service's calls: decode, call the domain, encode.

Invariant: callers see their own keys, usage and decisions; administrators see all. This module enforces it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from llamesh.kit.errors import MeshError, Reason, invalid_field
from llamesh.kit.identity import Identity, caller
from llamesh.kit.pages import Pages
from llamesh.kit.rights import ADMIN
from llamesh.runtime_parameters import flags
from llamesh.v1 import admission_pb2, admission_pb2_grpc, contract_pb2, contract_pb2_grpc
from llamesh.v1.server_pb2 import MemoryEstimate, RuntimeParameters
from services.contract import flag_parser
from services.contract.check import Checker, ProposedServer
from services.contract.concurrency import ConcurrencyLimiter
from services.contract.contracts import Contracts
from services.contract.decisions import Decisions
from services.contract.grants import Terms, role_scopes
from services.contract.keys import Keys
from services.contract.messages import (
    contract_message,
    decision_message,
    key_message,
    memory_message,
    moment,
    placement_policy_message,
    refusal_message,
    usage_message,
)
from services.contract.revocations import Revocations
from services.contract.tables import ContractRow, KeyRow, RowOwner
from services.contract.terms_cache import TermsCache
from services.contract.usage import Ledger


class ContractServicer(contract_pb2_grpc.ContractServiceServicer):
    """llamesh.v1.ContractService."""

    def __init__(
        self,
        checker: Checker,
        contracts: Contracts,
        limiter: ConcurrencyLimiter,
        keys: Keys,
        ledger: Ledger,
        decisions: Decisions,
        pages: Pages,
    ) -> None:
        self._checker = checker
        self._contracts = contracts
        self._limiter = limiter
        self._keys = keys
        self._ledger = ledger
        self._decisions = decisions
        self._pages = pages

    async def Check(self, request: contract_pb2.CheckRequest, context: Any) -> contract_pb2.CheckResponse:  # noqa: N802
        """See contract.proto."""
        identity = caller()
        return await self._checked(request, identity.subject, identity.contract_id, serve=request.serve)

    async def CheckDeclaredServer(  # noqa: N802
        self, request: contract_pb2.CheckDeclaredServerRequest, context: Any
    ) -> contract_pb2.CheckResponse:
        """See contract.proto."""
        return await self._checked(request.check, request.subject, "", serve=True)

    async def _checked(
        self, request: contract_pb2.CheckRequest, subject: str, contract_id: str, *, serve: bool
    ) -> contract_pb2.CheckResponse:
        parameters = read_parameters(request)
        proposed = ProposedServer(
            request.model_uuid,
            request.replicas or 1,
            parameters,
            request.namespace or self._checker.policy.default_namespace,
            request.replaces_server_uuid,
            serve,
            request.placement,
        )
        result = await self._checker.check(proposed, subject, contract_id)
        return contract_pb2.CheckResponse(
            allowed=not result.refusals,
            refusals=[refusal_message(refusal) for refusal in result.refusals],
            memory=memory_message(result.memory),
            free_bytes=result.free_bytes,
            parameters=parameters,
            runtime_params=flags(parameters),
            decision_id=result.decision_id,
            model_name=result.model_name,
        )

    async def EstimateMemory(  # noqa: N802
        self, request: contract_pb2.EstimateMemoryRequest, context: Any
    ) -> MemoryEstimate:
        """See contract.proto."""
        return memory_message(await self._checker.estimate(request.model_uuid))

    async def GetPolicy(self, request: contract_pb2.GetPolicyRequest, context: Any) -> contract_pb2.Policy:  # noqa: N802
        """See contract.proto."""
        policy = self._checker.policy
        return contract_pb2.Policy(
            max_replicas=policy.max_replicas,
            allowed_namespaces=policy.allowed_namespaces,
            anonymous_inference=policy.anonymous_inference,
            placement=placement_policy_message(policy.placement) if policy.placement else None,
        )

    async def CreateContract(  # noqa: N802
        self, request: contract_pb2.CreateContractRequest, context: Any
    ) -> contract_pb2.Contract:
        """See contract.proto."""
        row = await self._contracts.create(request.display_name, request.max_concurrent_requests, request.models)
        return self._contract(row)

    async def ListContracts(  # noqa: N802
        self, request: contract_pb2.ListContractsRequest, context: Any
    ) -> contract_pb2.ListContractsResponse:
        """See contract.proto."""
        identity = caller()
        only = None if identity.is_admin else identity.contract_id
        rows, token = await self._contracts.page(self._pages.query(request), only)
        return contract_pb2.ListContractsResponse(
            contracts=[self._contract(row) for row in rows], next_page_token=token
        )

    async def GetContract(  # noqa: N802
        self, request: contract_pb2.GetContractRequest, context: Any
    ) -> contract_pb2.Contract:
        """See contract.proto."""
        return self._contract(await self._contracts.get(request.contract_id))

    async def UpdateContract(  # noqa: N802
        self, request: contract_pb2.UpdateContractRequest, context: Any
    ) -> contract_pb2.Contract:
        """See contract.proto."""
        row = await self._contracts.update(
            request.contract_id,
            request.display_name if request.HasField("display_name") else None,
            request.max_concurrent_requests if request.HasField("max_concurrent_requests") else None,
            request.models,
        )
        return self._contract(row)

    async def DeleteContract(  # noqa: N802
        self, request: contract_pb2.DeleteContractRequest, context: Any
    ) -> contract_pb2.Contract:
        """See contract.proto."""
        return self._contract(await self._contracts.delete(request.contract_id))

    async def CreateKey(  # noqa: N802
        self, request: contract_pb2.CreateKeyRequest, context: Any
    ) -> contract_pb2.CreateKeyResponse:
        """See contract.proto."""
        row, token = await self._keys.create(
            caller(), request.display_name, request.scopes, request.contract_id, request.expire_days
        )
        return contract_pb2.CreateKeyResponse(key=self._key(row), token=token)

    async def ListKeys(  # noqa: N802
        self, request: contract_pb2.ListKeysRequest, context: Any
    ) -> contract_pb2.ListKeysResponse:
        """See contract.proto."""
        rows, token = await self._keys.page(visible_owner(caller()), self._pages.query(request))
        return contract_pb2.ListKeysResponse(keys=[self._key(row) for row in rows], next_page_token=token)

    async def RevokeKey(self, request: contract_pb2.RevokeKeyRequest, context: Any) -> contract_pb2.Key:  # noqa: N802
        """See contract.proto."""
        return self._key(await self._keys.revoke(visible_owner(caller()), request.key_id))

    def _key(self, row: KeyRow) -> contract_pb2.Key:
        return key_message(row, self._keys.state(row))

    async def ListUsage(  # noqa: N802
        self, request: contract_pb2.ListUsageRequest, context: Any
    ) -> contract_pb2.ListUsageResponse:
        """See contract.proto."""
        start = moment(request.start_time, "start_time") if request.HasField("start_time") else None
        end = moment(request.end_time, "end_time") if request.HasField("end_time") else None
        user = usage_of(caller(), request.subject)
        rows, token = await self._ledger.page(user, start, end, self._pages.query(request))
        return contract_pb2.ListUsageResponse(usage=[usage_message(row) for row in rows], next_page_token=token)

    async def ListDecisions(  # noqa: N802
        self, request: contract_pb2.ListDecisionsRequest, context: Any
    ) -> contract_pb2.ListDecisionsResponse:
        """See contract.proto."""
        rows, token = await self._decisions.page(
            visible_owner(caller()), self._pages.query(request), refused_only=request.refused_only
        )
        return contract_pb2.ListDecisionsResponse(
            decisions=[decision_message(row) for row in rows], next_page_token=token
        )

    async def GetDecision(  # noqa: N802
        self, request: contract_pb2.GetDecisionRequest, context: Any
    ) -> contract_pb2.Decision:
        """See contract.proto."""
        return decision_message(await self._decisions.get(visible_owner(caller()), request.decision_id))

    def _contract(self, row: ContractRow) -> contract_pb2.Contract:
        return contract_message(row, self._limiter.in_flight(row.contract_id))


class AdmissionServicer(admission_pb2_grpc.AdmissionServiceServicer):
    """llamesh.v1.AdmissionService."""

    def __init__(self, contracts: Contracts, revocations: Revocations, terms: TermsCache) -> None:
        self._contracts = contracts
        self._revocations = revocations
        self._terms = terms

    async def Grant(self, request: admission_pb2.GrantRequest, context: Any) -> admission_pb2.GrantResponse:  # noqa: N802
        """See admission.proto."""
        try:
            terms = await self._contracts.terms(request.contract_id)
        except MeshError as error:
            if error.reason != Reason.ERROR_REASON_CONTRACT_NOT_FOUND:
                raise
            # A deleted contract allows no inference, but it does not prevent a login: an administrator must be able to repair it.
            terms = Terms(request.contract_id, models=())
        return admission_pb2.GrantResponse(scopes=role_scopes(request.role, terms), contract_id=request.contract_id)

    async def WatchRevocations(  # noqa: N802
        self, request: admission_pb2.WatchRevocationsRequest, context: Any
    ) -> AsyncIterator[admission_pb2.WatchRevocationsResponse]:
        """See admission.proto."""
        async for key_ids in self._revocations.watch():
            yield admission_pb2.WatchRevocationsResponse(key_ids=key_ids, synced=not key_ids)

    async def WatchLimitedContracts(  # noqa: N802
        self, request: admission_pb2.WatchLimitedContractsRequest, context: Any
    ) -> AsyncIterator[admission_pb2.WatchLimitedContractsResponse]:
        """See admission.proto."""
        async for contract_ids in self._terms.watch_limited():
            yield admission_pb2.WatchLimitedContractsResponse(contract_ids=sorted(contract_ids))


def read_parameters(request: contract_pb2.CheckRequest) -> RuntimeParameters:
    """Return the parameters of a request, given as text or typed; the same rules apply to both."""
    if request.runtime_params and request.HasField("parameters"):
        raise invalid_field("runtime_params", "give either runtime_params or parameters, not both")
    if request.HasField("parameters"):
        flag_parser.check(request.parameters)
        return request.parameters
    return flag_parser.parse(request.runtime_params)


def visible_owner(identity: Identity) -> RowOwner | None:
    """Return the owner whose objects a caller may see: the caller itself; None, which means all owners, for administrators."""
    return None if identity.is_admin else owner(identity)


def owner(identity: Identity) -> RowOwner:
    """Return the caller as the owner of objects."""
    return RowOwner(identity.subject, identity.uid, datetime.fromtimestamp(identity.user_since, UTC))


def usage_of(identity: Identity, requested: str) -> RowOwner | str | None:
    """Return the user whose usage is listed: the caller, or for administrators a name or None (all). SCOPE_MISSING for another user."""
    if identity.is_admin:
        return requested or None
    if requested not in ("", identity.subject):
        raise MeshError(
            Reason.ERROR_REASON_SCOPE_MISSING, "only administrators see the usage of others", {"scope": ADMIN}
        )
    return owner(identity)
