"""The manifests of the program that makes certificates agree with the Secrets that it keeps and with the calls that it makes."""

from __future__ import annotations

from typing import Any

import yaml

from controller.kubernetes import certificates
from controller.kubernetes.certificate_run import RIGHTS
from controller.kubernetes.certificate_secrets import secret_of
from llamesh.member_authority import AUTHORITY
from llamesh.names import MEMBERS
from tests.unit.house import ROOT


def documents(name: str) -> dict[str, Any]:
    found = yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8"))
    return {each["kind"]: each for each in found}


def test_the_rights_are_for_the_secrets_of_members_only() -> None:
    found = documents(RIGHTS)
    create, change = found["Role"]["rules"]
    assert create == {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}
    assert sorted(change.pop("resourceNames")) == sorted(secret_of(place) for place in (AUTHORITY, *MEMBERS))
    assert change == {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "patch"]}
    assert found["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": "llamesh-certificates"}]


def test_the_jobs_run_the_program_one_at_a_time_without_privileges() -> None:
    job, cron = documents("deploy/kubernetes/certificates.yaml")["List"]["items"]
    assert (job["kind"], cron["kind"]) == ("Job", "CronJob")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert cron["spec"]["schedule"].split()[1:] == ["*"] * 4, "every hour"
    assert cron["spec"]["jobTemplate"]["spec"] == job["spec"]
    assert job["spec"]["activeDeadlineSeconds"] < 3600
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python3", "-m", certificates.__name__]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["serviceAccountName"] == documents(RIGHTS)["ServiceAccount"]["metadata"]["name"]
