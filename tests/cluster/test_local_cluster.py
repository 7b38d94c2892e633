"""The local cluster of tools/cluster runs pods, serves, resolves and enforces as clusters do, and leaves nothing, also after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.cluster.local_cluster import Cluster
from tests.mesh.running import ROOT, until
from tools.cluster.images import write_image
from tools.cluster.requirements import lacking

BUSYBOX = shutil.which("busybox")
IMAGE = "localhost/busybox:1"
REASON = lacking(ROOT) or ("" if BUSYBOX else "not installed: apt-get install busybox-static")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.kubernetes,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(REASON), reason=REASON or "nothing is missing"),
]
READY_SECONDS = 90
# wget's own -T crashes in Debian's static build.
FETCH = ("/bin/busybox", "timeout", "3", "/bin/busybox", "wget", "-q", "-O", "-")


def pod(name: str, *command: str, **changes: object) -> dict[str, object]:
    """A pod that satisfies the strictest Pod Security Standard."""
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["/bin/busybox", *command]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "containers": [{**container, "securityContext": restricted, **changes}],
            "terminationGracePeriodSeconds": 0,
        },
    }


SERVER = pod(
    "web",
    *("sh", "-c", "echo hello from a pod > /tmp/index.html; exec /bin/busybox httpd -f -p 8080 -h /tmp"),
    readinessProbe={"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
)
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
}
CLIENT = pod("client", "sleep", "1000000")
NOBODY_ENTERS = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "web"},
    "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]},
}


def fetched(cluster: Cluster, address: str) -> str:
    """What a pod gets from an address, or nothing."""
    return cluster.kubectl("exec", "client", "--", *FETCH, address, check=False).stdout


def machine() -> dict[str, object]:
    """What a cluster must not change: mounts, interfaces, addresses, rules and namespaces of this machine."""

    def output(*words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    return {
        "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "interfaces": sorted(psutil.net_if_addrs()),
        "routes": output("ip", "route", "show", "table", "all"),
        "rules": [line for line in output("iptables-save").splitlines() if "KUBE" in line or "CNI" in line],
        "sets": output("ipset", "list", "-name"),
        "namespaces": output("ip", "netns", "list"),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "overcommit": Path("/proc/sys/vm/overcommit_memory").read_text(),
        "panic": Path("/proc/sys/kernel/panic").read_text(),
    }


@pytest.fixture(scope="module")
def before() -> dict[str, object]:
    return machine()


@pytest.fixture(scope="module")
def cluster(before: dict[str, object]) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    found = Cluster(folder)
    try:
        found.command("up", "--port=0")
        archive = folder / "busybox.tar"
        assert BUSYBOX
        write_image(archive, IMAGE, {"bin/busybox": Path(BUSYBOX)}, ["/bin/busybox"])
        found.command("load", archive)
        yield found
    finally:
        found.command("down")
        shutil.rmtree(folder)


def test_only_its_owner_reads_keys(cluster: Cluster) -> None:
    private = [cluster.layout.kubeconfig, *cluster.layout.keys.glob("*.key"), *cluster.layout.keys.glob("*.kubeconfig")]
    assert len(private) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    for path in private:
        assert "insecure-skip-tls-verify" not in path.read_text()


def test_a_pod_runs_and_is_served_by_name(cluster: Cluster) -> None:
    cluster.kubectl("label", "namespace/default", "pod-security.kubernetes.io/enforce=restricted")
    cluster.apply(SERVER, SERVICE, CLIENT)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/web", "pod/client", f"--timeout={READY_SECONDS}s")
    until(lambda: fetched(cluster, "http://web.default.svc.cluster.local") == "hello from a pod\n", 30, "an answer")
    assert fetched(cluster, "http://web") == "hello from a pod\n"
    assert cluster.kubectl("logs", "client").stdout == ""


def test_a_service_answers_in_the_network_of_the_node(cluster: Cluster) -> None:
    address = cluster.kubectl("get", "service/web", "--output=jsonpath={.spec.clusterIP}").stdout
    answer = cluster.command("run", BUSYBOX or "", *FETCH[1:3], BUSYBOX or "", *FETCH[4:], f"http://{address}")
    assert answer.stdout == "hello from a pod\n"


def test_pod_security_refuses_a_privileged_pod(cluster: Cluster) -> None:
    privileged = pod("privileged", "sleep", "1", securityContext={"privileged": True})
    done = cluster.kubectl("apply", "--filename=-", stdin=json.dumps(privileged), check=False)
    assert 'violates PodSecurity "restricted' in done.stderr


def test_who_is_nobody_may_read_nothing(cluster: Cluster) -> None:
    anonymous = ("get", "pods", "--kubeconfig=/dev/null", f"--server={server(cluster)}")
    trusted = f"--certificate-authority={cluster.layout.certificate('authority')}"
    done = cluster.kubectl(*anonymous, trusted, "--token=nobody", check=False)
    assert "logged in" in done.stderr or "Unauthorized" in done.stderr
    account = "--as=system:serviceaccount:default:default"
    assert "forbidden" in cluster.kubectl("get", "secrets", account, check=False).stderr


def server(cluster: Cluster) -> str:
    config = yaml.safe_load(cluster.layout.kubeconfig.read_text())
    return str(config["clusters"][0]["cluster"]["server"])


def test_a_network_policy_is_enforced(cluster: Cluster) -> None:
    assert fetched(cluster, "http://web") == "hello from a pod\n"
    cluster.apply(NOBODY_ENTERS)
    until(lambda: fetched(cluster, "http://web") == "", 30, "a closed pod")
    cluster.kubectl("delete", "networkpolicy/web")
    until(lambda: fetched(cluster, "http://web") == "hello from a pod\n", 30, "an open pod")


def test_a_second_one_is_refused_in_the_same_folder(cluster: Cluster) -> None:
    done = cluster.command("up", check=False)
    assert done.returncode == 1
    assert "a cluster runs in" in done.stderr


@pytest.mark.parametrize("ending", ["down", "kill"])
def test_nothing_is_left(cluster: Cluster, before: dict[str, object], ending: str) -> None:
    if cluster.command("status", check=False).returncode:
        cluster.command("up", "--port=0")
    processes = cluster.processes()
    assert len(processes) > 10
    groups = cluster.groups()
    assert groups
    assert all((group / "cgroup.procs").exists() for group in groups)
    if ending == "kill":
        os.kill(processes[0].pid, signal.SIGKILL)
        until(lambda: not any(map(alive, processes)), 30, "the end of all processes")
        assert cluster.command("status", check=False).returncode == 1
    cluster.command("down")
    assert not any(map(alive, processes))
    assert not any(group.exists() for group in groups)
    assert [path.name for path in cluster.layout.folder.iterdir()] == ["lock"]
    assert machine() == before


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
