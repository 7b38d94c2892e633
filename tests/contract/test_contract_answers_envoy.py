"""Envoy's own protocols at the contract service: admission with each request, and the ledger from its access log."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from llamesh import names
from llamesh.kit.envoy_api import message_class
from llamesh.v1 import contract_pb2
from tests.contract.contract_mesh import contract_mesh, failure  # noqa: F401 - a fixture
from tests.contract.patience import PATIENCE

CheckRequest = message_class("envoy.service.auth.v3.CheckRequest")
CheckResponse = message_class("envoy.service.auth.v3.CheckResponse")
LogMessage = message_class("envoy.service.accesslog.v3.StreamAccessLogsMessage")
LogResponse = message_class("envoy.service.accesslog.v3.StreamAccessLogsResponse")

NOON = 1795521600  # 2026-11-24T12:00:00Z
USAGE = {"prompt_tokens": 10, "completion_tokens": 5}


def fill(metadata, claims: dict[str, str | int], **namespaces: dict[str, object]) -> None:
    """Write dynamic metadata as Envoy's filters do."""
    payload = metadata.filter_metadata["envoy.filters.http.jwt_authn"].fields["claims"].struct_value
    for key, value in claims.items():
        if isinstance(value, str):
            payload.fields[key].string_value = value
        else:
            payload.fields[key].number_value = value
    for namespace, fields in namespaces.items():
        for key, value in fields.items():
            target = metadata.filter_metadata[namespace.replace("_", ".")].fields[key]
            if isinstance(value, str):
                target.string_value = value
            else:
                target.number_value = value


class Envoy:
    """A fake of Envoy: asks and reports as it does."""

    def __init__(self, channel) -> None:
        self._check = channel.unary_unary(
            "/envoy.service.auth.v3.Authorization/Check", CheckRequest.SerializeToString, CheckResponse.FromString
        )
        self._log = channel.stream_unary(
            "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
            LogMessage.SerializeToString,
            LogResponse.FromString,
        )
        self._ids = itertools.count()

    async def ask(self, request_id: str | None = None, path: str = "/v1/chat/completions", **claims: str | int):
        request = CheckRequest()
        http = request.attributes.request.http
        http.headers["x-request-id"] = request_id or f"r{next(self._ids)}"
        http.headers["x-llamesh-cluster"] = "m:smol"
        http.path = path
        key = {"jti": "key_1"} if claims else {}
        fill(request.attributes.metadata_context, key | claims, llamesh={"model": "smol"})
        return await self._check(request)

    def stream(self, name: str = names.ADMISSION_LOG):
        call = self._log()
        return Log(call, name)


class Log:
    """One access log stream."""

    def __init__(self, call, name: str) -> None:
        self.call = call
        self._name = name

    async def report(self, *entries) -> None:
        message = LogMessage()
        message.identifier.log_name = self._name
        message.http_logs.log_entry.extend(entries)
        await self.call.write(message)


def entry(request_id="r", *, status=200, cluster="m:smol", claims=None, usage=USAGE, refused=False):
    made = message_class("envoy.data.accesslog.v3.HTTPAccessLogEntry")()
    made.request.request_id = request_id
    made.request.request_headers["x-llamesh-cluster"] = cluster
    made.response.response_code.value = status
    made.common_properties.start_time.seconds = NOON
    fill(made.common_properties.metadata, {"jti": "key_1"} | (claims or {"sub": "ada"}), llamesh_usage=usage)
    if refused:
        made.common_properties.response_flags.unauthorized_details.reason = 1
    return made


@pytest.fixture
def envoy(mesh) -> Envoy:
    return Envoy(mesh.channel)


@pytest.fixture
async def contract_id(mesh, as_caller) -> str:
    request = contract_pb2.CreateContractRequest(display_name="two at once", max_concurrent_requests=2)
    return (await mesh.contract.CreateContract(request, metadata=as_caller("root", "admin"))).contract_id


async def running(mesh, as_caller, contract_id: str) -> int:
    request = contract_pb2.GetContractRequest(contract_id=contract_id)
    return (await mesh.contract.GetContract(request, metadata=as_caller("root", "admin"))).running_requests


