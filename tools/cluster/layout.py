"""Names, addresses and files of a cluster.

All files lie below one folder. Addresses exist only in the cluster's own network namespace, so they collide with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = ROOT / ".tools" / "bin"
PROGRAM = BIN / "kubernetes"
"""All programs of Kubernetes in one file; its first argument names the one that runs (tools/kubernetes/main.go)."""
FOLDER = ROOT / ".tools" / "cluster"
PORT = 16443
"""Port of the API server on this machine's loopback interface, unless another one is wanted."""

NODE = "local"
NODE_ADDRESS = "10.255.0.1"
API_PORT = 6443
"""Port of the API server in the network of the cluster."""
ETCD_PORT = 2379
KUBELET_PORT = 10250
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
PODS = "10.244.0.0/16"
NODE_PODS = "10.244.0.0/24"
DOMAIN = "cluster.local"

PAUSE = "localhost/llamesh-pause:1"
"""Image of the container that holds the namespaces of a pod; also of containers that run a mounted program."""
CONTAINERD = "/run/containerd/containerd.sock"
"""Its socket, in the mount namespace of the cluster."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Layout:
    """The files of a cluster."""

    folder: Path

    @property
    def lock(self) -> Path:
        """Locked while the cluster runs; the only file that outlives it."""
        return self.folder / "lock"

    @property
    def process(self) -> Path:
        """Holds the id of the process that everything of the cluster descends from."""
        return self.folder / "process"

    @property
    def control_groups(self) -> Path:
        """Lists the folders of the control groups, one on each line."""
        return self.folder / "control-groups"

    @property
    def kubeconfig(self) -> Path:
        """Leads an administrator to the cluster from this machine."""
        return self.folder / "kubeconfig"

    @property
    def keys(self) -> Path:
        """Certificates, keys and the kubeconfigs of the programs."""
        return self.folder / "keys"

    @property
    def configuration(self) -> Path:
        """Configuration files of the programs."""
        return self.folder / "configuration"

    @property
    def logs(self) -> Path:
        """Output of the programs, one file each."""
        return self.folder / "logs"

    @property
    def state(self) -> Path:
        """What the programs keep: the database, images, containers, volumes."""
        return self.folder / "state"

    def key(self, name: str) -> str:
        """Path of a private key."""
        return str(self.keys / f"{name}.key")

    def certificate(self, name: str) -> str:
        """Path of a certificate."""
        return str(self.keys / f"{name}.crt")

    def kubeconfig_of(self, name: str) -> str:
        """Path of the kubeconfig of a program."""
        return str(self.keys / f"{name}.kubeconfig")
