"""Envoy reaches each member over TCP with mutual TLS and accepts one identity; on one machine its configuration has no TLS to members."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format

from controller.envoy_listeners import configure
from controller.xds.serving import ControlPlane
from controller.xds.snapshot import CDS
from llamesh.kit import envoy_api
from llamesh.kit.config import Settings
from llamesh.names import QUANT, WAKER

KEYS = '{"keys": []}'
CALLED = ("gateway", "contract", "download", "quant", "waker")


def clusters(settings: Settings) -> dict[str, dict]:
    """The clusters of members in the configuration, as Envoy's JSON."""
    control = ControlPlane()
    configure(control, settings, KEYS)
    found = {}
    for name, resource in control.intent.snapshot.of(CDS).items():
        message = envoy_api.message_class("envoy.config.cluster.v3.Cluster")()
        message.ParseFromString(resource.message.resource.value)
        found[name] = json_format.MessageToDict(
            message, preserving_proto_field_name=True, descriptor_pool=envoy_api.pool()
        )
    return found


@pytest.fixture
def on_tcp(tmp_path: Path) -> Settings:
    addresses = {name: f"{name}.llm.svc:9000" for name in CALLED} | {"contract": "10.0.0.7:9000", "download": "[::1]:9"}
    return Settings(home=tmp_path, quant=True).model_copy(
        update={
            "member_addresses": addresses,
            "member_certificates": tmp_path / "{member}",
            "trust_domain": "mesh.test",
        }
    )


def test_each_member_must_prove_its_own_identity(on_tcp: Settings) -> None:
    found = clusters(on_tcp)
    assert found.keys() == set(CALLED)
    for name, cluster in found.items():
        owner = "controller" if name == WAKER else name
        config = cluster["transport_socket"]["typed_config"]
        context = config["common_tls_context"]
        matchers = context["combined_validation_context"]["default_validation_context"]["match_typed_subject_alt_names"]
        assert matchers == [{"san_type": "URI", "matcher": {"exact": f"spiffe://mesh.test/{owner}"}}]
        assert config["sni"] == f"{owner}.mesh.test"
        assert context["alpn_protocols"] == ["http/1.1" if name == WAKER else "h2"]
        assert context["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_3"
        # The validation without the authorities would accept any certificate.
        assert context["combined_validation_context"]["validation_context_sds_secret_config"]["name"] == "authorities"
    kinds = {name: cluster.get("type", "STATIC") for name, cluster in found.items()}
    assert kinds == dict.fromkeys(CALLED, "STRICT_DNS") | {"contract": "STATIC", "download": "STATIC"}


def test_on_one_machine_members_have_sockets_and_no_tls(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, quant=True)
    for name, cluster in clusters(settings).items():
        (locality,) = cluster["load_assignment"]["endpoints"]
        (endpoint,) = locality["lb_endpoints"]
        assert endpoint["endpoint"]["address"] == {"pipe": {"path": str(settings.socket(name))}}
        assert "transport_socket" not in cluster


def test_a_member_without_an_address_keeps_its_socket(on_tcp: Settings) -> None:
    addresses = {name: address for name, address in on_tcp.member_addresses.items() if name != QUANT}
    found = clusters(on_tcp.model_copy(update={"member_addresses": addresses}))
    assert "transport_socket" not in found[QUANT]
    assert "transport_socket" in found["gateway"]
