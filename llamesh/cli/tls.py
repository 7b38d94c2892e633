"""`llamesh tls`: a certificate for a network without a public authority, and trust in one."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from llamesh.cli.bounded_file import read_bounded
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.printing import note, say
from llamesh.client.trust import Authority, authorities, kept_authority
from llamesh.installation import install_command
from llamesh.locations import expanded, home_directory, make_private

app = App(name="tls", help="Certificates for the ports of a mesh.")

SETTINGS = ("LLAMESH_TLS_CERTIFICATE", "LLAMESH_TLS_KEY")
_MAX_FILE = 1 << 20
"""Bytes that are read of a file of authorities."""


@app.command
def init(
    *,
    name: Annotated[list[str] | None, Parameter(negative="")] = None,
    drop: Annotated[list[str] | None, Parameter(negative="")] = None,
    renew: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make an authority of this mesh's own and a certificate for this machine, and let the mesh use it.

    A second run keeps the certificate and its names; it renews one that expires within 30 days or lacks a name.

    A mesh that runs takes a renewed certificate within seconds.

    Parameters
    ----------
    name
        A further host name or address at which clients reach the mesh, or *.example.com; may be repeated.
    drop
        A name that the certificate has and a new one does not get; may be repeated. A name of this machine comes back with the next run.
    renew
        Make a new certificate of the server in any case. The authority stays.
    """
    from llamesh import certificates
    from llamesh.cli.mesh import authority, certificate_checks, host_names, restore_mark

    home = home_directory(os.environ)
    files = authority.Files(home)
    names, without = name or [], drop or []
    if both := [each for each in names if each in without]:
        raise CommandError(
            f"--name and --drop both name {', '.join(both)}", hint="leave one of them out", code=Exit.USAGE
        )
    now = datetime.now(UTC)
    try:
        restore_mark.check(home)
        _check_settings(home, (files.certificate, files.key))
        before = certificates.names(files.certificate)
        absent = [each for each in without if authority.as_dropped(each) not in before]
        if absent and not before:
            hint = "without --drop, `llamesh tls init` makes one; a name of this machine can be dropped then"
            raise CommandError(
                f"--drop {absent[0]}: there is no certificate to drop a name from", hint=hint, code=Exit.USAGE
            )
        make_private(home)
        certificate, made = authority.issue(
            files, [*host_names.names_of_this_machine(), *names], now, renew=renew, without=without
        )
        fingerprint = authority.fingerprint(files.authority)
        said = _use(home, files.certificate, files.key)
    except ModuleNotFoundError as error:
        raise CommandError(
            "this installation is the client only: it makes no certificates", hint=install_command("mesh", "engine")
        ) from error
    except (certificates.CertificateError, restore_mark.HalfRestoredError) as error:
        raise CommandError(str(error), hint=error.remedy, code=Exit.USAGE) from error
    except OSError as error:
        words = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
        raise CommandError(words, hint="LLAMESH_HOME names another folder") from error
    verb = "made" if made else "still valid"
    note(f"{verb}: {files.certificate}, until {certificate.ends:%Y-%m-%d}, for {', '.join(certificate.names)}")
    if gone := [each for each in before if each not in certificate.names]:
        note(f"no longer for {', '.join(gone)}")
    if absent:
        note(f"--drop changes nothing: the certificate had no name {', '.join(absent)}")
    finding = certificate_checks.end_of_authority(files, now)
    if finding.state != "ok":
        note(f"{finding.check}: {finding.found}\n    -> {finding.fix}")
    note(said)
    say(_trust(files.authority, fingerprint))


@app.command
def trust(file: str, /) -> None:
    """Trust the authority of a mesh, beside those trusted before: this user's llamesh command and SDK then take its certificates.

    Compare the SHA-256 that is printed with the one that `llamesh tls init` printed on the machine of the mesh.

    Parameters
    ----------
    file
        The authority's certificate (ca.pem), as `llamesh tls init` made it on the machine of the mesh.
    """
    try:
        found = authorities(read_bounded(expanded(file), _MAX_FILE))
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}", code=Exit.USAGE) from error
    except ValueError as error:
        hint = "copy ca.pem from LLAMESH_HOME/tls of the mesh's machine"
        raise CommandError(f"{file}: {error}", hint=hint, code=Exit.USAGE) from error
    from llamesh.private_files import write_private

    kept = kept_authority()
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = _kept(kept)
    write_private(kept, "".join({each.pem: None for each in (*before, *found)}).encode())
    for each in found:
        note(f"trusts {each.name}, SHA-256 {each.fingerprint}")
    note(f"kept in {kept}; to end the trust, remove it")


