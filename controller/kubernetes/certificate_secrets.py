"""The Secrets with the certificates of members and their authority: names, manifests, and the files in them. No I/O.

Mounted as a folder, the Secret of a member is what LLAMESH_MEMBER_CERTIFICATES names: the kubelet replaces `tls.crt`, `tls.key` and
`ca.crt` together, by the link `..data` (ADR 48). That of the authority is for `controller.kubernetes.certificates` only: its key signs for
all members.

Invariant: a Secret that another program made, or whose content is no certificates and keys that belong together, is never used or replaced.
No text of this module has a part of a content.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from llamesh.kit.kubernetes_api import Object
from llamesh.member_authority import AUTHORITY, OLD_KEY
from llamesh.member_certificates import AUTHORITIES, CERTIFICATE, KEY

Files = dict[str, bytes]
"""Contents of files by their names."""

LABELS = {"app.kubernetes.io/part-of": "llamesh", "app.kubernetes.io/managed-by": "llamesh-certificates"}
_MAKER = "app.kubernetes.io/managed-by"
_CERT_MANAGER = "cert-manager.io/"
"""Prefix of the annotations that cert-manager gives its Secrets."""


class UnusableSecretError(Exception):
    """A Secret that only a person can repair. The text names it and the remedy."""


def secret_of(place: str) -> str:
    """Return the name of the Secret of a member, or of the authority."""
    return f"llamesh-{place}" if place == AUTHORITY else f"llamesh-{place}-tls"


def files_of(place: str, item: Object) -> Files:
    """Return the files in the Secret of a member, or of the authority. UnusableSecretError if it cannot be used."""
    metadata = item["metadata"]
    if any(name.startswith(_CERT_MANAGER) for name in metadata.get("annotations") or {}):
        raise unusable(place, "it is cert-manager's", "either cert-manager or this program makes all of them")
    if (metadata.get("labels") or {}).get(_MAKER) != LABELS[_MAKER]:
        raise unusable(place, f"it lacks the label {_MAKER}={LABELS[_MAKER]}, so another program made it")
    needed, more = ((AUTHORITIES, KEY), (OLD_KEY,)) if place == AUTHORITY else ((CERTIFICATE, KEY, AUTHORITIES), ())
    data = item.get("data") or {}
    files: Files = {}
    for name in (name for name in (*needed, *more) if name in needed or name in data):
        try:
            files[name] = b64decode(data.get(name) or "", validate=True)
        except ValueError:
            files[name] = b""
        if not files[name].strip():
            raise unusable(place, f"it has no {name}")
    authorities = _certificates(place, files, AUTHORITIES)
    if place == AUTHORITY:
        for authority, name in zip(authorities, (KEY, OLD_KEY), strict=False):
            _check_key(place, files, name, authority)
    else:
        _check_key(place, files, KEY, _certificates(place, files, CERTIFICATE)[0])
    return files


def new_secret(place: str, files: Mapping[str, bytes]) -> Object:
    """Return the manifest of a new Secret. It has no owner: it stays until somebody removes it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret_of(place), "labels": LABELS},
        "type": "Opaque" if place == AUTHORITY else "kubernetes.io/tls",
        "data": _encoded(files),
    }


def changed_secret(before: Object, files: Mapping[str, bytes]) -> Object:
    """Return the merge patch that gives a Secret new files, unless it has changed since it was read."""
    return {"metadata": {"resourceVersion": before["metadata"]["resourceVersion"]}, "data": _encoded(files)}


def unusable(place: str, why: str, more: str = "") -> UnusableSecretError:
    """Return the error for a Secret, with the remedy."""
    name = secret_of(place)
    then = (
        "the next run makes a new authority and issues all certificates" if place == AUTHORITY else "it is made again"
    )
    remedy = f"restore it, or run `kubectl delete secret {name}`: {then}"
    return UnusableSecretError(f"the Secret {name} cannot be used: {why}; {f'{more}: ' if more else ''}{remedy}")


def _encoded(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: b64encode(content).decode("ascii") for name, content in files.items()}


def _certificates(place: str, files: Files, name: str) -> list[Any]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(files[name])
    except ValueError:
        # The text of the library may show what it has read.
        raise unusable(place, f"{name} is no certificate in PEM") from None


def _check_key(place: str, files: Files, name: str, certificate: Any) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if name not in files:
        raise unusable(place, f"it has no {name}")
    try:
        key: Any = load_pem_private_key(files[name], None)
        belongs = key.public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise unusable(place, f"{name} is no key in PEM that is not encrypted") from None
    if not belongs:
        raise unusable(place, f"{name} does not belong to the certificate beside it")
