"""A mesh in a cluster, from its manifests: the real API server, scheduler, kubelet and containers, Envoy, llama.cpp and MinIO."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import sentence
from tests.cluster import containers as image
from tests.cluster import open_load
from tests.cluster.containers import Containers
from tests.cluster.local_cluster import Cluster, cluster_with_image
from tests.mesh.running import ROOT, until
from tools.cluster.layout import BIN, NODE_ADDRESS
from tools.cluster.requirements import lacking
from tools.infra import NAMESPACE

REASON = lacking(ROOT) or image.lacking()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.kubernetes,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
]
DEPLOY = ROOT / "deploy" / "kubernetes"
IMAGE = f"{image.IMAGE}:latest"
MESH, ENGINES = "app.kubernetes.io/name=llamesh-mesh", "app.kubernetes.io/name=llamesh-engine"
PASSWORD = "the password of this test"
KEYS = {"MINIO_ACCESS_KEY": "minioadmin", "MINIO_SECRET_KEY": "minioadmin123"}
STORE = {"MINIO_ENDPOINT": f"{NODE_ADDRESS}:9000", "MINIO_BUCKET": "inference-models", "MINIO_SECURE": "false", **KEYS}
SERVER = {
    "apiVersion": "llamesh.dev/v1alpha1",
    "kind": "ModelServe",
    "metadata": {"name": "chat"},
    "spec": {"modelUuid": "sentence", "modelName": "sentence", "parameters": {"ctxSize": 2048, "flashAttn": "on"}},
}
READY_SECONDS = 120
KILL_CONTROLLER = """
import os, signal, pathlib
for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if entry.read_bytes().endswith(b"-m\\0controller\\0"):
        os.kill(int(entry.parent.name), signal.SIGKILL)
"""


def literals(values: Mapping[str, str]) -> list[str]:
    """Arguments of `kubectl create secret`."""
    return [f"--from-literal={name}={value}" for name, value in values.items()]


def manifests() -> Iterator[Any]:
    """The manifests of the mesh, with the image and the store of this test."""
    for document in yaml.safe_load_all((DEPLOY / "mesh.yaml").read_text(encoding="utf-8")):
        if document["kind"] == "ConfigMap":
            document["data"] |= {"LLAMESH_ENGINE_IMAGE": IMAGE, "LLAMESH_DRAIN_SECONDS": "5"}
            document["data"] |= {"MINIO_ENDPOINT": STORE["MINIO_ENDPOINT"]}
        if document["kind"] == "Deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            container["image"] = IMAGE
        yield document


class PodMesh:
    """The mesh in a pod, and the cluster that runs it and its engines."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self._key = ""

    def start(self) -> None:
        """Start the store, install the mesh as the guide does, and bring the model in."""
        keys = {"MINIO_ROOT_USER": STORE["MINIO_ACCESS_KEY"], "MINIO_ROOT_PASSWORD": STORE["MINIO_SECRET_KEY"]}
        variables = [f"{name}={value}" for name, value in keys.items()]
        words = ["server", str(self.folder / "minio"), f"--address={STORE['MINIO_ENDPOINT']}"]
        self.cluster.start("env", *variables, str(BIN / "minio"), *words, log=self.folder / "minio.log")
        self.kubectl("apply", f"--filename={DEPLOY / 'controller-rights.yaml'}")
        self.kubectl("create", "secret", "generic", "llamesh-models", *literals(STORE))
        secrets = {"JWT_SECRET": "s" * 48, "LLAMESH_ADMIN_PASSWORD": PASSWORD, **KEYS}
        self.kubectl("create", "secret", "generic", "inference-secrets", *literals(secrets))
        self._make_volume()
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(manifests()))
        try:
            self.kubectl("rollout", "status", "deployment/llamesh", f"--timeout={READY_SECONDS}s")
        except AssertionError as error:
            raise AssertionError(self.kubectl("describe", "pods").stdout[-3000:]) from error
        model = sentence.write(self.folder / "sentence.gguf")
        pod = self.kubectl("get", "pods", f"--selector={MESH}", "--output=jsonpath={.items[0].metadata.name}").stdout
        self.kubectl("cp", str(model), f"{pod}:/tmp/sentence.gguf")
        self.llamesh("login", "admin", "--password-stdin", stdin=PASSWORD)
        self.llamesh("pull", "/tmp/sentence.gguf", "--name", "sentence")
        self._key = self.llamesh("keys", "create", "client", "--scope", "infer:*").splitlines()[-1]

    def _make_volume(self) -> None:
        """Make the volume of the mesh: the local cluster provides none."""
        home = self.folder / "home"
        home.mkdir()
        os.chown(home, 1000, 1000)
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "llamesh-home"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "5Gi"},
                "hostPath": {"path": str(home)},
                "claimRef": {"namespace": NAMESPACE, "name": "llamesh-home"},
            },
        }
        self.cluster.apply(volume)

    def llamesh(self, *words: str, stdin: str = "", check: bool = True) -> str:
        """Run the command in the pod of the mesh."""
        words = ("exec", "--stdin", "deployment/llamesh", "--", "llamesh", *words)
        return str(self.kubectl(*words, stdin=stdin, check=check).stdout.strip())

    def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> Any:
        """Run kubectl in the namespace of the mesh."""
        return self.cluster.kubectl(f"--namespace={NAMESPACE}", *words, stdin=stdin, check=check)

    def apply(self, **spec: Any) -> None:
        """Apply the object."""
        self.kubectl("apply", "--filename=-", stdin=json.dumps({**SERVER, "spec": {**SERVER["spec"], **spec}}))  # type: ignore[dict-item]

    def ready(self, replicas: int = 1) -> None:
        """Wait until the object is ready and has so many engines."""
        try:
            self.kubectl("wait", "ms/chat", "--for=condition=Ready", f"--timeout={READY_SECONDS}s")
            path = f"jsonpath={{.status.readyReplicas}}={replicas}"
            self.kubectl("wait", "ms/chat", f"--for={path}", f"--timeout={READY_SECONDS}s")
        except AssertionError as error:
            raise AssertionError(self.kubectl("get", "ms,pods,events", "--output=wide").stdout) from error

    def ask(self, seconds: float = 0.1, rate: float = 10, log: Path | None = None) -> Any:
        """Send requests at a constant rate; what became of them, or, with `log`, the process that writes it there."""
        address = self.kubectl("get", "service/llamesh", "--output=jsonpath={.spec.clusterIP}").stdout
        return open_load.ask(self.cluster, address, self._key, seconds, rate, log)

    def pods(self) -> list[Any]:
        """The engine pods."""
        found: list[Any] = json.loads(self.kubectl("get", "pods", f"--selector={ENGINES}", "--output=json").stdout)[
            "items"
        ]
        return found


