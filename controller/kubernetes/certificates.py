"""Keeps the certificates of members, and the authority that signs them, as Secrets: `python -m controller.kubernetes.certificates`.

For clusters without cert-manager: deploy/kubernetes/certificates.yaml runs it once, and then every hour. What a run does is in
`controller.kubernetes.certificate_run`.

Every hour is right. A certificate of 24 hours is due for its last 8, so seven runs in a row may fail. A rotation of the authority takes two
runs: the first makes all members trust the new one, which signs ten minutes later, so in the second run. Members have long read it then.
Nothing waits for the second run, as the earlier authority signs until then and is trusted until the next rotation. A run every ten minutes
would gain nothing, and would come just when the new authority begins to sign.

Invariant: nothing of a key is in a log or in a message. Exit codes: 0 done; 1 the cluster does not answer, or refuses; 2 a person must
repair a Secret, a setting or an argument.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from controller.kubernetes.certificate_run import MemberSecrets, RefusedError, Wanted, keep
from controller.kubernetes.certificate_secrets import UnusableSecretError
from llamesh.kit.config import Settings
from llamesh.kit.config_loading import WrongSettingsError, load_settings
from llamesh.kit.kubernetes_api import KubernetesApi, NoClusterError
from llamesh.kit.logs import configure_logs
from llamesh.names import MEMBERS, QUANT
from llamesh.shutdown import unwound

MANAGER = "llamesh-certificates"
MIN_HOURS = 6.0
"""Shortest life of a certificate in hours: two hourly runs are in its last third."""
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _read_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    def members(value: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(each.strip() for each in value.split(",") if each.strip()))
        if not found or not set(found) <= set(MEMBERS):
            raise argparse.ArgumentTypeError(f"{value!r} is no list of {','.join(MEMBERS)}")
        return found

    def life(value: str) -> timedelta:
        try:
            if MIN_HOURS <= float(value) <= 8760:
                return timedelta(hours=float(value))
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{value!r} is no number of hours between {MIN_HOURS:g} and 8760")

    parser = argparse.ArgumentParser(
        prog="python -m controller.kubernetes.certificates",
        description="Issue and renew the certificates of members as Secrets of a namespace.",
    )
    parser.add_argument("--members", type=members, help="as a,b,c; default: all, quant only with LLAMESH_QUANT")
    parser.add_argument("--hours", type=life, help=f"life of new certificates, at least {MIN_HOURS:g}; default: 24")
    parser.add_argument(
        "--namespace", help="default: that of the pod's service account, elsewhere LLAMESH_LEASE_NAMESPACE"
    )
    parser.add_argument(
        "--new-authority", action="store_true", help="make a new authority, which signs ten minutes later"
    )
    return parser.parse_args(words)


def _namespace(settings: Settings) -> str:
    """Return the namespace of the pod's service account, or that of the settings where KUBECONFIG names the cluster."""
    if "KUBECONFIG" not in os.environ and _NAMESPACE_FILE.exists():
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    return settings.lease_namespace


async def _run(wanted: Wanted, namespace: str) -> None:
    api = KubernetesApi(MANAGER)
    try:
        await keep(MemberSecrets(api, namespace), wanted)
    finally:
        await api.close()


def main(words: Sequence[str] | None = None) -> int:
    """Run once; return the exit code."""
    arguments = _read_arguments(words)
    try:
        settings = load_settings()
        configure_logs("certificates", settings.log_level)
        members = arguments.members or tuple(each for each in MEMBERS if each != QUANT or settings.quant)
        wanted = Wanted(members, settings.trust_domain, arguments.hours, arguments.new_authority)
        asyncio.run(_run(wanted, arguments.namespace or _namespace(settings)))
    except (WrongSettingsError, NoClusterError, UnusableSecretError) as error:
        sys.stderr.write(f"certificates: {error}\n")
        return 2
    except RefusedError as error:
        sys.stderr.write(f"certificates: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"certificates: {error.filename or 'the temporary folder'}: {error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(unwound(main))
