"""Only addresses of the public internet are reached, in whatever spelling a private one comes."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from services.download.sources import AddressRules, SourceError, SourceRefusedError
from services.download.sources.addresses import is_public, resolve

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2001:0:7f00:1::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:80e::200e", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def rules(*answers: str, private_hosts: frozenset[str] = frozenset()) -> AddressRules:
    async def fixed(host: str, port: int) -> Sequence[str]:
        return answers

    return AddressRules(private_hosts=private_hosts, resolve=fixed)


async def test_one_private_address_among_public_ones_refuses_the_host() -> None:
    with pytest.raises(SourceRefusedError) as caught:
        await rules("8.8.8.8", "169.254.169.254").addresses("models.example", 443)
    assert caught.value.rule == "address"


@pytest.mark.parametrize("address", ["10.1.2.3", "169.254.169.254", "fd00::7", "fe80::1%eth0"])
async def test_a_refusal_does_not_reveal_the_address_of_an_internal_name(address: str) -> None:
    with pytest.raises(SourceRefusedError) as caught:
        await rules("8.8.8.8", address).addresses("db.intern", 443)
    assert "db.intern" in str(caught.value)
    assert address.partition("%")[0] not in str(caught.value)
    assert "8.8.8.8" not in str(caught.value)


async def test_an_address_with_a_scope_is_refused() -> None:
    with pytest.raises(SourceRefusedError):
        await rules("fe80::1%eth0").addresses("models.example", 443)


async def test_a_host_that_the_operator_named_may_be_private() -> None:
    named = rules("10.0.0.1", private_hosts=frozenset({"models.intern"}))
    assert await named.addresses("models.intern", 443) == ["10.0.0.1"]
    with pytest.raises(SourceRefusedError):
        await named.addresses("other.intern", 443)


async def test_a_host_without_addresses_is_an_error() -> None:
    with pytest.raises(SourceError, match="no address"):
        await rules().addresses("models.example", 443)


@pytest.mark.parametrize("spelling", ["127.0.0.1", "2130706433", "0x7f000001", "127.1", "0177.0.0.1", "::1"])
async def test_spellings_of_loopback_are_seen_through(spelling: str) -> None:
    """The system's resolver reads numbers that ipaddress does not; what it makes of them is what counts."""
    with pytest.raises(SourceRefusedError):
        await AddressRules(resolve=resolve).addresses(spelling, 443)