@pytest.fixture(scope="module")
def mesh(containers: Containers) -> Iterator[PodMesh]:
    with cluster_with_image(containers, "pod-mesh-") as (cluster, folder):
        cluster.kubectl("apply", f"--filename={DEPLOY / 'modelserves.yaml'}")
        found = PodMesh(cluster, folder)
        found.start()
        yield found


def test_an_applied_object_answers_through_envoy(mesh: PodMesh) -> None:
    mesh.apply()
    mesh.ready()
    assert mesh.ask() == "Counter({'ok': 1})"
    shown = mesh.kubectl("get", "ms").stdout.split("\n")
    assert shown[0].split() == ["NAME", "MODEL", "STATE", "READY", "ENDPOINT", "AGE"]
    assert shown[1].split()[:4] == ["chat", "sentence", "READY", "1"]
    assert "READY" in mesh.llamesh("ps")
    assert "AllReady" in mesh.kubectl("describe", "ms/chat").stdout
    (pod,) = mesh.pods()
    assert {"type": "llamesh.dev/routed", "status": "True"}.items() <= next(
        each for each in pod["status"]["conditions"] if each["type"] == "llamesh.dev/routed"
    ).items()


def test_a_pod_outside_the_mesh_reaches_no_engine(mesh: PodMesh) -> None:
    mesh.apply()
    mesh.ready()
    (engine,) = [pod["status"]["podIP"] for pod in mesh.pods()]
    stranger = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "namespace": "default"},
        "spec": {
            "containers": [
                {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "1000000"]}
            ]
        },
    }
    mesh.cluster.apply(stranger)
    mesh.cluster.kubectl("wait", "pod/stranger", "--for=condition=Ready", "--timeout=60s")
    program = f"import urllib.request as r; print(r.urlopen('http://{engine}:8080/health', timeout=3).status)"

    def answer() -> str:
        words = ("exec", "stranger", "--", "python3", "-c", program)
        return str(mesh.cluster.kubectl(*words, check=False).stdout.strip())

    until(lambda: answer() == "200", 30, "an answer without the policy")
    mesh.kubectl("apply", f"--filename={ROOT / 'deploy' / 'kubernetes' / 'engine-policy.yaml'}")
    until(lambda: answer() == "", 60, "no answer with the policy")
    assert mesh.ask() == "Counter({'ok': 1})"


