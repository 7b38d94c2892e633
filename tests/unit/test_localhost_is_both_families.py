"""Which addresses Envoy listens on, and what is looked at before it starts."""

from __future__ import annotations

import socket

import pytest

from llamesh import addresses
from llamesh.addresses import listening_addresses
from llamesh.cli.mesh import ports


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_localhost_is_every_loopback_address_of_this_machine() -> None:
    assert listening_addresses("localhost") == (("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",))


@pytest.mark.parametrize(
    ("bind", "address"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1"), ("0.0.0.0", "0.0.0.0")]
)
def test_an_address_is_itself(bind: str, address: str) -> None:
    assert listening_addresses(bind) == (address,)


@pytest.mark.parametrize("has", ["127.0.0.1", "::1", ""])
def test_a_machine_with_one_family_starts(monkeypatch: pytest.MonkeyPatch, has: str) -> None:
    """The machine is a stand-in: a kernel without IPv6 cannot be had here."""
    monkeypatch.setattr(addresses, "_exists", lambda _family, address: address == has)
    assert listening_addresses("localhost") == (has or "127.0.0.1",)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback address")
def test_a_port_that_is_taken_in_one_family_is_a_problem() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (problem,) = ports.taken(("127.0.0.1", "::1"), {"LLAMESH_INFERENCE_PORT": port})
        assert problem.words.startswith(f"port {port} is taken by ")
        assert not ports.taken(("127.0.0.1",), {"LLAMESH_INFERENCE_PORT": port})
