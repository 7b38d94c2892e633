"""Members on loopback TCP with mutual TLS: their settings, and certificates of the mesh and of strangers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc

from llamesh.kit.config import Settings
from llamesh.member_authority import MemberAuthority, replace_files
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY, host_name, present
from llamesh.names import MEMBERS
from tests.ports import free_ports

DOMAIN = "mesh.test"
CALLED = ("gateway", "contract", "download", "controller", "quant", "waker")
DAY = timedelta(days=1)


class Secured:
    """The certificates of a mesh in a folder, and its settings."""

    def __init__(self, settings: Settings, folder: Path, members: tuple[str, ...] = CALLED) -> None:
        self.folder = folder
        self.authority = MemberAuthority(folder, DOMAIN)
        # The authority is older than certificates that have expired.
        self.issue("gateway", now=datetime.now(UTC) - 10 * DAY)
        for member in MEMBERS:
            self.issue(member)
        ports = dict(zip(members, free_ports(len(members)), strict=True))
        self.settings = settings.model_copy(
            update={
                "member_addresses": {name: f"127.0.0.1:{port}" for name, port in ports.items()},
                "member_certificates": folder / "{member}",
                "trust_domain": DOMAIN,
            }
        )

    def issue(self, member: str, life: timedelta = DAY, now: datetime | None = None) -> None:
        """Issue a new certificate of a member."""
        self.authority.issue(member, now or datetime.now(UTC), life, renew=True)

    def files(self, member: str) -> dict[str, bytes]:
        """The files of a member as they are now."""
        place = present(self.folder / member)
        return {name: (place / name).read_bytes() for name in (CERTIFICATE, KEY, AUTHORITIES)}

    def replace(self, member: str, **files: bytes) -> None:
        """Replace files of a member in one step: `crt`, `key` or `ca`."""
        names = {"crt": CERTIFICATE, "key": KEY, "ca": AUTHORITIES}
        changed = {names[name]: content for name, content in files.items()}
        replace_files(self.folder / member, self.files(member) | changed)

    def stranger(self, service: str, files: dict[str, bytes] | None) -> grpc.aio.Channel:
        """A channel to a service with these files of a caller, or with none but the authority."""
        name = host_name(DOMAIN, service)
        trusted = self.files(service)[AUTHORITIES]
        credentials = (
            grpc.ssl_channel_credentials(trusted, files[KEY], files[CERTIFICATE])
            if files
            else grpc.ssl_channel_credentials(trusted)
        )
        options = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
        return grpc.aio.secure_channel(self.settings.member_addresses[service], credentials, options=options)


def files_of(folder: Path, domain: str, member: str, now: datetime, life: timedelta = DAY) -> dict[str, bytes]:
    """The files of a member that another authority, in `folder`, has issued."""
    MemberAuthority(folder, domain).issue(member, now, life, renew=True)
    place = present(folder / member)
    return {name: (place / name).read_bytes() for name in (CERTIFICATE, KEY, AUTHORITIES)}
