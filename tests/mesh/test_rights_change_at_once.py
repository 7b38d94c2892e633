"""Changes of rights count at once for tokens, keys and streams that exist."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest

from llamesh.v1 import contract_pb2, download_pb2, gateway_pb2, gateway_pb2_grpc, options_pb2  # noqa: F401 - known to the pool by that
from tests.mesh.conftest import Served
from tests.mesh.people import People, bearer, grpc_reason, infer, lag
from tests.mesh.running import AT_ONCE, RunningMesh

CHANGES = 5
"""A busy machine may delay one change, but not each of five. What came by a heartbeat or by a poll would delay each."""


def fastest_is_within_a_second(lags: list[tuple[float, ...]]) -> None:
    """Check the lags of several rounds of the same changes: each change counted within a second in one of them."""
    assert max(min(each) for each in zip(*lags, strict=True)) < 1, lags


@pytest.fixture(scope="module")
def people(mesh: RunningMesh) -> Iterator[People]:
    made = People(mesh)
    yield made
    made.close()


@pytest.fixture(scope="module")
def gateway(mesh: RunningMesh) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(mesh.url("gateway", "").removeprefix("http://")) as channel:
        yield channel


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

    def everywhere(disabled: bool) -> float:
        """Seconds until a change counts everywhere."""
        people.change("m-timed", disabled=disabled)
        return lag(lambda: statuses() == {401 if disabled else 200})

    assert statuses() == {200}
    fastest_is_within_a_second([(everywhere(True), everywhere(False)) for _ in range(CHANGES)])


def test_a_stream_that_is_open_ends_with_the_rights_of_its_reader(people: People, gateway: grpc.Channel) -> None:
    mesh = people.mesh
    token = people.user("m-watching")
    with mesh.http.stream("GET", mesh.url("gateway", "/watch"), headers=bearer(token), timeout=60) as stream:
        lines = stream.iter_lines()
        assert "synced" in next(line for line in lines if '"synced"' in line)
        stub = gateway_pb2_grpc.GatewayServiceStub(gateway)
        watch = stub.Watch(gateway_pb2.WatchRequest(), metadata=tuple(bearer(token).items()), timeout=60)
        next(watch)
        people.change("m-watching", role="ROLE_INFERENCE")
        changed = time.monotonic()
        with pytest.raises(grpc.RpcError) as ended:
            list(watch)
        # REST has sent its status long before, and cannot say why it ends.
        list(lines)
    # Not by the next heartbeat (10 s).
    assert time.monotonic() - changed < AT_ONCE
    assert grpc_reason(ended.value) == "SCOPE_MISSING"
    assert "m-watching no longer has the scope" in ended.value.details()


def test_a_limit_on_requests_at_once_counts_for_keys_that_exist(people: People, served: Served) -> None:
    contract = people.contract()
    key = people.key(people.user("m-limited", contract=contract))["token"]

    def together() -> set[int]:
        with ThreadPoolExecutor(6) as pool:
            return set(pool.map(lambda _: infer(served, key, 200), range(6)))

    def limited(most: int) -> float:
        """Seconds until a limit counts; 0 is none."""
        body = {"max_concurrent_requests": most}
        assert people.mesh.call("PATCH", f"/contracts/{contract}", "contract", json=body).status_code == 200
        return lag(lambda: together() == ({200, 429} if most else {200}))

    assert together() == {200}
    fastest_is_within_a_second([(limited(1), limited(0)) for _ in range(CHANGES)])


def test_a_revoked_key_counts_no_more_within_a_second_at_any_port(people: People, served: Served) -> None:
    mesh = people.mesh
    token = people.user("m-revoking")
    paths = {"gateway": "/models", "contract": "/keys", "download": "/status/sentence", "inference": "/v1/models"}

    def revoked() -> tuple[float, ...]:
        """Seconds until a key that worked is refused, by port."""
        key = people.key(token, "manage", "infer:*")

        def status(port: str) -> int:
            answer = mesh.http.get(mesh.url(port, paths[port]), headers=bearer(key["token"]))
            assert answer.json(), answer
            return answer.status_code

        assert {status(port) for port in paths} == {200}
        with ThreadPoolExecutor(len(paths)) as pool:
            assert mesh.call("DELETE", f"/keys/{key['key']['key_id']}", "contract").status_code == 200
            return tuple(pool.map(lambda port: lag(lambda: status(port) == 401), paths))

    fastest_is_within_a_second([revoked() for _ in range(CHANGES)])


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
