"""Plain HTTP at a port with TLS: a browser is led to https at a host of the mesh, and to no other host that a caller may name."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controller import envoy_listeners
from controller.xds import inference, management, templates, tls
from llamesh import certificates
from llamesh.cli.mesh.authority import Files, issue
from llamesh.envoy_binary import find_envoy
from llamesh.kit import envoy_api
from llamesh.kit.config import Settings
from tests.unit.test_envoy_templates_and_api import TOKENS

LOOPBACK = {"127.0.0.1", "[::1]", "localhost"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a mesh with the certificate of `llamesh tls init`."""
    files = Files(tmp_path)
    made, _ = issue(files, ["LLM.lan", "192.0.2.7", "fd00::7", "*.models.lan"], datetime.now(UTC))
    found = Settings(
        home=tmp_path,
        tls_certificate=str(files.certificate),
        tls_key=str(files.key),
        public_host="Public.example",
        allowed_hosts=("proxy.example",),
    )
    found.run_dir.mkdir(parents=True)
    certificates.hand_to_envoy(made, found.run_dir)
    return found


def listeners(settings: Settings) -> list[Any]:
    ports = envoy_listeners._management(settings, TOKENS)
    at_inference = inference.inference_listener(envoy_listeners._inference(settings, TOKENS))
    return [at_inference, *map(management.management_listener, ports)]


def plain_http(listener: Any) -> Any:
    """The routes of plain HTTP."""
    manager = listener.default_filter_chain.filters[0].typed_config
    return envoy_api.message_class(manager.type_url.rpartition("/")[2]).FromString(manager.value).route_config


def test_only_hosts_of_the_mesh_are_redirected_to(settings: Settings) -> None:
    named = {"llm.lan", "192.0.2.7", "[fd00::7]", "*.models.lan", "public.example", "proxy.example"}
    for listener in listeners(settings):
        own, other = plain_http(listener).virtual_hosts
        assert set(own.domains) == LOOPBACK | named
        assert [route.WhichOneof("action") for route in own.routes] == ["redirect", "direct_response"]
        assert list(other.domains) == ["*"]
        assert [route.direct_response.status for route in other.routes] == [400]
        assert tls.WORDS in other.routes[0].direct_response.body.inline_string


def test_a_redirect_repeats_only_a_host_with_a_port(settings: Settings) -> None:
    """Envoy compares the host up to the first colon, and the redirect repeats it whole."""
    for listener in listeners(settings):
        own, _ = plain_http(listener).virtual_hosts
        found = {header.name: header.string_match.safe_regex.regex for header in own.routes[0].match.headers}
        for host in (
            "localhost",
            "localhost:22080",
            "LLM.lan:1",
            "192.0.2.7:65535",
            "[fd00::7]",
            "[::1]:80",
            "a_b.models.lan",
        ):
            assert re.fullmatch(found[":authority"], host), host
        for host in (
            "localhost:22080@evil.example",
            "localhost:@evil.example",
            "localhost:x",
            "localhost:",
            "[::1]:1@evil.example",
            "[::1]@evil.example",
            "evil.example/.models.lan",
            "evil.example?.models.lan",
            "evil.example#.models.lan",
            "evil.example\\.models.lan",
            "",
        ):
            assert not re.fullmatch(found[":authority"], host), host


def test_a_certificate_that_cannot_be_read_names_no_host(settings: Settings) -> None:
    Path(settings.tls_certificate).unlink()
    own, _ = plain_http(listeners(settings)[0]).virtual_hosts
    assert set(own.domains) == LOOPBACK | {"public.example", "proxy.example"}


def test_a_name_that_envoy_cannot_compare_is_left_out() -> None:
    assert set(tls.domains(["*", "", "a b", "x/y", "a.*", "LLM.lan", "[::1]"])) == LOOPBACK | {"llm.lan"}


def test_envoy_takes_it(settings: Settings, tmp_path: Path) -> None:
    values = {"node_id": "n", "admin_path": str(tmp_path / "a.sock"), "controller_path": str(tmp_path / "c.sock")}
    bootstrap = templates.render("bootstrap.yaml", "envoy.config.bootstrap.v3.Bootstrap", values)
    (_, gateway, *_) = listeners(settings)
    # What is behind TLS is another test's subject, and needs clusters.
    del gateway.filter_chains[0].filters[:]
    gateway.filter_chains[0].filters.extend(gateway.default_filter_chain.filters)
    bootstrap.static_resources.listeners.add().CopyFrom(gateway)
    file = tmp_path / "envoy.pb"
    file.write_bytes(bootstrap.SerializeToString())
    command = [find_envoy(), "--mode", "validate", "-c", file]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
