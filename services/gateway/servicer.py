"""The gateway's gRPC handlers. Each decodes a request, calls the module that decides, and encodes the answer."""

# ruff: noqa: D102, N802 - the contract names and documents the methods
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta

from google.api import httpbody_pb2

from llamesh.kit.calls import Context
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.exposition import CONTENT_TYPE
from llamesh.kit.identity import caller
from llamesh.names import CLIENT_ADDRESS_HEADER
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc, model_pb2, server_pb2
from services.gateway.authentication import Authenticator
from services.gateway.health import HealthReporter
from services.gateway.issuer import Grant, Issuer
from services.gateway.mesh_metrics import MeshMetrics
from services.gateway.models import Models
from services.gateway.preconditions import wanted_etag
from services.gateway.roles import as_role
from services.gateway.servers import Servers
from services.gateway.standings import Standings
from services.gateway.tables import User
from services.gateway.users import UserChange, Users
from services.gateway.watch import Selector, Watches


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """llamesh.v1.GatewayService; see its contract for every call."""

    def __init__(
        self,
        authenticator: Authenticator,
        issuer: Issuer,
        users: Users,
        models: Models,
        servers: Servers,
        watches: Watches,
        health: HealthReporter,
        metrics: MeshMetrics,
    ) -> None:
        self._authenticator = authenticator
        self._issuer = issuer
        self._users = users
        self._models = models
        self._servers = servers
        self._watches = watches
        self._health = health
        self._metrics = metrics

    async def CreateToken(
        self, request: gateway_pb2.CreateTokenRequest, context: Context
    ) -> gateway_pb2.CreateTokenResponse:
        user = await self._authenticator.authenticate(request.username, request.password, client_address(context))
        login = await self._issuer.login(user)
        return gateway_pb2.CreateTokenResponse(
            access_token=login.access_token,
            token_type="bearer",  # noqa: S106 - OAuth's word, no secret
            expires_in=int(login.lifetime.total_seconds()),
        )

    async def GetHealth(self, request: gateway_pb2.GetHealthRequest, context: Context) -> gateway_pb2.Health:
        return await self._health.report()

    async def GetMetrics(self, request: gateway_pb2.GetMetricsRequest, context: Context) -> httpbody_pb2.HttpBody:
        return httpbody_pb2.HttpBody(content_type=CONTENT_TYPE, data=await self._metrics.collect())

    async def GetPublicKeys(
        self, request: gateway_pb2.GetPublicKeysRequest, context: Context
    ) -> gateway_pb2.PublicKeys:
        return gateway_pb2.PublicKeys(keys=[gateway_pb2.PublicKey(**key) for key in await self._issuer.public_keys()])

    async def ListModels(
        self, request: gateway_pb2.ListModelsRequest, context: Context
    ) -> gateway_pb2.ListModelsResponse:
        page = await self._models.page(request)
        return gateway_pb2.ListModelsResponse(models=page.models, next_page_token=page.next_page_token)

    async def GetModel(self, request: gateway_pb2.GetModelRequest, context: Context) -> model_pb2.Model:
        return await self._models.get(request.model_uuid)

    async def ChangeModelAliases(
        self, request: gateway_pb2.ChangeModelAliasesRequest, context: Context
    ) -> model_pb2.Model:
        return await self._models.change_aliases(request)

    async def DeleteModel(self, request: gateway_pb2.DeleteModelRequest, context: Context) -> model_pb2.Model:
        return await self._models.delete(request.model_uuid)

    async def Serve(self, request: gateway_pb2.ServeRequest, context: Context) -> server_pb2.Server:
        who = caller()
        return await self._servers.serve(request, who.subject, who.uid)

    async def ListServers(
        self, request: gateway_pb2.ListServersRequest, context: Context
    ) -> gateway_pb2.ListServersResponse:
        page = await self._servers.page(request.page_size, request.page_token)
        return gateway_pb2.ListServersResponse(servers=page.servers, next_page_token=page.next_page_token)

    async def GetServer(self, request: gateway_pb2.GetServerRequest, context: Context) -> server_pb2.Server:
        return await self._servers.get(request.server_uuid)

    async def UpdateServer(self, request: gateway_pb2.UpdateServerRequest, context: Context) -> server_pb2.Server:
        return await self._servers.update(request.server_uuid, request.changes, wanted_etag(request.etag, context))

    async def ScaleServer(self, request: gateway_pb2.ScaleServerRequest, context: Context) -> server_pb2.Server:
        return await self._servers.scale(request.server_uuid, request.replicas, wanted_etag(request.etag, context))

    async def SleepServer(self, request: gateway_pb2.SleepServerRequest, context: Context) -> server_pb2.Server:
        return await self._servers.sleep(request.server_uuid)

    async def WakeServer(self, request: gateway_pb2.WakeServerRequest, context: Context) -> server_pb2.Server:
        return await self._servers.wake(request.server_uuid)

    async def Stop(self, request: gateway_pb2.StopRequest, context: Context) -> server_pb2.Server:
        return await self._servers.stop(request.server_uuid, wanted_etag(request.etag, context))

    async def ReadServerLog(
        self, request: gateway_pb2.ReadServerLogRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.ReadServerLogResponse]:
        log = self._servers.log(request.server_uuid, request.replica, request.tail_lines, request.follow)
        async with aclosing(log) as parts:
            async for part in parts:
                yield gateway_pb2.ReadServerLogResponse(lines=part.lines, time=part.time)

    def Watch(self, request: gateway_pb2.WatchRequest, context: Context) -> AsyncIterator[gateway_pb2.WatchResponse]:
        selector = Selector(frozenset(request.kinds), frozenset(request.server_uuids), frozenset(request.model_uuids))
        who = caller()
        return self._watches.watch(who.subject, selector, request.resume_token, who.uid)

    async def CreateUser(self, request: gateway_pb2.CreateUserRequest, context: Context) -> gateway_pb2.User:
        role = request.role or gateway_pb2.ROLE_USER
        return encoded(await self._users.create(request.username, request.password, role, request.contract_id))

    async def ListUsers(self, request: gateway_pb2.ListUsersRequest, context: Context) -> gateway_pb2.ListUsersResponse:
        users, token = await self._users.page(request)
        return gateway_pb2.ListUsersResponse(users=map(encoded, users), next_page_token=token)

    async def GetUser(self, request: gateway_pb2.GetUserRequest, context: Context) -> gateway_pb2.User:
        return encoded(await self._users.get(request.username))

    async def UpdateUser(self, request: gateway_pb2.UpdateUserRequest, context: Context) -> gateway_pb2.User:
        change = UserChange(
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
            authenticated = await self._authenticator.authenticate(
                request.username, request.old_password, client_address(context)
            )
        return encoded(await self._users.change(request.username, change, authenticated))

    async def DeleteUser(self, request: gateway_pb2.DeleteUserRequest, context: Context) -> gateway_pb2.User:
        return encoded(await self._users.delete(request.username))


class SigningKeyServicer(gateway_pb2_grpc.SigningKeyServiceServicer):
    """llamesh.v1.SigningKeyService; see its contract."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    async def ListSigningKeys(
        self, request: gateway_pb2.ListSigningKeysRequest, context: Context
    ) -> gateway_pb2.ListSigningKeysResponse:
        keys = await self._issuer.key_set()
        return gateway_pb2.ListSigningKeysResponse(jwks_json=keys.jwks_json, version=keys.version)

    async def SignToken(self, request: gateway_pb2.SignTokenRequest, context: Context) -> gateway_pb2.SignTokenResponse:
        grant = Grant(tuple(request.scopes), request.contract_id)
        lifetime = timedelta(seconds=request.lifetime_seconds)
        token = await self._issuer.issue(request.subject, request.uid, request.token_id, grant, lifetime)
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


def client_address(context: Context) -> str:
    """Return the IP address of the client; empty if the call did not come through Envoy."""
    return str(dict(context.invocation_metadata() or ()).get(CLIENT_ADDRESS_HEADER, ""))


def encoded(user: User) -> gateway_pb2.User:
    """Encode a user for the contract."""
    result = gateway_pb2.User(
        username=user.username, role=as_role(user.role), contract_id=user.contract_id, disabled=user.disabled
    )
    result.create_time.FromDatetime(user.create_time)
    result.update_time.FromDatetime(user.update_time)
    return result
