"""Every public call, over REST and gRPC, by every kind of caller in every state: what the contract demands against what holds now.

The calls come from the descriptor that Envoy transcodes with, so a new call is in here by itself. Requests are empty or name what is not
there: who may call is decided first, and nothing is changed by those who may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pool, message_factory

from controller.xds.public_api import Binding, Method, PublicApi
from llamesh.v1 import contract_pb2, download_pb2, gateway_pb2, gateway_pb2_grpc, options_pb2  # noqa: F401 - known to the pool by that
from tests.mesh.conftest import MODEL, Served
from tests.mesh.people import People, bearer, grpc_reason, infer
from tests.mesh.running import AT_ONCE, ROOT, RunningMesh, until

PORTS = {
    "llamesh.v1.GatewayService": "gateway",
    "llamesh.v1.ContractService": "contract",
    "llamesh.v1.DownloadService": "download",
}

METHODS = PublicApi(Path(ROOT, "envoy", "llamesh.binpb"), PORTS).methods

CALLS: list[tuple[Method, Binding | None]] = [
    (method, way) for method in METHODS for way in (None, *method.bindings) if not method.internal
]
"""Each call and the way to it: None is gRPC."""

BODIES = {"UpdateUser": {"password": "short"}}
"""What is not right where an empty body would be."""

SERVED, UNAUTHENTICATED, SCOPE_MISSING = "served", "unauthenticated", "scope missing"

MAY_INFER, MAY_MANAGE, MAY_ADMINISTER = {"infer"}, {"infer", "manage"}, {"infer", "manage", "admin"}


@dataclass
class Maker:
    """A caller: its token, and what it may do now. None: it counts as nobody."""

    token: str
    may: set[str] | None


@pytest.fixture(scope="module")
def people(mesh: RunningMesh) -> Iterator[People]:
    made = People(mesh)
    yield made
    made.close()


@pytest.fixture(scope="module")
def makers(people: People, served: Served) -> dict[str, Maker]:
    """Every kind of caller, each in its state."""
    made = {"nobody": Maker("", None)}
    made["inference user"] = Maker(people.user("m-inference", "ROLE_INFERENCE"), MAY_INFER)
    user = people.user("m-user")
    made["user"] = Maker(user, MAY_MANAGE)
    made["administrator"] = Maker(people.user("m-admin", "ROLE_ADMIN"), MAY_ADMINISTER)
    made["key for inference"] = Maker(people.key(user)["token"], MAY_INFER)
    made["key that manages"] = Maker(people.key(user, "manage", "infer:*")["token"], MAY_MANAGE)

    admin = people.user("m-demoted", "ROLE_ADMIN")
    made["administrator made user"] = Maker(admin, MAY_MANAGE)
    made["key of an administrator made user"] = Maker(people.key(admin, "manage", "infer:*")["token"], MAY_MANAGE)
    people.change("m-demoted", role="ROLE_USER")
    other = people.user("m-narrowed")
    made["user made inference user"] = Maker(other, MAY_INFER)
    made["key of a user made inference user"] = Maker(people.key(other, "manage", "infer:*")["token"], MAY_INFER)
    people.change("m-narrowed", role="ROLE_INFERENCE")
    promoted = people.user("m-promoted", "ROLE_INFERENCE")
    made["inference user made user, with the old token"] = Maker(promoted, MAY_INFER)
    people.change("m-promoted", role="ROLE_USER")

    disabled = people.user("m-disabled", "ROLE_ADMIN")
    made["disabled"] = Maker(disabled, None)
    made["key of a disabled user"] = Maker(people.key(disabled, "manage", "infer:*")["token"], None)
    people.change("m-disabled", disabled=True)
    enabled = people.user("m-enabled")
    made["disabled and enabled again"] = Maker(enabled, MAY_MANAGE)
    people.change("m-enabled", disabled=True)
    people.change("m-enabled", disabled=False)
    deleted = people.user("m-deleted", "ROLE_ADMIN")
    made["deleted"] = Maker(deleted, None)
    made["key of a deleted user"] = Maker(people.key(deleted, "manage", "infer:*")["token"], None)
    people.remove("m-deleted")
    before = people.user("m-again")
    made["an earlier user of the same name"] = Maker(before, None)
    made["key of an earlier user of the same name"] = Maker(people.key(before, "manage", "infer:*")["token"], None)
    people.remove("m-again")
    made["a later user of the same name"] = Maker(people.user("m-again"), MAY_MANAGE)

    revoked = people.key(user, "manage", "infer:*")
    made["revoked key"] = Maker(revoked["token"], None)
    path = f"/keys/{revoked['key']['key_id']}"
    assert people.mesh.http.delete(people.mesh.url("contract", path), headers=bearer(user)).status_code == 200

    contract = people.contract()
    bound = people.user("m-bound", contract=contract)
    made["user whose contract was limited later"] = Maker(bound, {"manage"})
    made["key whose contract was limited later"] = Maker(people.key(bound, "manage", "infer:*")["token"], {"manage"})
    chief = people.user("m-chief", "ROLE_ADMIN", contract)
    made["administrator whose contract was limited later"] = Maker(chief, {"manage", "admin"})
    limit = people.mesh.call("PATCH", f"/contracts/{contract}", "contract", json={"models": ["another"]})
    assert limit.status_code == 200
    moved = people.user("m-moved")
    made["user who was given a limited contract"] = Maker(moved, {"manage"})
    made["key of a user who was given a limited contract"] = Maker(people.key(moved)["token"], set())
    people.change("m-moved", contract_id=contract)

    # The last change must have arrived at each service, so that all have.
    mesh = people.mesh
    until(lambda: infer(served, made["key of a user who was given a limited contract"].token) == 403, AT_ONCE)
    for port, path in {"gateway": "/models", "contract": "/keys", "download": "/status/sentence"}.items():
        for kind in ("an earlier user of the same name", "revoked key"):
            headers = bearer(made[kind].token)
            until(lambda: mesh.http.get(mesh.url(port, path), headers=headers).status_code == 401, AT_ONCE, kind)  # noqa: B023
    return made


KINDS = (
    *("nobody", "inference user", "user", "administrator", "key for inference", "key that manages"),
    *("administrator made user", "key of an administrator made user", "user made inference user"),
    *("key of a user made inference user", "inference user made user, with the old token"),
    *("disabled", "key of a disabled user", "disabled and enabled again", "deleted", "key of a deleted user"),
    *("an earlier user of the same name", "key of an earlier user of the same name", "a later user of the same name"),
    *("revoked key", "user whose contract was limited later", "key whose contract was limited later"),
    *("administrator whose contract was limited later", "user who was given a limited contract"),
    "key of a user who was given a limited contract",
)


def test_every_kind_of_caller_is_asked(makers: dict[str, Maker]) -> None:
    assert tuple(makers) == KINDS
    assert len(METHODS) > 35


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_is_open_exactly_to_the_roles_of_its_contract(
    mesh: RunningMesh, channels: dict[str, grpc.Channel], makers: dict[str, Maker], kind: str
) -> None:
    maker = makers[kind]
    wrong = []
    for method, binding in CALLS:
        found = rest(mesh, method, binding, maker) if binding else over_grpc(channels[method.service], method, maker)
        if found != expected(method, maker):
            wrong.append((method.path, binding and f"{binding.verb} {binding.path}", found, expected(method, maker)))
    assert not wrong


@pytest.mark.parametrize("kind", KINDS)
def test_inference_is_open_to_whoever_may_infer_now(served: Served, makers: dict[str, Maker], kind: str) -> None:
    maker = makers[kind]
    if not maker.token:
        return  # this mesh serves anonymous callers
    assert infer(served, maker.token) == (401 if maker.may is None else 200 if "infer" in maker.may else 403)
    models = served.mesh.http.get(served.mesh.url("inference", "/v1/models"), headers=bearer(maker.token))
    assert models.status_code == (401 if maker.may is None else 200)
    if maker.may is not None:
        assert (MODEL in [each["id"] for each in models.json()["data"]]) == ("infer" in maker.may)


@pytest.fixture(scope="module")
def channels(mesh: RunningMesh) -> Iterator[dict[str, grpc.Channel]]:
    opened = {
        service: grpc.insecure_channel(mesh.url(port, "").removeprefix("http://")) for service, port in PORTS.items()
    }
    yield opened
    for channel in opened.values():
        channel.close()


def expected(method: Method, maker: Maker) -> str:
    access = _options(method).Extensions[options_pb2.access]
    if access.anonymous:
        return SERVED
    if maker.may is None:
        return UNAUTHENTICATED
    if access.scope and access.scope not in maker.may and "admin" not in maker.may:
        return SCOPE_MISSING
    return SERVED


def _options(method: Method) -> Any:
    return _descriptor(method).GetOptions()


def _descriptor(method: Method) -> Any:
    return descriptor_pool.Default().FindMethodByName(method.path.strip("/").replace("/", "."))


def rest(mesh: RunningMesh, method: Method, binding: Binding, maker: Maker) -> str:
    path = re.sub(r"\{[^}]*\}", "no-such", binding.path)
    body = {"json": BODIES.get(method.name, {})} if binding.body else {}
    url = mesh.url(PORTS[method.service], path)
    # A stream is left as soon as it has begun.
    with mesh.http.stream(binding.verb, url, headers=bearer(maker.token), **body) as answer:
        if answer.status_code == 401:
            return UNAUTHENTICATED
        if answer.status_code == 403 and _reason(answer) == "SCOPE_MISSING":
            return SCOPE_MISSING
        assert answer.status_code < 500, answer.read()
        return SERVED


def _reason(answer: httpx.Response) -> str:
    answer.read()
    return next((detail["reason"] for detail in answer.json()["details"] if "reason" in detail), "")


FAILED = {
    grpc.StatusCode[name] for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "UNIMPLEMENTED")
}
"""What no caller may be answered, whatever its rights."""


def over_grpc(channel: grpc.Channel, method: Method, maker: Maker) -> str:
    descriptor = _descriptor(method)
    answer_class = message_factory.GetMessageClass(descriptor.output_type)
    metadata = tuple(bearer(maker.token).items())
    make = channel.unary_stream if descriptor.server_streaming else channel.unary_unary
    call = make(method.path, response_deserializer=answer_class.FromString)
    try:
        answer = call(b"", metadata=metadata, timeout=60)
        if descriptor.server_streaming:
            next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return UNAUTHENTICATED
        if error.code() is grpc.StatusCode.PERMISSION_DENIED and grpc_reason(error) == "SCOPE_MISSING":
            return SCOPE_MISSING
        if error.code() in FAILED:
            raise
    return SERVED
