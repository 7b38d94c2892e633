"""The TCP port of a member, for other members and Envoy: mutual TLS only. A member without an address has its Unix socket only.

Invariant: no member listens on TCP without TLS, not even on a loopback address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc

from llamesh.background import BackgroundTask
from llamesh.kit.clock import utc_now
from llamesh.kit.config import Settings
from llamesh.kit.errors import StartRefused
from llamesh.kit.logs import log, report_failure
from llamesh.kit.member_tls import HEALTH_PART, LOOK_SECONDS, open_member_tls
from llamesh.kit.peers import Peers

CONNECTION_SECONDS = 600
"""Age at which a server asks the callers of a connection to open another, with their present certificate; calls on it finish. So no
connection of a member whose certificate is renewed in time carries calls after the certificate has expired."""


def cannot_listen(address: str) -> str:
    """Return why a member does not start that cannot listen at its address."""
    return (
        f"cannot listen at {address}: another program has the port, or the address is none of this machine; correct"
        " LLAMESH_MEMBER_ADDRESSES, or set LLAMESH_MEMBER_BIND to an address of this machine"
    )


class MemberPort:
    """The port of one member, and the health of its certificate."""

    def __init__(self, settings: Settings, member: str) -> None:
        """Read the certificate. Raises StartRefused if there is an address and the certificate cannot be used."""
        self._address = settings.listens_at(member)
        self._tls = open_member_tls(settings, member)
        self.peers = Peers(settings.trust_domain, utc_now) if self._tls else None
        """Checks the callers; None if there are none on TCP."""
        self._shown: bool | None = None
        self._watch: BackgroundTask | None = None

    @property
    def options(self) -> Sequence[tuple[str, int]]:
        """The options of a server with this port."""
        return (("grpc.max_connection_age_ms", CONNECTION_SECONDS * 1000),) if self._tls else ()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add the port to a server that has not started. Raises StartRefused if this machine cannot listen there."""
        if self._tls and self._address:
            try:
                server.add_secure_port(self._address, self._tls.server_credentials())
            except RuntimeError as error:
                raise StartRefused(cannot_listen(self._address)) from error
            log.info("listening with mutual TLS", address=self._address)

    def start(self, show: Callable[[str, bool], None]) -> None:
        """Report the state of the certificate now and whenever it changes."""
        tls = self._tls
        if tls is None:
            return

        async def look() -> None:
            well = not tls.problem
            if well != self._shown:
                self._shown = well
                show(HEALTH_PART, well)

        self._watch = BackgroundTask("look at the certificate", look, report_failure, every=LOOK_SECONDS)
        self._watch.start()

    async def close(self) -> None:
        """Stop reporting."""
        if self._watch:
            await self._watch.close()
