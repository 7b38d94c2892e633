"""The chart as Helm renders it: what values make of it, and what it refuses."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from tests.cluster.helm import LEAST, MOST, helm, lacking, merged, refusal, rendered
from tests.mesh.running import until
from tests.own_postgres import own_postgres
from tests.ports import free_ports
from tools.infra import CHART, INFRA, PLACEHOLDER, manifests

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(lacking()), reason=lacking() or "nothing is missing")]
ALL = pytest.mark.parametrize("values", [LEAST, MOST], ids=["least", "most"])
TOKENS = {"llamesh-controller", "llamesh-quant", "llamesh-certificates", "llamesh-first-certificates"}
"""Service accounts whose pods get a token of the cluster."""
READER = {"modelsAccessKey": "reader", "modelsSecretKey": "reader-secret"}
"""Keys of the S3 server that may only read."""


def templates(items: list[Any]) -> list[Any]:
    """The specifications of all pods, with their names."""
    found = []
    for item in items:
        if item["kind"] == "Pod":
            found.append(item["spec"])
        elif item["kind"] == "CronJob":
            found.append(item["spec"]["jobTemplate"]["spec"]["template"]["spec"])
        elif "template" in item.get("spec", {}):
            found.append(item["spec"]["template"]["spec"])
    return found


def of(items: list[Any], kind: str, name: str = "") -> list[Any]:
    return [each for each in items if each["kind"] == kind and name in ("", each["metadata"]["name"])]


@ALL
def test_lint_finds_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(dict(values)))
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, f"--values={file}").stdout


@ALL
def test_every_pod_is_restricted_and_has_no_token_but_who_needs_one(values: dict[str, Any]) -> None:
    pods = templates(rendered(values))
    assert len(pods) > 5
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        secured = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == secured
        assert container["resources"]["requests"]
        account = pod.get("serviceAccountName", "")
        assert account in TOKENS if account else pod["automountServiceAccountToken"] is False


@ALL
def test_a_pod_has_its_own_certificate_only(values: dict[str, Any]) -> None:
    for item in of(rendered(values), "Deployment"):
        volumes = item["spec"]["template"]["spec"]["volumes"]
        secrets = {each["secret"]["secretName"] for each in volumes if "secret" in each}
        assert secrets - {"front-door"} == {f"{item['metadata']['name']}-tls"}


def test_policies_select_every_pod_but_that_of_the_hook() -> None:
    values = merged(MOST, {"certificates": {"issuer": "mesh"}})
    items = rendered(values)
    names = [item["spec"]["podSelector"]["matchLabels"] for item in of(items, "NetworkPolicy")]
    free = set()
    for item in items:
        spec = item.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        labels = item["metadata"]["labels"] if item["kind"] == "Pod" else template and template["metadata"]["labels"]
        if labels and not any(each.items() <= labels.items() for each in names):
            free.add((item["kind"], item["metadata"]["name"]))
    assert free == {("Job", "llamesh-first-certificates")}, (
        "a wrong port in the policies can be corrected by an upgrade"
    )


def test_only_envoy_has_the_key_of_the_front_door() -> None:
    with_key = [
        item["metadata"]["name"]
        for item in of(rendered(MOST), "Deployment")
        for volume in item["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "front" and {"key": "tls.key", "path": "tls.key"} in volume["secret"]["items"]
    ]
    assert with_key == ["llamesh-envoy"]


def test_a_member_gets_the_secrets_that_it_reads() -> None:
    secrets = {
        item["metadata"]["name"]: {
            each["name"] for each in item["spec"]["template"]["spec"]["containers"][0]["env"] if "valueFrom" in each
        }
        for item in of(rendered(LEAST), "Deployment")
    }
    assert secrets["llamesh-envoy"] == set()
    assert secrets["llamesh-controller"] == {"JWT_SECRET"}
    assert secrets["llamesh-contract"] == {"JWT_SECRET", "DATABASE_URL"}
    assert "MINIO_SECRET_KEY" in secrets["llamesh-download"]


@ALL
def test_no_revision_of_a_release_has_secrets(values: dict[str, Any]) -> None:
    secrets = of(rendered(values), "Secret")
    assert {item["metadata"]["name"] for item in secrets} == {"inference-secrets", "llamesh-models"}
    assert of(rendered(values, "--no-hooks"), "Secret") == []
    for item in secrets:
        events = item["metadata"]["annotations"]["helm.sh/hook"]
        assert events == "pre-install,pre-upgrade", "no rollback writes it"
        assert item["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "never"


def test_other_namespaces_get_keys_that_read_only() -> None:
    values = merged(LEAST, {"allowedNamespaces": ["llamesh", "teams"], "secrets": READER})
    for item in of(rendered(values), "Secret", "llamesh-models"):
        keys = {name: b64decode(item["data"][name]).decode() for name in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")}
        assert keys == {"MINIO_ACCESS_KEY": "reader", "MINIO_SECRET_KEY": "reader-secret"}
    own = rendered(
        merged(LEAST, {"allowedNamespaces": ["teams"], "secrets": {"existing": "mine", "existingModels": "theirs"}})
    )
    assert of(own, "Secret") == []


def test_a_change_of_a_setting_replaces_the_pods() -> None:
    def annotations(values: dict[str, Any]) -> set[str]:
        return {
            item["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
            for item in of(rendered(values), "Deployment")
        }

    before = annotations(dict(LEAST))
    assert len(before) == 1
    assert annotations(merged(LEAST, {"settings": {"MAX_REPLICAS": "9"}})) != before
    assert annotations(merged(LEAST, {"drainSeconds": 30})) != before


def test_an_autoscaled_deployment_starts_with_the_least_replicas() -> None:
    values = merged(LEAST, {"envoy": {"autoscaling": {"enabled": True, "minReplicas": 3}}})
    (envoy,) = of(rendered(values), "Deployment", "llamesh-envoy")
    assert envoy["spec"]["replicas"] == 3


def test_a_pod_has_time_for_its_drain() -> None:
    for item in of(rendered(merged(LEAST, {"drainSeconds": 100})), "Deployment"):
        pod = item["spec"]["template"]["spec"]
        sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > sleep + 100


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"secrets": {"jwtSecret": ""}}, "secrets.jwtSecret is missing: make one with `openssl rand -hex 32`"),
        ({"secrets": {"jwtSecret": PLACEHOLDER}}, "jwtSecret"),
        ({"secrets": {"adminPassword": ""}}, "secrets.adminPassword is missing"),
        ({"secrets": {"databaseUrl": ""}}, "or set postgres.enabled"),
        ({"secrets": {"existing": "mine"}}, "secrets.existingModels is missing"),
        ({"allowedNamespaces": ["llamesh", "teams"]}, "may read Secrets in the namespace teams"),
        (
            {"allowedNamespaces": ["teams"], "secrets": {"modelsAccessKey": "reader"}},
            "secrets.modelsSecretKey are missing",
        ),
        ({"store": {"endpoint": ""}}, "store.endpoint is missing"),
        ({"store": {"endpoint": "https://minio"}}, "endpoint"),
        ({"minio": {"enabled": True}}, "store.endpoint and minio.enabled exclude each other"),
        ({"certificates": {"issuer": "cert-manager"}}, "certificates.issuerRef.name is missing"),
        (
            {"settings": {"LLAMESH_HOME": "/tmp", "MINIO_ENDPOINT": "x:1"}},
            "settings.MINIO_ENDPOINT is set by the chart",
        ),
        ({"settings": {"max_replicas": "8"}}, "max_replicas"),
        ({"gateway": {"replicas": 2}}, "replicas"),
        ({"contract": {"replicas": 2}}, "replicas"),
        ({"controller": {"replicas": 2}}, "replicas"),
        ({"enovy": {"replicas": 2}}, "enovy"),
        ({"envoy": {"replica": 2}}, "replica"),
        ({"quant": {"enabled": True, "engine": "argo"}}, "quant.argo.image is missing"),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused_in_words(more: dict[str, Any], words: str) -> None:
    assert words in refusal(merged(LEAST, more))


def test_the_definition_stays_and_is_the_generated_one() -> None:
    (definition,) = of(rendered(LEAST), "CustomResourceDefinition")
    assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert definition == yaml.safe_load((CHART.parent / "kubernetes" / "modelserves.yaml").read_text())


def test_the_rights_of_the_controller_are_those_of_the_plain_manifest() -> None:
    plain = list(yaml.safe_load_all((CHART.parent / "kubernetes" / "controller-rights.yaml").read_text()))
    ours = rendered(merged(LEAST, {"allowedNamespaces": ["llamesh", "teams"], "secrets": READER}))
    for name in ("llamesh-servers", "llamesh-leader"):
        (wanted,) = [each["rules"] for each in of(plain, "Role", name)]
        assert all(each["rules"] == wanted for each in of(ours, "Role", name))
    assert {each["metadata"].get("namespace") for each in of(ours, "Role", "llamesh-servers")} == {"llamesh", "teams"}
    assert of(ours, "ClusterRole")[0]["rules"] == of(plain, "ClusterRole")[0]["rules"]


def test_the_plain_manifests_are_those_of_the_chart() -> None:
    assert {path.name: path.read_text(encoding="utf-8") for path in INFRA.glob("*.yaml")} == manifests(), (
        "run python -m tools.infra"
    )


def test_the_bundled_postgres_makes_its_database_once(tmp_path: Path) -> None:
    (item,) = of(rendered(MOST), "StatefulSet", "postgres")
    (container,) = item["spec"]["template"]["spec"]["containers"]
    ready = container["readinessProbe"]["exec"]["command"]
    stop = container["lifecycle"]["preStop"]["exec"]["command"]
    (port,) = free_ports(1)
    with own_postgres() as server:
        data = server.data.parent / "pgdata"
        # What a pod left that was killed while it made the folder.
        (data.parent / "pgdata.new" / "base").mkdir(parents=True)
        owner = [f"--reuid={server.data.owner()}", f"--regid={server.data.group()}", "--clear-groups"]
        as_owner = ["setpriv", *owner] if os.geteuid() == 0 else []
        for folder in (data.parent, data.parent / "pgdata.new", data.parent / "pgdata.new" / "base"):
            shutil.chown(folder, server.data.owner(), server.data.group())
        given = {"POSTGRES_USER": "admin", "POSTGRES_PASSWORD": "securepassword123", "POSTGRES_DB": "inference_db"}
        place = {"PATH": f"{server.programs}:{os.environ['PATH']}", "PGDATA": str(data), "PGPORT": str(port)}

        def run(*statements: str) -> Any:
            """Start it as its pod does, run statements, and stop it as its pod does."""
            process = subprocess.Popen([*as_owner, *container["command"]], env={**os.environ, **given, **place})
            try:
                until(lambda: not subprocess.run(ready, env=place, check=False).returncode, 60, "PostgreSQL")
                return asyncio.run(asked(port, statements))
            finally:
                words = [word.replace("/var/lib/postgresql/data/pgdata", str(data)) for word in stop]
                subprocess.run([*as_owner, *words], env={**os.environ, **place}, timeout=30, check=True)
                assert process.wait(30) == 0

        run("CREATE TABLE kept (number int)", "INSERT INTO kept VALUES (7)")
        assert run("SELECT number FROM kept") == 7
        assert not (data.parent / "pgdata.new").exists()


def test_the_bundled_postgres_removes_no_files_of_others(tmp_path: Path) -> None:
    (item,) = of(rendered(MOST), "StatefulSet", "postgres")
    (container,) = item["spec"]["template"]["spec"]["containers"]
    other = tmp_path / "pgdata" / "something"
    other.mkdir(parents=True)
    done = subprocess.run(
        container["command"],
        env={**os.environ, "LC_ALL": "C", "PGDATA": str(tmp_path / "pgdata")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode, "it started"
    assert "not empty" in done.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "pgdata", other]


async def asked(port: int, statements: Sequence[str]) -> Any:
    """Run statements with the password over TCP; the value of the last."""
    url = f"postgresql://admin:securepassword123@127.0.0.1:{port}/inference_db"
    connection = await asyncpg.connect(url, timeout=60)
    try:
        return [await connection.fetchval(statement) for statement in statements][-1]
    finally:
        await connection.close()
