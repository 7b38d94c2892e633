"""The inference listener and the contract service: Admission is asked, usage is logged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from controller.xds.restarts import MAX_RESTART_RETRIES
from llamesh.kit import envoy_api
from tests.mesh.front_door import PATIENCE, FrontDoor, token, wait_for

U = "cccccccc-3333-4333-8333-333333333333"
CHAT = "/v1/chat/completions"


LIMITED = "ctr_limited"
"""A contract that Admission is asked about."""


class Contract:
    """The contract service as Envoy sees it: Admission and the receiver of the access log."""

    def __init__(self, socket: str) -> None:
        self.checks: list[Any] = []
        self.logged: list[Any] = []
        self.answer: dict[str, Any] = {"status": {"code": 0}}
        self._socket = socket
        self._server = grpc.aio.server()

    async def start(self) -> None:
        check = grpc.unary_unary_rpc_method_handler(
            self._check,
            request_deserializer=envoy_api.message_class("envoy.service.auth.v3.CheckRequest").FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        log = grpc.stream_unary_rpc_method_handler(
            self._log,
            request_deserializer=envoy_api.message_class(
                "envoy.service.accesslog.v3.StreamAccessLogsMessage"
            ).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for service, methods in (
            ("auth.v3.Authorization", {"Check": check}),
            ("accesslog.v3.AccessLogService", {"StreamAccessLogs": log}),
        ):
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(f"envoy.service.{service}", methods),)
            )
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _check(self, request: Any, _: Any) -> Any:
        self.checks.append(request)
        return envoy_api.parse(self.answer, "envoy.service.auth.v3.CheckResponse")

    async def _log(self, messages: AsyncIterator[Any], _: Any) -> Any:
        async for message in messages:
            self.logged += [(message.identifier.log_name, entry) for entry in message.http_logs.log_entry]
        return envoy_api.message_class("envoy.service.accesslog.v3.StreamAccessLogsResponse")()


@pytest.fixture
async def contract(door: FrontDoor) -> AsyncIterator[Contract]:
    service = Contract(door.socket("contract"))
    await service.start()
    door.serve(U, await door.engine(), names=("smol",))
    door.control.set_admission_ids("contracts", [LIMITED])
    assert await door.control.settled(PATIENCE)
    yield service
    await service.stop()


def bearer(**claims: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {token(**claims)}"}


def usage_of(entry: Any) -> dict[str, float]:
    fields = entry.common_properties.metadata.filter_metadata["llamesh.usage"].fields
    return {name: value.number_value for name, value in fields.items()}


async def test_usage_is_logged_for_tokens_only(door: FrontDoor, contract: Contract) -> None:
    await door.chat()
    await door.chat(headers=bearer(sub="ada"))
    await door.chat(headers=bearer(sub="ada"), stream=True)
    await wait_for(lambda: len(contract.logged) == 2)
    assert contract.checks == []
    assert {name for name, _ in contract.logged} == {"counted"}
    entries = [entry for _, entry in contract.logged]
    assert sorted(usage_of(entry)["completion_tokens"] for entry in entries) == [2, 3]
    for entry in entries:
        claims = entry.common_properties.metadata.filter_metadata["envoy.filters.http.jwt_authn"].fields["claims"]
        assert claims.struct_value.fields["sub"].string_value == "ada"
        assert entry.request.request_headers["x-llamesh-cluster"] == "m:smol"


async def test_admission_is_asked_if_the_token_or_the_server_requires_it(door: FrontDoor, contract: Contract) -> None:
    assert (await door.chat(headers=bearer(sub="ada", contract=LIMITED))).status == 200
    (check,) = contract.checks
    metadata = check.attributes.metadata_context.filter_metadata
    assert metadata["envoy.filters.http.jwt_authn"].fields["claims"].struct_value.fields["sub"].string_value == "ada"
    assert check.attributes.request.http.headers["x-llamesh-cluster"] == "m:smol"
    await wait_for(lambda: [name for name, _ in contract.logged] == ["admission"])
    assert usage_of(contract.logged[0][1])["prompt_tokens"] == 5

    door.serve(U, *door.engines, names=("smol",), ask=True)
    assert await door.control.settled(PATIENCE)
    assert (await door.chat()).status == 200
    assert (await door.chat(path=f"/{U}{CHAT}")).status == 200
    assert len(contract.checks) == 3


async def test_the_end_of_a_request_with_a_permit_is_reported_at_once(door: FrontDoor, contract: Contract) -> None:
    """Each request begins right after an entry has come: from a buffer that is sent once a second, each would take a second."""
    seconds = []
    for number in range(1, 7):
        began = time.monotonic()
        assert (await door.chat(headers=bearer(sub="ada", contract=LIMITED))).status == 200
        await wait_for(lambda: len(contract.logged) == number)  # noqa: B023
        seconds.append(time.monotonic() - began)
    assert min(seconds[1:]) < 0.5


async def test_admissions_refusal_goes_out_as_it_is(door: FrontDoor, contract: Contract) -> None:
    body = {"error": {"message": "budget", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}}
    for status, code in (("TooManyRequests", 429), ("ServiceUnavailable", 503)):
        contract.answer = {
            "status": {"code": 8},
            "denied_response": {
                "status": {"code": status},
                "headers": [{"header": {"key": "retry-after", "value": "3"}}],
                "body": json.dumps(body),
            },
        }
        answer = await door.chat(headers=bearer(contract=LIMITED))
        assert (answer.status, answer.json(), answer.headers["retry-after"]) == (code, body, "3")
    assert door.engines[0].received == []


@pytest.mark.parametrize("door", [{"restart_retries": MAX_RESTART_RETRIES}], ids=[""], indirect=True)
async def test_a_contract_service_that_restarts_is_waited_for(door: FrontDoor, contract: Contract) -> None:
    assert (await door.chat(headers=bearer(contract=LIMITED))).status == 200
    await contract.stop()
    requests = [asyncio.create_task(door.chat(headers=bearer(contract=LIMITED))) for _ in range(5)]
    await asyncio.sleep(0.3)
    assert not any(each.done() for each in requests)
    again = Contract(door.socket("contract"))
    await again.start()
    assert [(await each).status for each in requests] == [200] * 5
    # What they used is told to the new one: no entry of the log is lost with the old.
    await wait_for(lambda: len(again.logged) == 5)
    await again.stop()


async def test_without_admission_metered_requests_are_503_and_others_go_on(door: FrontDoor, contract: Contract) -> None:
    await contract.stop()
    answer = await door.chat(headers=bearer(contract=LIMITED))
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "admission_unavailable", "1")
    assert (await door.chat(headers=bearer())).status == 200
