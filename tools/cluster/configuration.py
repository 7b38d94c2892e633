"""Configuration files of containerd, the kubelet, kube-proxy and the pod network."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tools.cluster.layout import (
    CONTAINERD,
    DNS_SERVICE,
    DOMAIN,
    NODE,
    NODE_PODS,
    PAUSE,
    PODS,
    Layout,
)

CNI_PROGRAMS = "/usr/lib/cni"
"""Where Debian's containernetworking-plugins has them."""


def _containerd(layout: Layout) -> str:
    state = layout.state / "containerd"
    # Without the capability to lower it, a container cannot have the adjustment that Kubernetes wants: then it gets the lowest possible.
    return f"""\
version = 2
root = "{state}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{layout.configuration}/cni"
"""


def _kubelet(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": layout.certificate("authority")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": layout.certificate("kubelet-server"),
        "tlsPrivateKeyFile": layout.key("kubelet-server"),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": DOMAIN,
        # Pods do not use the name servers of this machine, which their network does not reach.
        "resolvConf": "",
        # The machine's disk and memory are not the cluster's: pods are not evicted because of others.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "enforceNodeAllocatable": [],
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def _proxy(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": layout.kubeconfig_of("proxy")},
        "mode": "iptables",
        "clusterCIDR": PODS,
        "hostnameOverride": NODE,
        # Sizes of connection tracking are the whole machine's: left as they are.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
    }


def _pod_network() -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": NODE_PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]}


def write(layout: Layout) -> None:
    """Write all of them."""
    folder = layout.configuration
    (folder / "cni").mkdir(parents=True)
    (folder / "containerd.toml").write_text(_containerd(layout), encoding="utf-8")
    (folder / "cni" / "10-pods.conflist").write_text(json.dumps(_pod_network(), indent=1), encoding="utf-8")
    for name, content in (("kubelet", _kubelet(layout)), ("proxy", _proxy(layout))):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