def _kept(file: Path) -> list[Authority]:
    """The authorities trusted so far. CommandError if there is a file that cannot be used: it would be replaced."""
    try:
        return authorities(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise CommandError(
            f"the authorities trusted so far cannot be read: {file}: {getattr(error, 'strerror', None) or error}",
            hint="restore the file, or remove it and trust each authority again",
        ) from error


def _use(home: Path, certificate: Path, key: Path) -> str:
    """Name the files in the settings, unless the settings name others that exist. Return what is used then."""
    from llamesh.cli.mesh import settings_file
    from llamesh.cli.mesh.authority import is_same
    from llamesh.cli.mesh.settings import read_settings
    from llamesh.private_files import write_private

    config, content = _settings(home)
    found = read_settings(os.environ, tolerant=True)
    named = (found.tls_certificate, found.tls_key)
    if all(is_same(file, made) for file, made in zip(named, (certificate, key), strict=True)):
        return "the settings name it already: a mesh that runs takes a renewed certificate by itself"
    both, missing = " and ".join(SETTINGS), [file for file in named if file and _is_missing(file)]
    by_environment = any(os.environ.get(setting) for setting in SETTINGS)
    if any(named) and not missing:
        where = "the environment" if by_environment else config
        return f"{where} names another certificate, which stays in use; {both} decide"
    if by_environment:
        return f"the environment names {_gone(missing)}: unset {both}, then run `llamesh tls init` again"
    write_private(
        config,
        settings_file.with_values(content, dict(zip(SETTINGS, map(str, (certificate, key)), strict=True))).encode(),
    )
    instead = f" instead of {_gone(missing)}" if missing else ""
    return f"{config} names it{instead}: the next `llamesh up` speaks https"


def _settings(home: Path) -> tuple[Path, str]:
    """The file of settings and its content. CommandError if it is no text."""
    from llamesh.text_files import NotTextError, read_text

    # A link to the file stays.
    config = Path(os.path.realpath(os.environ.get("LLAMESH_CONFIG") or home / "config.env"))
    try:
        return config, read_text(config) if config.exists() else ""
    except NotTextError as error:
        raise CommandError(str(error), code=Exit.USAGE) from error


def _check_settings(home: Path, files: tuple[Path, Path]) -> None:
    """CommandError if the settings cannot be changed to name the files: it is found before anything is made."""
    from llamesh.cli.mesh import settings_file

    config, _ = _settings(home)
    if not all(settings_file.can_hold(str(file)) for file in files):
        raise CommandError(
            f"{config} can hold no path with a control character, ${{ or bytes that are not UTF-8: {files[0].parent}",
            hint="set LLAMESH_HOME to a folder with another name",
            code=Exit.USAGE,
        )


def _gone(missing: list[str]) -> str:
    return f"{' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} missing"


def _is_missing(file: str) -> bool:
    """Whether there is no such file. One that cannot be seen is none that is missing."""
    try:
        expanded(file).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _trust(file: Path, fingerprint: str) -> str:
    return f"""
  others trust the authority {file}
  SHA-256 {fingerprint}
  (copy this file to them; ca.key beside it never leaves this machine)

  llamesh     llamesh tls trust ca.pem      (or LLAMESH_CA=ca.pem)
  a shell     eval "$(llamesh env)"         (after llamesh tls trust: curl, Python, Node.js and gRPC trust it)
  curl        curl --cacert ca.pem https://...
  Python      SSL_CERT_FILE=ca.pem          (httpx, the OpenAI SDK, aiohttp; requests: REQUESTS_CA_BUNDLE)
  Node.js     NODE_EXTRA_CA_CERTS=ca.pem
  gRPC        GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=ca.pem
  browsers    Firefox and Chrome: settings, certificates, authorities, import
  macOS       sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain ca.pem
  Debian      sudo cp ca.pem /usr/local/share/ca-certificates/llamesh.crt && sudo update-ca-certificates"""
