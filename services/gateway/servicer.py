"""The gateway's face: decodes a request, says whose it is, calls the noun that decides, encodes the answer."""

# ruff: noqa: D102, N802 - names and documentation of calls stand in the contract
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from llamesh.kit.calls import Context
from llamesh.kit.channels import asking, call_options
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.identity import caller
from llamesh.kit.pages import Pages
from llamesh.kit.rights import ADMIN, role_grants
from llamesh.v1 import admission_pb2, gateway_pb2, gateway_pb2_grpc, model_pb2, server_pb2
from services.gateway.health import Health
from services.gateway.models import Models
from services.gateway.preconditions import wanted_etag
from services.gateway.servers import Servers
from services.gateway.siblings import Siblings
from services.gateway.standings import Standings
from services.gateway.tables import User
from services.gateway.tokens import Grant, Tokens
from services.gateway.users import Change, Users
from services.gateway.watch import Selector, Watches

ADDRESS_HEADER = "x-llamesh-client-address"
"""Where a request comes from: set by Envoy (envoy/listeners/management.yaml), which lets no client send it."""

GRANT_DEADLINE = 5.0
"""Seconds that a login waits for the contract service; a restart of it takes less."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the gateway is made of."""

    siblings: Siblings
    users: Users
    tokens: Tokens
    token_lifetime: timedelta
    models: Models
    servers: Servers
    watches: Watches
    health: Health
    pages: Pages


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """llamesh.v1.GatewayService; see its contract for every call."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreateToken(
        self, request: gateway_pb2.CreateTokenRequest, context: Context
    ) -> gateway_pb2.CreateTokenResponse:
        known = await self._parts.users.authenticate(request.username, request.password, client_address(context))
        lifetime = self._parts.token_lifetime
        user = await self._parts.users.hold(known.username, known.uid, lifetime, known.password_standing)
        grant = await self._grant(user)
        return gateway_pb2.CreateTokenResponse(
            access_token=await self._parts.tokens.login(user, role_claim(user.role), grant, lifetime),
            token_type="bearer",  # noqa: S106 - OAuth's word, no secret
            expires_in=int(lifetime.total_seconds()),
        )

    async def GetHealth(self, request: gateway_pb2.GetHealthRequest, context: Context) -> gateway_pb2.Health:
        return await self._parts.health.report()

    async def GetPublicKeys(
        self, request: gateway_pb2.GetPublicKeysRequest, context: Context
    ) -> gateway_pb2.PublicKeys:
        return gateway_pb2.PublicKeys(
            keys=[gateway_pb2.PublicKey(**key) for key in await self._parts.tokens.public_keys()]
        )

    async def ListModels(
        self, request: gateway_pb2.ListModelsRequest, context: Context
    ) -> gateway_pb2.ListModelsResponse:
        page = await self._parts.models.page(request.page_size, request.page_token)
        return gateway_pb2.ListModelsResponse(models=page.models, next_page_token=page.next_page_token)

    async def GetModel(self, request: gateway_pb2.GetModelRequest, context: Context) -> model_pb2.Model:
        return await self._parts.models.get(request.model_uuid)

    async def DeleteModel(self, request: gateway_pb2.DeleteModelRequest, context: Context) -> model_pb2.Model:
        return await self._parts.models.delete(request.model_uuid)

    async def Serve(self, request: gateway_pb2.ServeRequest, context: Context) -> server_pb2.Server:
        who = caller()
        return await self._parts.servers.serve(request, who.subject, who.uid)

    async def ListServers(
        self, request: gateway_pb2.ListServersRequest, context: Context
    ) -> gateway_pb2.ListServersResponse:
        page = await self._parts.servers.page(request.page_size, request.page_token)
        return gateway_pb2.ListServersResponse(servers=page.servers, next_page_token=page.next_page_token)

    async def GetServer(self, request: gateway_pb2.GetServerRequest, context: Context) -> server_pb2.Server:
        return await self._parts.servers.get(request.server_uuid)

    async def UpdateServer(self, request: gateway_pb2.UpdateServerRequest, context: Context) -> server_pb2.Server:
        return await self._parts.servers.update(
            request.server_uuid, request.changes, wanted_etag(request.etag, context)
        )

    async def ScaleServer(self, request: gateway_pb2.ScaleServerRequest, context: Context) -> server_pb2.Server:
        return await self._parts.servers.scale(
            request.server_uuid, request.replicas, wanted_etag(request.etag, context)
        )

    async def SleepServer(self, request: gateway_pb2.SleepServerRequest, context: Context) -> server_pb2.Server:
        return await self._parts.servers.sleep(request.server_uuid)

    async def WakeServer(self, request: gateway_pb2.WakeServerRequest, context: Context) -> server_pb2.Server:
        return await self._parts.servers.wake(request.server_uuid)

    async def Stop(self, request: gateway_pb2.StopRequest, context: Context) -> server_pb2.Server:
        return await self._parts.servers.stop(request.server_uuid, wanted_etag(request.etag, context))

    async def ReadServerLog(
        self, request: gateway_pb2.ReadServerLogRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.ReadServerLogResponse]:
        log = self._parts.servers.log(request.server_uuid, request.replica, request.tail_lines, request.follow)
        async with aclosing(log) as parts:
            async for part in parts:
                yield gateway_pb2.ReadServerLogResponse(lines=part.lines, time=part.time)

    def Watch(self, request: gateway_pb2.WatchRequest, context: Context) -> AsyncIterator[gateway_pb2.WatchResponse]:
        selector = Selector(frozenset(request.kinds), frozenset(request.server_uuids), frozenset(request.model_uuids))
        who = caller()
        return self._parts.watches.watch(who.subject, selector, request.resume_token, who.uid)

    async def CreateUser(self, request: gateway_pb2.CreateUserRequest, context: Context) -> gateway_pb2.User:
        await self._parts.siblings.know_contract(request.contract_id)
        role = request.role or gateway_pb2.ROLE_USER
        return encoded(await self._parts.users.create(request.username, request.password, role, request.contract_id))

    async def ListUsers(self, request: gateway_pb2.ListUsersRequest, context: Context) -> gateway_pb2.ListUsersResponse:
        users, token = await self._parts.users.page(self._parts.pages.asked(request))
        return gateway_pb2.ListUsersResponse(users=map(encoded, users), next_page_token=token)

    async def GetUser(self, request: gateway_pb2.GetUserRequest, context: Context) -> gateway_pb2.User:
        return encoded(await self._parts.users.get(request.username))

    async def UpdateUser(self, request: gateway_pb2.UpdateUserRequest, context: Context) -> gateway_pb2.User:
        change = Change(
            password=request.password if request.HasField("password") else None,
            role=request.role if request.HasField("role") else None,
            contract_id=request.contract_id if request.HasField("contract_id") else None,
            disabled=request.disabled if request.HasField("disabled") else None,
        )
        identity = caller()
        authenticated = None
        if not identity.is_admin:
            if identity.subject != request.username or change.rights:
                raise MeshError(
                    Reason.ERROR_REASON_SCOPE_MISSING,
                    "users change their own password only; everything else takes an administrator",
                    {"scope": "admin"},
                )
            authenticated = await self._parts.users.authenticate(
                request.username, request.old_password, client_address(context)
            )
        await self._parts.siblings.know_contract(change.contract_id or "")
        return encoded(await self._parts.users.change(request.username, change, authenticated))

    async def DeleteUser(self, request: gateway_pb2.DeleteUserRequest, context: Context) -> gateway_pb2.User:
        return encoded(await self._parts.users.delete(request.username))

    async def _grant(self, user: User) -> Grant:
        request = admission_pb2.GrantRequest(role=as_role(user.role), contract_id=user.contract_id)
        with asking("contract"):
            granted = await self._parts.siblings.admission.Grant(request, **call_options(GRANT_DEADLINE))
        return Grant(tuple(granted.scopes), granted.contract_id)


class SigningKeyServicer(gateway_pb2_grpc.SigningKeyServiceServicer):
    """llamesh.v1.SigningKeyService; see its contract."""

    def __init__(self, tokens: Tokens, users: Users) -> None:
        self._tokens = tokens
        self._users = users

    async def ListSigningKeys(
        self, request: gateway_pb2.ListSigningKeysRequest, context: Context
    ) -> gateway_pb2.ListSigningKeysResponse:
        keys = await self._tokens.key_set()
        return gateway_pb2.ListSigningKeysResponse(jwks_json=keys.jwks_json, version=keys.version)

    async def SignToken(self, request: gateway_pb2.SignTokenRequest, context: Context) -> gateway_pb2.SignTokenResponse:
        # The token that asks may be older than what its user may do now: no key comes of it that would outlast it.
        lifetime = timedelta(seconds=request.lifetime_seconds)
        user = await self._users.hold(request.subject, request.uid, lifetime)
        role = as_role(user.role)
        for scope in request.scopes:
            if not role_grants(role, scope):
                raise _not_granted(user, scope, f"the scope {scope!r}")
        if request.contract_id != user.contract_id and not role_grants(role, ADMIN):
            raise _not_granted(user, ADMIN, "keys that carry another contract than their own")
        grant = Grant(tuple(request.scopes), request.contract_id)
        token = await self._tokens.issue(user, request.token_id, grant, lifetime)
        return gateway_pb2.SignTokenResponse(token=token)


class StandingServicer(gateway_pb2_grpc.StandingServiceServicer):
    """llamesh.v1.StandingService; see its contract."""

    def __init__(self, standings: Standings) -> None:
        self._standings = standings

    def WatchStandings(
        self, request: gateway_pb2.WatchStandingsRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.WatchStandingsResponse]:
        return self._standings.watch()

    async def CountContractUsers(
        self, request: gateway_pb2.CountContractUsersRequest, context: Context
    ) -> gateway_pb2.CountContractUsersResponse:
        return gateway_pb2.CountContractUsersResponse(users=await self._standings.users_of(request.contract_id))


def _not_granted(user: User, scope: str, what: str) -> MeshError:
    return MeshError(Reason.ERROR_REASON_SCOPE_MISSING, f"{user.username} may not have {what} now", {"scope": scope})


def client_address(context: Context) -> str:
    """The address that a call comes from; empty if it did not come through Envoy."""
    return str(dict(context.invocation_metadata() or ()).get(ADDRESS_HEADER, ""))


def encoded(user: User) -> gateway_pb2.User:
    """A user as the contract has it."""
    result = gateway_pb2.User(
        username=user.username, role=as_role(user.role), contract_id=user.contract_id, disabled=user.disabled
    )
    result.create_time.FromDatetime(user.create_time)
    result.update_time.FromDatetime(user.update_time)
    return result


def as_role(number: int) -> gateway_pb2.Role.ValueType:
    """The role that a number stands for in the database."""
    return gateway_pb2.Role.Value(gateway_pb2.Role.Name(gateway_pb2.Role.ValueType(number)))


def role_claim(number: int) -> str:
    """A role as tokens carry it: "admin", "user" or "inference"."""
    return gateway_pb2.Role.Name(as_role(number)).removeprefix("ROLE_").lower()