async def until_running(mesh, as_caller, contract_id: str, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while await running(mesh, as_caller, contract_id) != count:
            await asyncio.sleep(0.005)


async def usage(mesh, metadata, **fields):
    fields.setdefault("start_time", {"seconds": NOON - 86400})
    fields.setdefault("end_time", {"seconds": NOON + 86400})
    return (await mesh.contract.ListUsage(contract_pb2.ListUsageRequest(**fields), metadata=metadata)).usage


def key_of(row) -> tuple[str, ...]:
    return (row.day, row.subject, row.model_name, row.contract_id)


async def until_used(mesh, as_caller, requests: int):
    async with asyncio.timeout(PATIENCE):
        while True:
            rows = await usage(mesh, as_caller("root", "admin"))
            if sum(row.requests for row in rows) == requests:
                return rows
            await asyncio.sleep(0.005)


async def test_a_refusal_of_anthropics_api_has_its_shape(envoy, contract_id) -> None:
    for _ in range(2):
        await envoy.ask(sub="ada", contract=contract_id, path="/v1/messages")
    answer = await envoy.ask(sub="ada", contract=contract_id, path="/v1/messages")
    body = json.loads(answer.denied_response.body)
    assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error")
    assert contract_id in body["error"]["message"]


async def test_a_contract_gets_as_many_requests_at_once_as_it_says(mesh, as_caller, envoy, contract_id) -> None:
    answers = [await envoy.ask(f"r{n}", sub="ada", contract=contract_id) for n in range(3)]
    assert [answer.HasField("denied_response") for answer in answers] == [False, False, True]
    assert [answer.status.code for answer in answers] == [0, 0, 8]
    assert await running(mesh, as_caller, contract_id) == 2
    log = envoy.stream()
    await log.report(entry("r0"))
    await until_running(mesh, as_caller, contract_id, 1)
    assert not (await envoy.ask("r9", sub="bob", contract=contract_id)).HasField("denied_response")


async def test_a_refusal_is_429_in_the_shape_of_openai_with_a_time_to_come_back(envoy, contract_id) -> None:
    for _ in range(2):
        await envoy.ask(sub="ada", contract=contract_id)
    denied = (await envoy.ask(sub="ada", contract=contract_id)).denied_response
    assert denied.status.code == 429
    headers = {item.header.key: item.header.value for item in denied.headers}
    assert headers == {"content-type": "application/json", "retry-after": "1"}
    error = json.loads(denied.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "concurrency_exceeded", None)
    assert f"contract {contract_id} allows 2 requests" in error["message"]


async def test_an_unknown_contract_is_403_and_no_contract_is_no_limit(envoy) -> None:
    denied = (await envoy.ask(sub="ada", contract="ctr_gone")).denied_response
    assert denied.status.code == 403
    error = json.loads(denied.body)["error"]
    assert (error["type"], error["code"]) == ("permission_error", "contract_not_found")
    for _ in range(5):
        assert not (await envoy.ask(sub="ada")).HasField("denied_response")
        assert not (await envoy.ask()).HasField("denied_response")


@pytest.mark.parametrize(("count", "granted"), [(2, "it grants model0, model1."), (11, "model7 and 3 more.")])
async def test_a_model_that_the_contract_does_not_grant_is_refused_with_those_that_it_grants(
    mesh, as_caller, envoy, contract_id, count: int, granted: str
) -> None:
    models = [f"model{number}" for number in range(count)]
    change = contract_pb2.UpdateContractRequest(contract_id=contract_id, models=models)
    await mesh.contract.UpdateContract(change, metadata=as_caller("root", "admin"))
    denied = (await envoy.ask(sub="ada", contract=contract_id)).denied_response
    assert denied.status.code == 403
    error = json.loads(denied.body)["error"]
    assert (error["type"], error["code"]) == ("permission_error", "model_not_in_contract")
    assert f"contract {contract_id} does not grant smol" in error["message"]
    assert granted in error["message"]
    assert "PATCH :8201/contracts/" in error["message"]


async def test_a_changed_limit_holds_for_the_next_request(mesh, as_caller, envoy, contract_id) -> None:
    root = as_caller("root", "admin")
    await envoy.ask(sub="ada", contract=contract_id)

    async def limit(count: int) -> None:
        change = contract_pb2.UpdateContractRequest(contract_id=contract_id, max_concurrent_requests=count)
        await mesh.contract.UpdateContract(change, metadata=root)

    await limit(1)
    assert (await envoy.ask(sub="ada", contract=contract_id)).denied_response.status.code == 429
    await limit(0)
    assert not (await envoy.ask(sub="ada", contract=contract_id)).HasField("denied_response")
    await mesh.contract.DeleteContract(contract_pb2.DeleteContractRequest(contract_id=contract_id), metadata=root)
    assert (await envoy.ask(sub="ada", contract=contract_id)).denied_response.status.code == 403


async def test_the_end_of_a_refused_request_frees_no_other_permit(mesh, as_caller, envoy, contract_id) -> None:
    for _ in range(3):
        await envoy.ask("same", sub="ada", contract=contract_id)
    log = envoy.stream()
    await log.report(entry("same", status=429, refused=True), entry("unknown"))
    await until_used(mesh, as_caller, 1)
    assert await running(mesh, as_caller, contract_id) == 2
    # Admission did not answer in time, but may have counted the request: that place is given back.
    await log.report(entry("same", status=503, refused=True))
    await until_running(mesh, as_caller, contract_id, 1)


async def test_a_client_that_left_gives_its_place_back(mesh, as_caller, envoy, contract_id) -> None:
    await envoy.ask("left", sub="ada", contract=contract_id)
    await envoy.stream().report(entry("left", status=0, usage={}))
    await until_running(mesh, as_caller, contract_id, 0)
    assert not await usage(mesh, as_caller("root", "admin"))


async def test_the_requests_of_a_killed_envoy_are_forgotten(mesh, as_caller, envoy, contract_id) -> None:
    for _ in range(2):
        await envoy.ask(sub="ada", contract=contract_id)
    logs = [envoy.stream(), envoy.stream(), envoy.stream("counted")]
    for log in logs:
        await log.report(entry("other"))
    await until_used(mesh, as_caller, 3)
    logs[0].call.cancel()
    logs[2].call.cancel()
    await logs[1].report(entry("another"))  # behind the two cancellations on the same connection
    await until_used(mesh, as_caller, 4)
    assert await running(mesh, as_caller, contract_id) == 2
    logs[1].call.cancel()
    await until_running(mesh, as_caller, contract_id, 0)


async def test_usage_is_added_up_by_day_subject_model_and_contract(mesh, as_caller, envoy) -> None:
    log = envoy.stream("counted")
    await log.report(*[entry(usage=USAGE) for _ in range(3)], entry(usage={}))
    await log.report(
        entry(usage={"prompt_tokens": 7, "completion_tokens": 1}, claims={"sub": "ada", "contract": "ctr_1"}),
        entry(usage={"prompt_tokens": 4, "completion_tokens": 0}, cluster="s:0f0c6a0e"),
        entry(claims={"sub": "bob"}, usage={"prompt_tokens": -1, "completion_tokens": 1e300}),
        entry(status=500),
        entry(status=404),
        entry(cluster=""),  # a list of models
    )
    rows = await until_used(mesh, as_caller, 7)
    assert [
        (*key_of(row), row.requests, row.prompt_tokens, row.completion_tokens, row.unknown_requests) for row in rows
    ] == [
        ("2026-11-24", "ada", "0f0c6a0e", "", 1, 4, 0, 0),
        ("2026-11-24", "ada", "smol", "", 4, 30, 15, 1),
        ("2026-11-24", "ada", "smol", "ctr_1", 1, 7, 1, 0),
        ("2026-11-24", "bob", "smol", "", 1, 0, 0, 1),
    ]
    # What is written is added to, not replaced.
    await log.report(entry())
    rows = await until_used(mesh, as_caller, 8)
    assert rows[1].prompt_tokens == 40


async def test_callers_see_their_own_usage_and_administrators_all_page_by_page(mesh, as_caller, envoy) -> None:
    log = envoy.stream("counted")
    await log.report(*[entry(claims={"sub": name}) for name in ("ada", "bob", "cyn", "ada")])
    await until_used(mesh, as_caller, 4)
    ada, root = as_caller("ada", "manage"), as_caller("root", "admin")
    assert [row.subject for row in await usage(mesh, ada)] == ["ada"]
    assert [row.subject for row in await usage(mesh, root, subject="bob")] == ["bob"]
    assert (await failure(usage(mesh, ada, subject="bob"))) == ("SCOPE_MISSING", {"scope": "admin"})
    seen, token = [], ""
    while not seen or token:
        request = contract_pb2.ListUsageRequest(
            page_size=1, page_token=token, start_time={"seconds": NOON}, end_time={"seconds": NOON}
        )
        page = await mesh.contract.ListUsage(request, metadata=root)
        seen += [row.subject for row in page.usage]
        token = page.next_page_token
    assert seen == ["ada", "bob", "cyn"]
    assert not await usage(mesh, root, start_time={"seconds": NOON + 86400}, end_time={"seconds": NOON + 86400})
    backwards = {"start_time": {"seconds": NOON}, "end_time": {"seconds": 0}}
    assert (await failure(usage(mesh, root, **backwards)))[0] == "INVALID_FIELD"
    never = {"start_time": {"seconds": -(10**15)}}
    assert (await failure(usage(mesh, root, **never)))[0] == "INVALID_FIELD"


async def test_refused_inference_is_recorded_once_a_minute(mesh, as_caller, envoy) -> None:
    for _ in range(20):
        await envoy.ask(sub="ada", contract="ctr_gone")
    async with asyncio.timeout(PATIENCE):
        found = []
        while not found:
            request = contract_pb2.ListDecisionsRequest()
            found = (await mesh.contract.ListDecisions(request, metadata=as_caller("ada", "manage"))).decisions
    (decision,) = found
    assert (decision.action, decision.object, decision.contract_id) == ("infer", "smol", "ctr_gone")
    assert decision.refusals[0].reason == "CONTRACT_NOT_FOUND"


async def test_a_drain_does_not_wait_for_envoys_log_streams(mesh, as_caller, envoy) -> None:
    log = envoy.stream("counted")
    await log.report(entry())
    await until_used(mesh, as_caller, 1)
    mesh.member.settings = mesh.member.settings.model_copy(update={"drain_seconds": 10 * PATIENCE})
    mesh.member.stop()
    await asyncio.wait_for(mesh.member.stopped.wait(), PATIENCE)
