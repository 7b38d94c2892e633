"""envoy/lua/without_token.lua: management calls without a token, by the host name that they come under."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2

from controller.envoy_listeners import configure
from controller.xds import anonymous_callers, scripts, templates
from controller.xds.management import ManagementSettings
from controller.xds.public_api import PublicApi
from llamesh.kit.config import Settings
from llamesh.kit.errors import Reason, spec_of
from tests.unit.lua_request import LuaFilter, Outcome

FILTER = LuaFilter(scripts.without_token())
OPEN = anonymous_callers.open_calls(
    PublicApi(templates.FOLDER / "llamesh.binpb", ["llamesh.v1.GatewayService", "llamesh.v1.ContractService"]),
    ["grpc.health.v1.Health"],
)
LOOPBACK = (
    anonymous_callers.known(["http://ui:5173", "https://*.example.com"], ["llm.internal"], ["127.0.0.1", "::1"]) | OPEN
)
NETWORK = anonymous_callers.known(["http://ui:5173", "https://*.example.com"], ["llm.internal"], ["0.0.0.0"]) | OPEN
PAGES_ONLY = NETWORK | {"pages only": True}
LOGIN = "/llamesh.v1.GatewayService/CreateToken"
PAGE = {"origin": "http://evil.example:8200"}


def run(host: str, settings: dict[str, Any] = LOOPBACK, path: str = "/auth/token", **headers: str) -> Outcome:
    usual = {":method": "POST", ":authority": host, ":path": path, "content-type": "application/json"}
    return FILTER.run(usual | {name.replace("_", "-"): value for name, value in headers.items()}, settings)


@pytest.mark.parametrize("settings", [LOOPBACK, NETWORK, PAGES_ONLY])
@pytest.mark.parametrize("headers", [{}, PAGE])
@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8200", "localhost.:8200", "127.0.0.1:8200", "127.8.8.8", "[::1]:8200", "0.0.0.0:1"),
        *("llm.internal", "LLM.internal.:8200"),
    ],
)
def test_a_login_under_a_known_name_passes(host: str, settings: dict[str, Any], headers: dict[str, str]) -> None:
    assert run(host, settings, **headers).status is None


@pytest.mark.parametrize("path", ["/auth/token", "/auth/token/", "/auth/token?x=/health", LOGIN, "/nowhere", "/"])
@pytest.mark.parametrize(
    "host", ["evil.example:8200", "localhost.evil", "evil.localhost", "127.0.0.1.evil", "127.1", ""]
)
def test_a_name_that_was_rebound_to_this_machine_cannot_log_in(host: str, path: str) -> None:
    for settings, headers in ((LOOPBACK, {}), (LOOPBACK, PAGE), (NETWORK, {}), (PAGES_ONLY, PAGE)):
        assert run(host, settings, path, **headers).status == 403


def test_an_address_is_known_if_other_machines_reach_the_mesh() -> None:
    for host in ("192.168.1.5:8200", "[fd00::1]:8200"):
        assert run(host, LOOPBACK).status == 403
        assert run(host, NETWORK).status is None
        assert run(host, PAGES_ONLY, **PAGE).status is None


def test_programs_log_in_under_any_name_if_only_pages_are_restricted() -> None:
    assert run("gpu-box.lan:8200", PAGES_ONLY).status is None
    assert run("gpu-box.lan:8200", PAGES_ONLY, origin="http://ui:5173").status is None
    assert run("gpu-box.lan:8200", PAGES_ONLY, origin="https://a.example.com").status is None
    assert run("gpu-box.lan:8200", PAGES_ONLY, origin="null").status == 403
    assert run("gpu-box.lan:8200", PAGES_ONLY, origin="http://gpu-box.lan:8200").status == 403


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/health/", "/health?x=1", "/.well-known/jwks.json", "/grpc.health.v1.Health/Check"),
        *("/llamesh.v1.GatewayService/GetHealth", "/llamesh.v1.GatewayService/GetPublicKeys"),
    ],
)
def test_public_reads_are_open_under_any_name(path: str) -> None:
    assert run("evil.example", path=path).status is None


def test_only_calls_without_a_token_that_read_are_open() -> None:
    """A new call is held to the names until its contract says that it only reads."""
    paths = {name.removeprefix("open ") for name in OPEN}
    service = "/llamesh.v1.GatewayService"
    assert paths == {
        *("/health", f"{service}/GetHealth", "/.well-known/jwks.json", f"{service}/GetPublicKeys"),
        "/grpc.health.v1.Health/",
    }


def test_a_verified_token_passes_under_any_name() -> None:
    assert run("evil.example", path="/models", x_llamesh_claims="e30").status is None


def test_a_refusal_names_host_and_setting_in_the_form_of_the_call() -> None:
    host = 'e"vil\n.example'
    rest = run(f"{host}:8200")
    assert rest.answer["code"] == 7
    assert "e?vil?.example" in rest.answer["message"]
    assert "LLAMESH_ALLOWED_HOSTS" in rest.answer["message"]
    info, remedy = rest.answer["details"]
    assert (info["reason"], info["metadata"]) == ("HOST_NOT_ALLOWED", {"host": "e?vil?.example"})
    assert remedy["message"] == spec_of(Reason.ERROR_REASON_HOST_NOT_ALLOWED).remedy
    assert rest.metadata["llamesh"]["refused"] is True
    assert len(run("x" * 9000).answer["message"]) < 600


@pytest.mark.parametrize("host", ["evil.example", "a" * 200 + ".example"])
def test_a_refusal_over_grpc_is_a_rich_status(host: str) -> None:
    outcome = run(host, path=LOGIN, content_type="application/grpc")
    status = status_pb2.Status.FromString(base64.b64decode(outcome.head["grpc-status-details-bin"] + "=="))
    info, remedy = error_details_pb2.ErrorInfo(), error_details_pb2.LocalizedMessage()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(remedy)
    assert (status.code, status.message) == (7, outcome.head["grpc-message"])
    assert (info.reason, info.domain, dict(info.metadata)) == ("HOST_NOT_ALLOWED", "llamesh", {"host": host})
    assert (remedy.locale, remedy.message) == ("en", spec_of(Reason.ERROR_REASON_HOST_NOT_ALLOWED).remedy)


class Listening:
    """Keeps the listeners that the settings lead to."""

    def set_static(self, _: Any, inference: Any, management: list[ManagementSettings]) -> None:
        self.inference, self.management = inference, management


@pytest.mark.parametrize(
    ("changed", "any_host"),
    [
        ({}, False),
        ({"anonymous_inference": "deny"}, False),
        ({"bind": "0.0.0.0"}, True),
        ({"bind": "::"}, True),
        ({"bind": "0.0.0.0", "anonymous_inference": "allow"}, False),
    ],
)
def test_all_listeners_know_the_names_of_the_settings(tmp_path: Path, changed: dict[str, str], any_host: bool) -> None:
    settings = Settings(home=tmp_path, public_host="Shown.example", allowed_hosts=("llm.example",), **changed)  # type: ignore[arg-type]
    control = Listening()
    configure(control, settings, "{}")  # type: ignore[arg-type]
    assert len(control.management) == 3
    for listener in (control.inference, *control.management):
        assert listener.allowed_hosts == {"shown.example", "llm.example"}
    assert {listener.any_host for listener in control.management} == {any_host}
