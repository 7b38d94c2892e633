"""The gateway with the real contract and download services: what they decide arrives as they said it."""

from __future__ import annotations

import asyncio
import json

import grpc
import jwt
import pytest

from llamesh.v1 import contract_pb2, contract_pb2_grpc, gateway_pb2, gateway_pb2_grpc
from services.contract.service import run as contract_service
from services.download.service import run as download_service
from services.gateway.service import run as gateway_service
from tests.conftest import SECRET
from tests.contract.gateway.conftest import Mesh
from tests.contract.gateway.fakes import FakeController
from tests.contract.rich_status import refused


@pytest.fixture
async def real_mesh(settings, start_main, start_member, connect) -> Mesh:
    controller = FakeController()
    await start_member(settings, "controller", controller.register)
    await start_main(settings, "download", download_service)
    await start_main(settings, "contract", contract_service)
    await start_main(settings, "gateway", gateway_service)
    channel = connect(settings, "gateway")
    return Mesh(
        settings,
        gateway_pb2_grpc.GatewayServiceStub(channel),
        gateway_pb2_grpc.SigningKeyServiceStub(channel),
        contract=contract_pb2_grpc.ContractServiceStub(connect(settings, "contract")),
        download=None,
        controller=controller,
    )


async def login(mesh: Mesh, username: str, password: str) -> tuple[dict, list[tuple[str, str]]]:
    """Claims of the token, and the metadata that Envoy would make of it."""
    request = gateway_pb2.CreateTokenRequest(username=username, password=password)
    # Other members have tried the socket of this process before it existed.
    answer = await mesh.gateway.CreateToken(request, wait_for_ready=True)
    claims = jwt.decode(answer.access_token, SECRET, ["HS256"], audience="llamesh")
    return claims, [("x-llamesh-claims", answer.access_token.split(".")[1])]


async def test_tokens_carry_the_scopes_that_the_contract_service_grants(real_mesh) -> None:
    claims, root = await login(real_mesh, "admin", "admin")
    assert set(claims["scopes"]) == {"admin", "manage", "metrics", "infer:*"}
    limits = contract_pb2.CreateContractRequest(display_name="two at once", max_concurrent_requests=2)
    contract = await real_mesh.contract.CreateContract(limits, metadata=root)
    granted = {}
    for username, role in (("ada", gateway_pb2.ROLE_USER), ("eve", gateway_pb2.ROLE_INFERENCE)):
        request = gateway_pb2.CreateUserRequest(
            username=username, password="correct horse", role=role, contract_id=contract.contract_id
        )
        await real_mesh.gateway.CreateUser(request, metadata=root)
        claims, _ = await login(real_mesh, username, "correct horse")
        assert claims["contract"] == contract.contract_id
        granted[username] = set(claims["scopes"])
    assert granted == {"ada": {"manage", "infer:*"}, "eve": {"infer:*"}}


async def test_refusals_of_the_real_services_arrive(real_mesh) -> None:
    _, root = await login(real_mesh, "admin", "admin")
    assert not (await real_mesh.gateway.ListModels(gateway_pb2.ListModelsRequest(), metadata=root)).models
    for more, reason in (
        ({}, "MODEL_NOT_FOUND"),
        ({"runtime_params": "--api-key-file /etc/passwd"}, "PARAMETER_UNKNOWN"),
        ({"runtime_params": "--ctx-size 2K"}, "PARAMETER_INVALID"),
    ):
        with refused(reason):
            await real_mesh.gateway.Serve(gateway_pb2.ServeRequest(model_uuid="m1", **more), metadata=root)
    with refused("CONTRACT_NOT_FOUND"):
        request = gateway_pb2.CreateUserRequest(username="bob", password="correct horse", contract_id="ctr_none")
        await real_mesh.gateway.CreateUser(request, metadata=root)
    assert real_mesh.controller.declared == []


async def test_a_key_is_signed_by_the_gateway(real_mesh) -> None:
    _, root = await login(real_mesh, "admin", "admin")
    request = contract_pb2.CreateKeyRequest(display_name="ci", scopes=["infer:m"])
    made = await real_mesh.contract.CreateKey(request, metadata=root)
    keys = await real_mesh.keys.ListSigningKeys(gateway_pb2.ListSigningKeysRequest())
    (key,) = jwt.PyJWKSet.from_dict(json.loads(keys.jwks_json)).keys
    claims = jwt.decode(made.token, key, ["HS256"], audience="llamesh", issuer="llamesh")
    assert (claims["sub"], claims["jti"], claims["scopes"]) == ("admin", made.key.key_id, ["infer:m"])


async def test_a_contract_is_never_removed_while_a_user_gets_it(real_mesh) -> None:
    """Real services: of a change and a removal that meet, one is refused."""
    _, root = await login(real_mesh, "admin", "admin")
    create = gateway_pb2.CreateUserRequest(username="eve", password="correct horse")
    await real_mesh.gateway.CreateUser(create, metadata=root)
    outcomes: set[tuple[bool, bool]] = set()
    for turn in range(24):
        limits = contract_pb2.CreateContractRequest(display_name="for a moment")
        made = await real_mesh.contract.CreateContract(limits, metadata=root)
        give = gateway_pb2.UpdateUserRequest(username="eve", contract_id=made.contract_id)
        remove = contract_pb2.DeleteContractRequest(contract_id=made.contract_id)

        async def later(seconds: float, call, request) -> bool:
            await asyncio.sleep(seconds)
            try:
                await call(request, metadata=root)
            except grpc.aio.AioRpcError:
                return False
            return True

        lead = (turn % 12 - 6) / 1000
        given, removed = await asyncio.gather(
            later(max(lead, 0), real_mesh.gateway.UpdateUser, give),
            later(max(-lead, 0), real_mesh.contract.DeleteContract, remove),
        )
        outcomes.add((given, removed))
        eve = await real_mesh.gateway.GetUser(gateway_pb2.GetUserRequest(username="eve"), metadata=root)
        assert (eve.contract_id == made.contract_id) == given
    assert (True, True) not in outcomes
    assert (True, False) in outcomes or (False, True) in outcomes
