"""The chart in a cluster: every member and Envoy in a pod of its own, mutual TLS between them, engines as pods, a user from outside.

The tests follow the life of a release, in this order.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator

import pytest
import yaml

from engine import sentence
from tests.cluster import containers as image
from tests.cluster import helm
from tests.cluster.chart_mesh import ENGINES, ChartMesh
from tests.cluster.containers import Containers
from tests.cluster.local_cluster import cluster_with_image
from tests.mesh.running import ROOT, until
from tools.cluster.requirements import lacking
from tools.infra import manifests

REASON = lacking(ROOT) or image.lacking() or helm.lacking()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.kubernetes,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
]
SECRETS = ("inference-secrets", "llamesh-models", "llamesh-authority", "llamesh-gateway-tls")
LONGEST_LOAD_SECONDS = 900
STRANGER = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "stranger", "namespace": "default"},
    "spec": {
        "containers": [
            {
                "name": "main",
                "image": f"{image.IMAGE}:latest",
                "imagePullPolicy": "Never",
                "command": ["sleep", "1000000"],
            }
        ]
    },
}
# What a port says to a program that begins HTTP/2, in clear and in TLS without a certificate: `data` if it got frames of HTTP/2.
CALLER = """
import socket, ssl, sys
def call(host, port, secure):
    try:
        link = socket.create_connection((host, port), 3)
    except OSError:
        return "unreachable"
    try:
        if secure:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            link = context.wrap_socket(link)
        link.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        link.settimeout(5)
        found = link.recv(9)
    except OSError as error:
        return "refused"
    return "data" if found and found[0] != 0x15 else "refused"
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    print(*(call(host, int(port), secure) for secure in (False, True)))
"""


@pytest.fixture(scope="module")
def mesh(containers: Containers) -> Iterator[ChartMesh]:
    with cluster_with_image(containers, "chart-mesh-") as (cluster, folder):
        cluster.apply(STRANGER)
        found = ChartMesh(cluster, folder)
        found.start()
        yield found


def services(mesh: ChartMesh) -> dict[str, str]:
    """Addresses of all ports of members, by their names."""
    items = json.loads(mesh.kubectl("get", "services", "--output=json").stdout)["items"]
    return {
        f"{item['metadata']['name']} {port['name']}": f"{item['spec']['clusterIP']}:{port['port']}"
        for item in items
        if item["metadata"]["name"].startswith("llamesh-")
        for port in item["spec"]["ports"]
    }


def calls(mesh: ChartMesh, places: list[str]) -> list[str]:
    """What a pod outside the mesh gets at each place, in clear and in TLS."""
    done = mesh.cluster.kubectl("exec", "stranger", "--", "python3", "-c", CALLER, *places)
    return str(done.stdout).strip().splitlines()


def test_every_object_is_one_that_the_api_server_takes(mesh: ChartMesh) -> None:
    # There are no definitions of cert-manager here, no namespace for Argo and no class of priority.
    most = {
        "certificates": {"issuer": "mesh"},
        "quant": {"engine": "embedded"},
        "pods": {"priorityClassName": ""},
    }
    strict = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "--filename=-")
    for values in (helm.LEAST, helm.merged(helm.MOST, most)):
        mesh.kubectl(*strict, stdin="\n---\n".join(json.dumps(item) for item in helm.rendered(values)))
    for text in manifests().values():
        mesh.kubectl(*strict, stdin=text)


def test_a_chat_and_the_test_of_the_release_succeed(mesh: ChartMesh) -> None:
    mesh.serve()
    assert mesh.ask() == "Counter({'ok': 1})"
    mesh.helm("test", helm.RELEASE, "--timeout=120s")
    assert "READY" in mesh.llamesh("ps")
    assert len(mesh.pods("app=envoy")) == len(mesh.pods("app=download")) == 2


def test_no_port_of_a_member_answers_a_stranger(mesh: ChartMesh) -> None:
    mesh.cluster.kubectl("wait", "pod/stranger", "--for=condition=Ready", "--timeout=60s")
    found = services(mesh)
    assert {name.split()[0] for name in found} >= {
        f"llamesh-{name}" for name in ("gateway", "contract", "download", "controller")
    }
    assert dict(zip(found, calls(mesh, list(found.values())), strict=True)) == dict.fromkeys(found, "refused refused")
    assert calls(mesh, [f"{mesh.address}:8200"]) == ["data refused"], "Envoy answers everybody, in clear"


def test_an_upgrade_loses_no_request_and_changes_no_secret_that_is_there(mesh: ChartMesh) -> None:
    mesh.serve()
    mesh.edit_secret("inference-secrets", HF_TOKEN="edited")
    secrets = {name: mesh.secret(name) for name in SECRETS}
    before = {pod["metadata"]["name"] for pod in mesh.pods()}
    log, stop = mesh.folder / "load.log", mesh.folder / "load.stop"
    load = mesh.ask(LONGEST_LOAD_SECONDS, 8, log, stop)
    mesh.upgrade(
        settings={"MAX_REPLICAS": "6"},
        secrets={
            "jwtSecret": "another" * 8,
            "adminPassword": "another",
            "minioSecretKey": "another-secret",
            "extra": {"HF_TOKEN": "another", "QUANT_SERVICE_TOKEN": "added"},
        },
        networkPolicies={"enabled": True},
    )

    def replaced() -> bool:
        left = {pod["metadata"]["name"] for pod in mesh.pods()} & before
        return not {name for name in left if "certificates" not in name}

    until(replaced, 120, "new pods only")
    assert load.poll() is None, "the load ended before the upgrade did"
    stop.touch()
    assert load.wait(120) == 0
    answered = re.fullmatch(r"Counter\(\{'ok': (\d+)\}\)", log.read_text().strip())
    assert answered, log.read_text()
    assert int(answered[1]) > 100
    secrets["inference-secrets"]["QUANT_SERVICE_TOKEN"] = b64encode(b"added").decode()
    assert {name: mesh.secret(name) for name in SECRETS} == secrets


def test_policies_let_nobody_else_reach_members_and_engines(mesh: ChartMesh) -> None:
    mesh.serve()
    engine = mesh.pods(ENGINES)[0]["status"]["podIP"]
    gateway = mesh.pods("app=gateway")[0]["status"]["podIP"]
    places = [*services(mesh).values(), f"{engine}:8080", f"{gateway}:9210"]
    until(lambda: set(calls(mesh, places)) == {"unreachable unreachable"}, 60, "no way to members and engines")
    assert mesh.ask() == "Counter({'ok': 1})"
    mesh.helm("test", helm.RELEASE, "--timeout=120s")
    mesh.llamesh("pull", "http://10.255.0.1:9100/sentence.gguf", "--name", "again")


def test_autoscaling_takes_over_the_replicas_that_run(mesh: ChartMesh) -> None:
    values = helm.merged(mesh.values, {"envoy": {"autoscaling": {"enabled": True, "minReplicas": 1}}})

    def replicas() -> object:
        words = ("upgrade", helm.RELEASE, helm.CHART, "--dry-run=server", "--output=json")
        manifest = json.loads(mesh.helm(*words, values=values))["manifest"]
        items = [item for item in yaml.safe_load_all(manifest) if item]
        (envoy,) = [
            item for item in items if (item["kind"], item["metadata"]["name"]) == ("Deployment", "llamesh-envoy")
        ]
        return envoy["spec"].get("replicas")

    assert replicas() == 2, "without the field it would be one for a moment"
    # As an autoscaler does it, and back.
    for number in ("3", "2"):
        mesh.kubectl("scale", "deployment/llamesh-envoy", f"--replicas={number}")
        assert replicas() is None, "the field belongs to the autoscaler"


def test_a_rollback_goes_back_to_the_values_before_but_not_to_their_secrets(mesh: ChartMesh) -> None:
    mesh.serve()
    mesh.edit_secret("inference-secrets", HF_TOKEN="rotated")
    mesh.edit_secret("llamesh-models", ADDED="by a person")
    secrets = {name: mesh.secret(name) for name in SECRETS}
    assert "MAX_REPLICAS" in mesh.kubectl("get", "configmap/inference-config", "--output=json").stdout
    mesh.helm("rollback", helm.RELEASE, "1", "--wait", "--timeout=300s")
    assert "MAX_REPLICAS" not in mesh.kubectl("get", "configmap/inference-config", "--output=json").stdout
    assert {name: mesh.secret(name) for name in SECRETS} == secrets
    assert mesh.ask() == "Counter({'ok': 1})"


def test_an_uninstallation_leaves_what_the_notes_say(mesh: ChartMesh) -> None:
    notes = mesh.helm("get", "notes", helm.RELEASE)
    mesh.kubectl("delete", "ms", "--all", "--timeout=100s")
    mesh.helm("uninstall", helm.RELEASE, "--wait", "--timeout=120s")
    until(lambda: not mesh.pods("app.kubernetes.io/name"), 90, "no pods")
    kinds = "deployments,statefulsets,services,configmaps,serviceaccounts,roles,rolebindings,networkpolicies,cronjobs,jobs,pdb"
    left = mesh.kubectl("get", kinds, "--selector=app.kubernetes.io/part-of=llamesh", "--output=name").stdout.split()
    assert left == ["networkpolicy.networking.k8s.io/llamesh-engines"], (
        "engines are protected as long as there are some"
    )
    kept = mesh.kubectl("get", "secrets", "--output=name").stdout.split()
    assert {name.removeprefix("secret/") for name in kept if "helm.release" not in name} == {
        "inference-secrets",
        "llamesh-models",
        "llamesh-authority",
        *(f"llamesh-{name}-tls" for name in ("gateway", "contract", "download", "controller", "envoy")),
    }
    assert "kubectl delete secret inference-secrets llamesh-models" in notes
    assert "kubectl delete networkpolicy llamesh-engines" in notes
    assert "app.kubernetes.io/managed-by=llamesh-certificates" in notes
    assert mesh.cluster.kubectl("get", "crd/modelserves.llamesh.dev", "--output=name").stdout
    # The data is still there: the same values find it.
    mesh.install()
    mesh.serve()
    assert mesh.ask() == "Counter({'ok': 1})"


def test_a_certificate_of_a_secret_is_shown_at_the_front_door(mesh: ChartMesh) -> None:
    mesh.serve()
    mesh.make_front_door()
    mesh.upgrade(tls={"secret": "front-door"}, publicHost="llm.example.com")
    assert calls(mesh, [f"{mesh.address}:8200"])[0].endswith(" data"), "HTTP/2 over TLS"
    said = mesh.helm("test", helm.RELEASE, "--timeout=120s", "--logs")
    assert f"chat with sentence: {sentence.SENTENCE}" in said
    endpoint = mesh.kubectl("get", "ms/chat", "--output=jsonpath={.status.endpoint}").stdout
    assert endpoint.startswith("https://llm.example.com:8080/")
