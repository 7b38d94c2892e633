"""Every public call, over REST and gRPC, by every kind of caller in every state: what the contract demands against what holds now.

The calls come from the descriptor that Envoy transcodes with, so a new call is in here by itself. Requests are empty or name what is not
there: who may call is decided first, and nothing is changed by those who may.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2

from controller.xds.public_api import Binding, Method, PublicApi
from llamesh.v1 import contract_pb2, download_pb2, gateway_pb2, gateway_pb2_grpc, options_pb2  # noqa: F401 - known to the pool by that
from tests.mesh.conftest import MODEL, Served
from tests.mesh.running import ROOT, RunningMesh, until

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
PASSWORD = "correct horse"
BODIES = {"UpdateUser": {"password": "short"}}
"""What is not right where an empty body would be."""

SERVED, UNAUTHENTICATED, SCOPE_MISSING = "served", "unauthenticated", "scope missing"
MAY_INFER, MAY_MANAGE, MAY_ADMINISTER = {"infer"}, {"infer", "manage"}, {"infer", "manage", "admin"}


@dataclass
class Maker:
    """A caller: its token, and what it may do now. None: it counts as nobody."""

    token: str
    may: set[str] | None


class People:
    """Makes users, tokens and keys, and changes them, as an administrator does."""

    def __init__(self, mesh: RunningMesh) -> None:
        self.mesh = mesh
        self.contracts: list[str] = []
        self._names: list[str] = []

    def user(self, name: str, role: str = "ROLE_USER", contract: str = "") -> str:
        """A new user's token."""
        body = {"username": name, "password": PASSWORD, "role": role, "contract_id": contract}
        assert self.mesh.call("POST", "/users", json=body).status_code == 200
        self._names.append(name)
        return self.token(name)

    def token(self, name: str) -> str:
        answer = self.mesh.http.post(
            self.mesh.url("gateway", "/auth/token"), json={"username": name, "password": PASSWORD}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def key(self, token: str, *scopes: str) -> dict[str, Any]:
        """A key made with a token: `{"key": ..., "token": ...}`."""
        body = {"display_name": "test", "scopes": scopes, "expire_days": 3650}
        answer = self.mesh.http.post(self.mesh.url("contract", "/keys"), json=body, headers=bearer(token))
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def contract(self, **limits: Any) -> str:
        answer = self.mesh.call("POST", "/contracts", "contract", json={"display_name": "test", **limits})
        self.contracts.append(answer.json()["contract_id"])
        return self.contracts[-1]

    def change(self, name: str, **changed: Any) -> None:
        assert self.mesh.call("PATCH", f"/users/{name}", json=changed).status_code == 200

    def remove(self, name: str) -> None:
        assert self.mesh.call("DELETE", f"/users/{name}").status_code == 200
        self._names.remove(name)

    def close(self) -> None:
        """Leave nothing behind."""
        for name in list(self._names):
            self.remove(name)
        for contract_id in self.contracts:
            answer = self.mesh.call("DELETE", f"/contracts/{contract_id}", "contract")
            assert answer.status_code == 200, answer.text


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


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

    # The last change must have arrived everywhere, so that all have.
    until(lambda: infer(served, made["key of a user who was given a limited contract"].token) == 403, 1)
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
def test_every_call_is_open_to_whom_its_contract_says(
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
        answer = call(b"", metadata=metadata, timeout=10)
        if descriptor.server_streaming:
            next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return UNAUTHENTICATED
        if error.code() is grpc.StatusCode.PERMISSION_DENIED and _grpc_reason(error) == "SCOPE_MISSING":
            return SCOPE_MISSING
        if error.code() in FAILED:
            raise
    return SERVED


def _grpc_reason(error: grpc.RpcError) -> str:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Unpack(info):
            return info.reason
    return ""


def infer(served: Served, token: str, tokens: int = 1) -> int:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": tokens}
    answer = served.mesh.http.post(
        served.mesh.url("inference", "/v1/chat/completions"), json=body, headers=bearer(token)
    )
    return answer.status_code


def test_a_change_counts_within_a_second_everywhere(people: People, served: Served) -> None:
    """Envoy, the gateway, the contract and the download service, one after the other, from the answer to the change on."""
    mesh = people.mesh
    token = people.user("m-timed")
    key = people.key(token, "manage", "infer:*")["token"]
    reads = {"gateway": "/models", "contract": "/keys", "download": "/status/sentence"}

    def statuses() -> set[int]:
        listed = {
            mesh.http.get(mesh.url(port, path), headers=bearer(each)).status_code
            for port, path in reads.items()
            for each in (token, key)
        }
        return listed | {infer(served, token), infer(served, key)}

    assert statuses() == {200}
    for change, wanted in (({"disabled": True}, 401), ({"disabled": False}, 200)):
        people.change("m-timed", **change)
        started = time.monotonic()
        while statuses() != {wanted}:
            assert time.monotonic() - started < 1, f"after a second {change} does not count everywhere: {statuses()}"


def test_a_stream_that_is_open_ends_with_the_rights_of_its_reader(
    people: People, channels: dict[str, grpc.Channel]
) -> None:
    mesh = people.mesh
    token = people.user("m-watching")
    with mesh.http.stream("GET", mesh.url("gateway", "/watch"), headers=bearer(token), timeout=30) as stream:
        lines = stream.iter_lines()
        assert "synced" in next(line for line in lines if '"synced"' in line)
        stub = gateway_pb2_grpc.GatewayServiceStub(channels["llamesh.v1.GatewayService"])
        watch = stub.Watch(gateway_pb2.WatchRequest(), metadata=tuple(bearer(token).items()), timeout=30)
        next(watch)
        people.change("m-watching", role="ROLE_INFERENCE")
        changed = time.monotonic()
        with pytest.raises(grpc.RpcError) as ended:
            list(watch)
        # REST has sent its status long before, and cannot say why it ends.
        list(lines)
    # Not by the next heartbeat (10 s).
    assert time.monotonic() - changed < 5
    assert _grpc_reason(ended.value) == "SCOPE_MISSING"
    assert "m-watching no longer has the scope" in ended.value.details()


def test_a_limit_on_requests_at_once_counts_for_keys_that_exist(people: People, served: Served) -> None:
    contract = people.contract()
    key = people.key(people.user("m-limited", contract=contract))["token"]

    def together() -> set[int]:
        with ThreadPoolExecutor(6) as pool:
            return set(pool.map(lambda _: infer(served, key, 200), range(6)))

    assert together() == {200}
    body = {"max_concurrent_requests": 1}
    assert people.mesh.call("PATCH", f"/contracts/{contract}", "contract", json=body).status_code == 200
    until(lambda: together() == {200, 429}, 1, "the limit to count")
    body = {"max_concurrent_requests": 0}
    assert people.mesh.call("PATCH", f"/contracts/{contract}", "contract", json=body).status_code == 200
    until(lambda: together() == {200}, 1, "the limit to be gone")


def test_a_demoted_user_makes_no_key_that_outlives_it(people: People) -> None:
    """The key of ten years that an old token was good for."""
    mesh = people.mesh
    token = people.user("m-greedy")
    people.change("m-greedy", role="ROLE_INFERENCE")
    body = {"display_name": "forever", "scopes": ["manage"], "expire_days": 3650}
    answer = mesh.http.post(mesh.url("contract", "/keys"), json=body, headers=bearer(token))
    assert answer.status_code == 403


def test_a_contract_is_not_removed_from_under_its_users(people: People) -> None:
    mesh = people.mesh
    contract = people.contract(models=["another"])
    token = people.user("m-holder", "ROLE_ADMIN", contract)
    key = people.key(token)["key"]["key_id"]

    def removal() -> httpx.Response:
        return mesh.call("DELETE", f"/contracts/{contract}", "contract")

    refused = removal()
    assert refused.status_code == 400
    (info,) = (detail for detail in refused.json()["details"] if "reason" in detail)
    assert (info["reason"], info["metadata"]["users"], info["metadata"]["keys"]) == ("CONTRACT_IN_USE", "1", "1")
    assert "PATCH /users/{username}" in refused.text
    people.change("m-holder", contract_id="")
    assert removal().status_code == 400
    assert mesh.call("DELETE", f"/keys/{key}", "contract").status_code == 200
    assert removal().status_code == 200
    people.contracts.remove(contract)