def test_no_request_is_lost_while_servers_change(mesh: PodMesh) -> None:
    mesh.apply()
    mesh.ready()
    log = mesh.folder / "load.log"
    load = mesh.ask(45, 10, log)
    mesh.kubectl("scale", "ms/chat", "--replicas=2")
    mesh.ready(2)
    before = {pod["metadata"]["name"] for pod in mesh.pods()}
    mesh.apply(replicas=2, parameters={"ctxSize": 4096})

    def replaced() -> bool:
        names = {pod["metadata"]["name"] for pod in mesh.pods()}
        return len(names) == 2 and not names & before

    until(replaced, 50, "new pods in place of the old ones")
    mesh.kubectl("scale", "ms/chat", "--replicas=1")
    mesh.ready(1)
    assert load.wait(120) == 0
    assert log.read_text().strip() == "Counter({'ok': 450})"


def test_a_request_wakes_a_sleeping_server(mesh: PodMesh) -> None:
    mesh.apply()
    mesh.ready()
    mesh.llamesh("sleep", "sentence")
    until(lambda: not mesh.pods(), 60, "no pods")
    assert mesh.kubectl("get", "ms/chat", "--output=jsonpath={.status.state}").stdout == "SLEEPING"
    assert mesh.ask(1, 5) == "Counter({'ok': 5})"
    mesh.ready()


def test_what_is_wrong_is_said_where_it_is_looked_for(mesh: PodMesh) -> None:
    wrong = {**SERVER, "spec": {"modelUuid": "sentence", "parameters": {"ctxSize": 1}}}
    done = mesh.kubectl("apply", "--filename=-", stdin=json.dumps(wrong), check=False)
    assert "spec.parameters.ctxSize in body should be greater than or equal to 64" in done.stderr
    done = mesh.kubectl("scale", "ms/chat", "--replicas=0", check=False)
    assert "a server sleeps by idleSleep" in done.stderr
    missing = {**SERVER, "metadata": {"name": "missing"}, "spec": {"modelUuid": "nowhere"}}
    mesh.kubectl("apply", "--filename=-", stdin=json.dumps(missing))
    mesh.kubectl("wait", "ms/missing", "--for=condition=Accepted=False", "--timeout=60s")
    reason = 'jsonpath={.status.conditions[?(@.type=="Accepted")].reason}'
    assert mesh.kubectl("get", "ms/missing", f"--output={reason}").stdout == "ModelNotFound"
    mesh.kubectl("delete", "ms/missing")


def test_an_object_that_is_deleted_while_the_controller_is_down_is_cleaned_up(mesh: PodMesh) -> None:
    mesh.apply()
    mesh.ready()
    mesh.kubectl("exec", "deployment/llamesh", "--", "python3", "-c", KILL_CONTROLLER)
    mesh.kubectl("delete", "ms/chat")
    until(lambda: not mesh.pods(), 60, "no pods")
    until(lambda: "sentence" not in mesh.llamesh("ps", check=False), 60, "no server")
    mesh.apply()
    mesh.ready()
    assert mesh.ask() == "Counter({'ok': 1})"


def test_a_call_declares_and_stops_as_an_object_does(mesh: PodMesh) -> None:
    mesh.kubectl("delete", "ms", "--all")
    # The pods of an object finish their requests after it has gone.
    until(lambda: not mesh.pods(), 60, "no pods")
    mesh.llamesh("serve", "sentence", "--", "--ctx-size", "2048")
    (item,) = json.loads(mesh.kubectl("get", "ms", "--output=json").stdout)["items"]
    assert item["spec"]["parameters"] == {"ctxSize": 2048}
    assert mesh.ask() == "Counter({'ok': 1})"
    mesh.llamesh("stop", "sentence")
    assert mesh.kubectl("get", "ms,deployments,services,pods", f"--selector={ENGINES}", "--output=name").stdout == ""
    assert mesh.kubectl("get", "ms", "--output=name").stdout == ""
