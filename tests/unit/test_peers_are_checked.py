"""What a certificate must say so that its holder is taken for a member, and that nothing else makes one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llamesh.kit.errors import MeshError, name_of
from llamesh.kit.peers import Peers
from llamesh.member_authority import LIFE, MemberAuthority

NOW = datetime(2027, 1, 1, 12, tzinfo=UTC)
DOMAIN = "mesh.test"
METHOD = "/llamesh.v1.AdmissionService/Grant"


class Caller:
    """What gRPC says of a caller."""

    def __init__(self, peer: str = "ipv4:10.0.0.1:5000", **shown: list[bytes]) -> None:
        self._peer = peer
        self._shown = shown

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._shown

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder: Path = tmp_path_factory.mktemp("members")
    return MemberAuthority(folder, DOMAIN).issue("gateway", NOW).chain


def refusal(caller: Caller, now: datetime = NOW, method: str = METHOD) -> str:
    """The reason for which a call is refused; empty if it is not."""
    try:
        Peers(DOMAIN, lambda: now).check(method, caller)  # type: ignore[arg-type]
    except MeshError as error:
        return name_of(error.reason)
    return ""


def over_tls(certificate: bytes, *uris: str) -> Caller:
    return Caller(
        transport_security_type=[b"ssl"], peer_uri=[uri.encode() for uri in uris], x509_pem_cert=[certificate]
    )


def test_the_identity_of_the_table_is_let_in(certificate: bytes) -> None:
    assert refusal(over_tls(certificate, f"spiffe://{DOMAIN}/gateway")) == ""


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (f"spiffe://{DOMAIN}/gateway", f"spiffe://{DOMAIN}/envoy"),
        (f"spiffe://{DOMAIN}.evil.test/gateway",),
        (f"spiffe://evil.test/{DOMAIN}/gateway",),
        (f"https://{DOMAIN}/gateway",),
        (f"spiffe://{DOMAIN}/sub/gateway",),
        (f"SPIFFE://{DOMAIN}/gateway",),
    ],
)
def test_any_other_identity_is_none(certificate: bytes, uris: tuple[str, ...]) -> None:
    assert refusal(over_tls(certificate, *uris)) == "MEMBER_UNKNOWN"


@pytest.mark.parametrize("member", ["", "engine", "Gateway", "gateway ", "quant"])
def test_a_name_that_the_table_does_not_have_calls_nothing(certificate: bytes, member: str) -> None:
    assert refusal(over_tls(certificate, f"spiffe://{DOMAIN}/{member}")) == "MEMBER_REFUSED"


def test_a_certificate_is_of_use_until_its_end(certificate: bytes) -> None:
    caller = over_tls(certificate, f"spiffe://{DOMAIN}/gateway")
    assert refusal(caller, NOW + LIFE - timedelta(seconds=1)) == ""
    assert refusal(caller, NOW + LIFE + timedelta(seconds=1)) == "MEMBER_UNKNOWN"
    assert refusal(over_tls(b"damaged", f"spiffe://{DOMAIN}/gateway")) == "MEMBER_UNKNOWN"


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:9", "ipv6:[::1]:9", "", "vsock:1:2"])
def test_only_a_unix_socket_needs_no_certificate(peer: str) -> None:
    assert refusal(Caller(peer)) == "MEMBER_UNKNOWN"
    assert refusal(Caller("unix:")) == ""
    assert refusal(Caller("unix:/run/gateway.sock")) == ""


@pytest.mark.parametrize(
    "method", ["", "/", "/llamesh.v1.AdmissionService/", "/llamesh.v1.AdmissionService/grant", "x"]
)
def test_a_method_that_the_table_does_not_have_is_refused(certificate: bytes, method: str) -> None:
    assert refusal(over_tls(certificate, f"spiffe://{DOMAIN}/gateway"), method=method) == "MEMBER_REFUSED"
