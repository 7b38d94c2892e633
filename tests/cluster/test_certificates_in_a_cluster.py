"""The certificates of members as Secrets of a real cluster, made by the Job and the CronJob with only the rights of their manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from controller.kubernetes.certificate_secrets import secret_of
from llamesh.member_authority import AUTHORITY
from llamesh.names import MEMBERS, QUANT
from tests.cluster import containers as image
from tests.cluster.containers import Containers
from tests.cluster.local_cluster import Cluster, cluster_with_image
from tests.mesh.running import ROOT, until
from tools.cluster.requirements import lacking
from tools.infra import NAMESPACE

REASON = lacking(ROOT) or image.lacking()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.kubernetes,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
]
DEPLOY = ROOT / "deploy" / "kubernetes"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:llamesh-certificates"
IMAGE = f"{image.IMAGE}:latest"
NAMES = {secret_of(place) for place in (AUTHORITY, *MEMBERS) if place != QUANT}
# Less than the time after which kubectl itself is stopped: see Cluster.kubectl.
SECONDS = 110
# What a member does with LLAMESH_MEMBER_CERTIFICATES=/certificates.
READ = """
from datetime import UTC, datetime
from pathlib import Path
from llamesh.member_certificates import CURRENT, read
folder = Path("/certificates")
assert (folder / CURRENT).is_symlink()
print(read(folder, "llamesh", "gateway", datetime.now(UTC)).ends - datetime.now(UTC))
"""


class Issuing:
    """A cluster with the manifests of certificates."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> Any:
        """Run kubectl in the namespace of the mesh."""
        return self.cluster.kubectl(f"--namespace={NAMESPACE}", *words, stdin=stdin, check=check)

    def install(self) -> None:
        """Apply the manifests, with the image of this test."""
        self.kubectl("apply", f"--filename={DEPLOY / 'certificate-rights.yaml'}")
        jobs = (DEPLOY / "certificates.yaml").read_text(encoding="utf-8").replace("inference-mesh:latest", IMAGE)
        self.kubectl("apply", "--filename=-", stdin=jobs)

    def start(self, name: str) -> None:
        """Start a run of the CronJob, as a Job of nobody: a CronJob removes its own finished ones but the last."""
        words = ("create", "job", name, "--from=cronjob/llamesh-certificates", "--dry-run=client", "--output=json")
        made = json.loads(self.kubectl(*words).stdout)
        made["metadata"].pop("ownerReferences", None)
        self.kubectl("create", "--filename=-", stdin=json.dumps(made))

    def finish(self, name: str, condition: str = "Complete") -> str:
        """Wait for the end of a run; what it said."""
        try:
            self.kubectl("wait", f"job/{name}", f"--for=condition={condition}", f"--timeout={SECONDS}s")
        except AssertionError as error:
            shown = self.kubectl("describe", "pods,jobs").stdout[-3000:]
            raise AssertionError(f"{shown}\n{self.said(name)}") from error
        return self.said(name)

    def said(self, name: str) -> str:
        """What the pods of a run said."""
        return str(self.kubectl("logs", f"--selector=job-name={name}", check=False).stdout)

    def secrets(self) -> dict[str, Any]:
        """The Secrets of members and of their authority."""
        found = json.loads(self.kubectl("get", "secrets", "--output=json").stdout)["items"]
        return {item["metadata"]["name"]: item for item in found if item["metadata"]["name"] in NAMES}

    def may(self, verb: str, what: str) -> bool:
        """Whether the account of the program may do something."""
        return bool(self.kubectl("auth", "can-i", verb, what, f"--as={ACCOUNT}", check=False).stdout.strip() == "yes")


@pytest.fixture(scope="module")
def issuing(containers: Containers) -> Iterator[Issuing]:
    with cluster_with_image(containers, "certificates-") as (cluster, _):
        found = Issuing(cluster)
        found.install()
        found.finish("llamesh-certificates-first")
        yield found


def reader() -> dict[str, Any]:
    """A pod that mounts the Secret of the gateway and reads it as the gateway does."""
    (job, _) = yaml.safe_load((DEPLOY / "certificates.yaml").read_text(encoding="utf-8"))["items"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container |= {"image": IMAGE, "command": ["python3", "-c", READ]}
    container["volumeMounts"].append({"name": "certificates", "mountPath": "/certificates", "readOnly": True})
    pod["volumes"].append({"name": "certificates", "secret": {"secretName": "llamesh-gateway-tls"}})
    pod |= {"serviceAccountName": "default", "automountServiceAccountToken": False}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader", "namespace": NAMESPACE}, "spec": pod}


def test_the_first_run_makes_secrets_that_a_member_reads_in_its_pod(issuing: Issuing) -> None:
    found = issuing.secrets()
    assert found.keys() == NAMES
    assert {item["type"] for name, item in found.items() if name.endswith("-tls")} == {"kubernetes.io/tls"}
    issuing.cluster.apply(reader())
    issuing.kubectl("wait", "pod/reader", "--for=jsonpath={.status.phase}=Succeeded", f"--timeout={SECONDS}s")
    assert issuing.kubectl("logs", "pod/reader").stdout.startswith("23:")


def test_a_later_run_changes_nothing_until_something_is_due(issuing: Issuing) -> None:
    before = issuing.secrets()
    issuing.start("later")
    issuing.finish("later")
    assert issuing.secrets() == before
    issuing.kubectl("delete", "secret", "llamesh-gateway-tls")
    issuing.start("mends")
    issuing.finish("mends")
    found = issuing.secrets()
    assert found.keys() == NAMES
    assert {name for name in NAMES if found[name] != before[name]} == {"llamesh-gateway-tls"}


def test_runs_at_once_make_one_authority(issuing: Issuing) -> None:
    issuing.kubectl("delete", "secret", *NAMES)
    names = ("first", "second", "third")
    for name in names:
        issuing.start(name)
    for name in names:
        issuing.finish(name)
    found = issuing.secrets()
    assert found.keys() == NAMES
    assert len({item["data"]["ca.crt"] for item in found.values()}) == 1


def test_the_account_has_no_other_rights(issuing: Issuing) -> None:
    assert issuing.may("create", "secrets")
    for name in NAMES:
        assert issuing.may("get", f"secrets/{name}")
        assert issuing.may("patch", f"secrets/{name}")
        assert not issuing.may("delete", f"secrets/{name}")
    for verb in ("get", "list", "watch", "patch", "delete"):
        assert not issuing.may(verb, "secrets")
        assert not issuing.may(verb, "secrets/inference-secrets")
    assert not issuing.may("create", "pods")
    assert not issuing.may("get", "configmaps")


def test_what_a_person_must_repair_is_said(issuing: Issuing) -> None:
    issuing.kubectl("label", "secret/llamesh-envoy-tls", "app.kubernetes.io/managed-by=another", "--overwrite")
    issuing.start("refuses")
    said = issuing.finish("refuses", "Failed")
    assert "the Secret llamesh-envoy-tls cannot be used" in said
    reason = 'jsonpath={.status.conditions[?(@.type=="Failed")].reason}'
    assert issuing.kubectl("get", "job/refuses", f"--output={reason}").stdout == "PodFailurePolicy", (
        "it is not tried again"
    )
    issuing.kubectl("delete", "secret/llamesh-envoy-tls")

    issuing.kubectl("delete", "rolebinding/llamesh-certificates")
    issuing.start("forbidden")
    until(lambda: "no right to get secrets/llamesh-" in issuing.said("forbidden"), SECONDS, "the missing right")
    issuing.install()
    issuing.finish("forbidden")
    assert issuing.secrets().keys() == NAMES
