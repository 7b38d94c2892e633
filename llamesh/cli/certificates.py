"""`llamesh certificates`: certificates of members that call each other over TCP, for those who have no cert-manager."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.printing import note, say
from llamesh.installation import install_command


def certificates(
    *member: str,
    folder: Path | None = None,
    hours: float | None = None,
    renew: Annotated[bool, Parameter(negative="")] = False,
    new_authority: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make the certificates by which members know each other over TCP, and the authority that signs them.

    A second run renews those of whose life two thirds have passed; so does `llamesh up`, while the authority is on its machine.

    Members and Envoy take new certificates within seconds.

    Parameters
    ----------
    member
        gateway, contract, download, controller, quant or envoy. None: all.
    folder
        Folder that gets a folder for each member, and one for the authority. Default: that of LLAMESH_MEMBER_CERTIFICATES, else
        LLAMESH_HOME/members.
    hours
        Life of a certificate, at least 1. Default: 24, or what the one before had. A stolen one is of use until its end.
    renew
        Make new certificates in any case.
    new_authority
        Make a new authority first. It is trusted from now on and signs in ten minutes; run the command again then.
    """
    from llamesh.certificates import CertificateError
    from llamesh.cli.mesh.member_renewal import own_folder
    from llamesh.cli.mesh.settings import read_settings
    from llamesh.member_authority import MIN_LIFE, MemberAuthority
    from llamesh.names import MEMBERS

    if unknown := [each for each in member if each not in MEMBERS]:
        raise CommandError(
            f"there is no member {unknown[0]}", hint=f"members are {', '.join(MEMBERS)}", code=Exit.USAGE
        )
    life = timedelta(hours=hours) if hours is not None else None
    if life is not None and life < MIN_LIFE:
        raise CommandError(f"--hours {hours:g} is less than 1", hint="an hour is the least", code=Exit.USAGE)
    settings = read_settings(os.environ)
    place = folder.absolute() if folder else own_folder(settings) or settings.home / "members"
    authority, now = MemberAuthority(place, settings.trust_domain), datetime.now(UTC)
    try:
        if new_authority and not authority.replace_authority(now):
            note("the last new authority does not sign yet: no other is made")
        for each in member or MEMBERS:
            found = authority.issue(each, now, life, renew=renew)
            note(f"{place / each}: until {found.ends:%Y-%m-%d %H:%M}Z")
    except ModuleNotFoundError as error:
        raise CommandError(
            "this installation is the client only: it makes no certificates", hint=install_command("mesh", "engine")
        ) from error
    except CertificateError as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error
    except OSError as error:
        raise CommandError(f"{error.filename or place}: {error.strerror or error}") from error
    say(f"LLAMESH_MEMBER_CERTIFICATES={place}/{{member}}")
