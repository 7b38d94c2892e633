"""Templates, Envoy's API from the descriptor set, and what is built of both; Envoy itself judges the result."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lupa.luajit21 import LuaRuntime

from controller.xds import clusters, inference, management, scripts, templates
from controller.xds.clusters import ServerEndpoints, ServiceSettings
from controller.xds.digest import Digest, DigestMetadata
from controller.xds.inference import InferenceSettings
from controller.xds.management import ManagementSettings, OpenService
from controller.xds.templates import TemplateError
from controller.xds.tokens import TokenSettings
from llamesh.envoy_binary import EnvoyNotFoundError, find_envoy
from llamesh.kit import envoy_api
from llamesh.kit.envoy_api import EnvoyConfigError

TOKENS = TokenSettings(
    '{"keys":[{"kty":"oct","alg":"HS256","kid":"k","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}]}'
)
CLUSTER = "envoy.config.cluster.v3.Cluster"


def test_a_value_reaches_lua_as_it_is() -> None:
    lua = LuaRuntime(encoding=None)
    text = 'a"b\\c\n\0]]é' + "".join(map(chr, range(256)))
    found = lua.execute(f"return {scripts.literal({'x': [1, -2.5, True, {}, {text: text}]})}".encode())[b"x"]
    assert (found[1], found[2], found[3]) == (1, -2.5, True)
    assert list(found[4].items()) == []
    assert list(found[5].items()) == [(text.encode(), text.encode())]
    assert lua.execute(f"return {scripts.literal(None)}".encode()) is None


def test_a_placeholder_alone_is_its_value_and_a_list_is_spliced() -> None:
    tree = {"port": "${port}", "all": ["a", "${more}", "b"], "text": "x-${port}-${name}", "one": "${more}"}
    filled = templates.fill(tree, {"port": 8080, "more": ["c", "d"], "name": "${port}"})
    assert filled == {"port": 8080, "all": ["a", "c", "d", "b"], "text": "x-8080-${port}", "one": ["c", "d"]}


@pytest.mark.parametrize("values", [{}, {"port": 1, "prot": 2}])
def test_a_template_and_its_values_must_fit(values: dict[str, Any]) -> None:
    with pytest.raises(TemplateError):
        templates.fill({"port": "${port}"}, values)


@pytest.mark.parametrize(
    "config",
    [
        {"nam": "x"},
        {"connect_timeout": "soon"},
        {
            "typed_extension_protocol_options": {
                "x": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "nope": 1}
            }
        },
    ],
)
def test_configuration_that_violates_envoys_api_is_an_error_at_once(config: dict[str, Any]) -> None:
    with pytest.raises(EnvoyConfigError, match=CLUSTER):
        envoy_api.parse(config, CLUSTER)


def test_an_unknown_extension_becomes_a_typed_struct_and_plain_structures_stay() -> None:
    unknown = {"@type": "type.googleapis.com/envoy.extensions.not_here.v3.X", "field": {"a": 1}}
    plain = {"@type": "type.googleapis.com/envoy.extensions.not_here.v3.X", "b": [1]}
    parsed = envoy_api.parse(
        {"typed_extension_protocol_options": {"x": unknown}, "metadata": {"filter_metadata": {"y": plain}}}, CLUSTER
    )
    packed = parsed.typed_extension_protocol_options["x"]
    assert packed.type_url == "type.googleapis.com/xds.type.v3.TypedStruct"
    struct = envoy_api.message_class("xds.type.v3.TypedStruct").FromString(packed.value)
    assert (struct.type_url, dict(struct.value.fields["field"].struct_value.fields)["a"].number_value) == (
        unknown["@type"],
        1,
    )
    assert set(parsed.metadata.filter_metadata["y"].fields) == {"@type", "b"}


def test_the_descriptor_set_has_the_messages_that_the_services_use() -> None:
    for name in (
        "auth.v3.CheckRequest",
        "auth.v3.CheckResponse",
        "accesslog.v3.StreamAccessLogsMessage",
        "discovery.v3.DeltaDiscoveryRequest",
    ):
        assert envoy_api.message_class(f"envoy.service.{name}")().IsInitialized()


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/run/e.sock", {"pipe": {"path": "/run/e.sock"}}),
        ("127.0.0.1:80", {"socket_address": {"address": "127.0.0.1", "port_value": 80}}),
        ("[::1]:80", {"socket_address": {"address": "::1", "port_value": 80}}),
    ],
)
def test_addresses(location: str, expected: dict[str, Any]) -> None:
    assert clusters.address(location) == expected


def test_the_same_settings_give_the_same_bytes() -> None:
    settings = InferenceSettings(("127.0.0.1",), 8080, TOKENS, True, frozenset({"http://a", "http://b"}))
    first, second = (
        inference.inference_routes(settings, {"m:x": {"ask": True}, "m:y": {"silence": 9}}).SerializeToString(
            deterministic=True
        )
        for _ in range(2)
    )
    assert first == second


def _digest() -> DigestMetadata:
    digest = Digest()
    digest.set(["key_1"])
    return digest.metadata()


@pytest.mark.parametrize(("anonymous", "origins"), [(True, frozenset()), (False, frozenset({"http://ui"}))])
def test_envoy_takes_the_whole_configuration(tmp_path: Path, anonymous: bool, origins: frozenset[str]) -> None:
    settings = InferenceSettings(("127.0.0.1",), 8080, TOKENS, anonymous, origins)
    managed = ManagementSettings(
        "gateway",
        ("127.0.0.1",),
        8200,
        TOKENS,
        (("llamesh.v1.GatewayService", "gateway"), ("llamesh.v1.DownloadService", "download")),
        templates.FOLDER / "llamesh.binpb",
        (OpenService("grpc.health.v1.Health", "gateway", "mesh.Health"),),
        origins,
    )
    bootstrap = templates.render(
        "bootstrap.yaml",
        "envoy.config.bootstrap.v3.Bootstrap",
        {"node_id": "n", "admin_path": str(tmp_path / "a.sock"), "controller_path": str(tmp_path / "c.sock")},
    )
    other = replace(
        managed,
        name="download",
        port=8202,
        services=(("llamesh.v1.DownloadService", "download"),),
        open_methods=(("llamesh.v1.GatewayService/GetHealth", "gateway"),),
    )
    listener = inference.inference_listener(settings)
    manager = listener.filter_chains[0].filters[0].typed_config
    inlined = envoy_api.message_class(manager.type_url.rpartition("/")[2]).FromString(manager.value)
    inlined.route_config.CopyFrom(
        inference.inference_routes(settings, {"m:smol": {"ask": True, "silence": 9}}, _digest())
    )
    manager.value = inlined.SerializeToString()
    static = bootstrap.static_resources
    static.listeners.add().CopyFrom(listener)
    static.listeners.add().CopyFrom(management.management_listener(managed))
    static.listeners.add().CopyFrom(management.management_listener(other))
    static.listeners.add().CopyFrom(inference.held_listener(settings))
    for service in ("contract", "gateway", "download", "waker"):
        static.clusters.add().CopyFrom(
            clusters.service_cluster(ServiceSettings(service, f"/{service}.sock", service == "waker"))
        )
    eds = clusters.server_cluster("m:smol", 8)
    static.clusters.add().CopyFrom(eds)
    file = tmp_path / "envoy.pb"
    file.write_bytes(bootstrap.SerializeToString())
    checked = subprocess.run(
        [find_envoy(), "--mode", "validate", "-c", file], capture_output=True, text=True, timeout=30, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_waker_stands_behind_every_server() -> None:
    for ready in ((), ("/e.sock",)):
        assignment = clusters.endpoints("s:u", [ServerEndpoints("u", (), ready, 4)])
        assert [group.priority for group in assignment.endpoints] == [0, 1]
        assert len(assignment.endpoints[0].lb_endpoints) == len(ready)
        waker = assignment.endpoints[1].lb_endpoints[0].endpoint.address.envoy_internal_address
        assert (
            waker.server_listener_name
            == inference.held_listener(InferenceSettings(("127.0.0.1",), 8080, TOKENS, True)).name
        )


def test_envoy_is_found_by_its_variable_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "envoy"
    own.write_text("#!/bin/sh\n")
    monkeypatch.setenv("ENVOY_BIN", str(own))
    with pytest.raises(EnvoyNotFoundError, match=str(own)):
        find_envoy()
    own.chmod(0o755)
    assert find_envoy() == own


def test_the_wheels_launcher_is_passed_by_for_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ENVOY_BIN", raising=False)
    launcher = tmp_path / "envoy"
    launcher.write_text("#!/usr/bin/python\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_envoy().parent.name == "_bin"


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("127.0.0.1", "::1"), ("0.0.0.0",)])
def test_envoy_is_given_every_address_to_bind_to(addresses: tuple[str, ...]) -> None:
    listener = inference.inference_listener(InferenceSettings(addresses, 8080, TOKENS, True))
    given = [listener.address, *(each.address for each in listener.additional_addresses)]
    assert tuple(each.socket_address.address for each in given) == addresses
    assert {each.socket_address.port_value for each in given} == {8080}
