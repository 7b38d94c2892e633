"""A mesh that Helm has installed into the local cluster, with a PostgreSQL and a MinIO on the node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import sentence
from tests.cluster import containers, open_load
from tests.cluster.helm import CHART, KEYS, RELEASE, SECRETS, helm, merged
from tests.cluster.local_cluster import Cluster
from tests.mesh.running import ROOT, until
from tests.own_postgres import PASSWORD, OwnPostgres
from tools.cluster.layout import BIN, NODE_ADDRESS
from tools.infra import NAMESPACE

ENGINES = "app.kubernetes.io/name=llamesh-engine"
READY_SECONDS = 180
MODELS = f"{NODE_ADDRESS}:9100"
SERVER = {
    "apiVersion": "llamesh.dev/v1alpha1",
    "kind": "ModelServe",
    "metadata": {"name": "chat"},
    "spec": {"modelUuid": "sentence", "modelName": "sentence", "parameters": {"ctxSize": 2048, "flashAttn": "on"}},
}
_SMALL = {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}}
VALUES: Mapping[str, Any] = {
    "image": {"repository": containers.IMAGE, "tag": "latest", "pullPolicy": "Never"},
    "engineImage": {"repository": containers.IMAGE, "tag": "latest"},
    "secrets": {
        **SECRETS,
        **KEYS,
        "databaseUrl": f"postgresql://postgres:{PASSWORD}@{NODE_ADDRESS}:5432/mesh".replace(" ", "%20"),
        "extra": {"HF_TOKEN": "first"},
    },
    "store": {"endpoint": f"{NODE_ADDRESS}:9000"},
    "drainSeconds": 10,
    "download": {**_SMALL, "replicas": 2, "httpSourceHosts": [MODELS]},
    **dict.fromkeys(("gateway", "contract", "controller", "envoy"), _SMALL),
    "networkPolicies": {"enabled": False},
}


class ChartMesh:
    """The mesh, and the cluster that it is in."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.values = dict(VALUES)
        self.address = self._key = ""

    def start(self) -> None:
        """Start what the mesh needs on the node, install it, and bring the model in."""
        self._start_postgres()
        keys = f"MINIO_ROOT_USER={KEYS['minioAccessKey']}", f"MINIO_ROOT_PASSWORD={KEYS['minioSecretKey']}"
        words = ["server", str(self.folder / "minio"), f"--address={NODE_ADDRESS}:9000"]
        self.cluster.start("env", *keys, str(BIN / "minio"), *words, log=self.folder / "minio.log")
        models = self.folder / "models"
        models.mkdir()
        sentence.write(models / "sentence.gguf")
        host, port = MODELS.split(":")
        words = [sys.executable, "-m", "http.server", port, f"--bind={host}", f"--directory={models}"]
        self.cluster.start(*words, log=self.folder / "models.log")
        self.install()
        self.llamesh("login", "admin", "--password-stdin", stdin=SECRETS["adminPassword"])
        self.llamesh("pull", f"http://{MODELS}/sentence.gguf", "--name", "sentence")
        self._key = self.llamesh("keys", "create", "client", "--scope", "infer:*").splitlines()[-1]

    def install(self) -> None:
        """Install the chart."""
        try:
            self.helm("install", RELEASE, CHART, "--wait", "--timeout=300s", values=self.values)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state()}") from error
        self.address = self.kubectl("get", "service/llamesh", "--output=jsonpath={.spec.clusterIP}").stdout

    def upgrade(self, **more: Any) -> None:
        """Upgrade it with other values, and wait until that is done and no earlier pod finishes its requests any more."""
        self.values = merged(self.values, more)
        try:
            self.helm("upgrade", RELEASE, CHART, "--wait", "--timeout=300s", values=self.values)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state()}") from error
        until(lambda: not any("deletionTimestamp" in pod["metadata"] for pod in self.pods()), 120, "no pod that ends")

    def make_front_door(self) -> None:
        """Make a certificate for the ports of Envoy, as a Secret."""
        home = self.folder / "front-door"
        words = [sys.executable, "-m", "llamesh.cli.main", "tls", "init", "--name", "llm.example.com"]
        variables = {**os.environ, "LLAMESH_HOME": str(home), "PYTHONPATH": str(ROOT)}
        subprocess.run(words, env=variables, stdout=subprocess.DEVNULL, timeout=60, check=True)
        files = [f"--cert={home}/tls/server.pem", f"--key={home}/tls/server.key"]
        self.kubectl("create", "secret", "tls", "front-door", *files)

    def helm(self, *words: str | Path, values: Mapping[str, Any] | None = None) -> str:
        """Run Helm against the cluster; its output."""
        return helm(*words, f"--kubeconfig={self.cluster.layout.kubeconfig}", values=values).stdout

    def kubectl(self, *words: str, stdin: str = "", check: bool = True) -> Any:
        """Run kubectl in the namespace of the mesh."""
        return self.cluster.kubectl(f"--namespace={NAMESPACE}", *words, stdin=stdin, check=check)

    def llamesh(self, *words: str, stdin: str = "") -> str:
        """Run the command in the network of the node."""
        variables = {
            "LLAMESH_URL": f"http://{self.address}:8200",
            "LLAMESH_HOME": str(self.folder / "home"),
            "PYTHONPATH": str(ROOT),
        }
        given = [f"{name}={value}" for name, value in variables.items()]
        done = self.cluster.command("run", "env", *given, sys.executable, "-m", "llamesh.cli.main", *words, stdin=stdin)
        return done.stdout.strip()

    def serve(self) -> None:
        """Apply the object and wait until it is ready."""
        self.kubectl("apply", "--filename=-", stdin=json.dumps(SERVER))
        try:
            self.kubectl("wait", "ms/chat", "--for=condition=Ready", "--timeout=110s")
        except AssertionError as error:
            raise AssertionError(self.state()) from error

    def ask(self, seconds: float = 0.1, rate: float = 10, log: Path | None = None, stop: Path | None = None) -> Any:
        """Send chats through Envoy's Service at a constant rate: see open_load."""
        return open_load.ask(self.cluster, self.address, self._key, seconds, rate, log, stop)

    def pods(self, selector: str = "app.kubernetes.io/part-of=llamesh") -> list[Any]:
        """The pods with these labels."""
        done = self.kubectl("get", "pods", f"--selector={selector}", "--output=json")
        found: list[Any] = json.loads(done.stdout)["items"]
        return found

    def secret(self, name: str) -> Any:
        """Which Secret it is, and its data."""
        found = json.loads(self.kubectl("get", f"secret/{name}", "--output=json").stdout)
        return {"uid": found["metadata"]["uid"], **found["data"]}

    def edit_secret(self, name: str, **data: str) -> None:
        """Change keys of a Secret, as a person does."""
        self.kubectl("patch", f"secret/{name}", f"--patch={json.dumps({'stringData': data})}")

    def state(self) -> str:
        """What there is, and the last words of what does not run: for the message of a test that fails."""
        shown = self.kubectl("get", "all,ms", "--output=wide", check=False).stdout
        pods = json.loads(self.kubectl("get", "pods", "--output=json").stdout)["items"]
        for pod in pods:
            if not all(each.get("ready") for each in pod["status"].get("containerStatuses") or [{}]):
                name = pod["metadata"]["name"]
                shown += f"\n== {name}\n" + self.kubectl("logs", name, "--tail=20", check=False).stdout
                shown += self.kubectl("describe", f"pod/{name}", check=False).stdout[-1500:]
        return str(shown)[-12000:]

    def _start_postgres(self) -> None:
        """Make a server here, and start it again in the network of the node, which has an address that pods reach."""
        place = self.folder / "postgres"
        place.mkdir()
        made = OwnPostgres(place)
        made.ask_for_passwords()
        made.sql("CREATE DATABASE mesh")
        (made.data / "pg_hba.conf").write_text("host all all all scram-sha-256\n")
        made.stop()
        user = made.data.owner()
        identity = ["setpriv", f"--reuid={user}", f"--regid={made.data.group()}", "--clear-groups"]
        log = self.folder / "postgres.log"
        words = [made.programs / "postgres", "-D", made.data, "-h", NODE_ADDRESS, "-p", "5432", "-k", made.data]
        self.cluster.start(*identity, *words, log=log)
        until(lambda: "ready to accept connections" in log.read_text(), 30, "PostgreSQL on the node")
