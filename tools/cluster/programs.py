"""The programs of the node: their command lines, and what must hold before each starts."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from tools.cluster.layout import (
    API_PORT,
    ETCD_PORT,
    KUBELET_PORT,
    NODE,
    NODE_ADDRESS,
    PODS,
    PROGRAM,
    SERVICES,
    Layout,
)


@dataclass(frozen=True)
class Program:
    """One program."""

    name: str
    words: list[str]
    precondition: Callable[[], bool] = lambda: True
    """Whether it may start. Asked again and again, so it answers in a moment."""


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _api_is_ready(layout: Layout) -> bool:
    """Whether the API server has made the roles by which it authorises: before, programs would be refused, and retry ever more slowly."""
    if not _accepts(API_PORT):
        return False
    context = ssl.create_default_context(cafile=layout.certificate("authority"))
    connection = http.client.HTTPSConnection("127.0.0.1", API_PORT, timeout=1, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _flags(**flags: object) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


def _etcd(layout: Layout) -> list[str]:
    clients, peers = f"https://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PORT + 1}"
    return _flags(
        data_dir=layout.state / "etcd",
        listen_client_urls=clients,
        advertise_client_urls=clients,
        listen_peer_urls=peers,
        initial_advertise_peer_urls=peers,
        initial_cluster=f"default={peers}",
        client_cert_auth="true",
        trusted_ca_file=layout.certificate("etcd-authority"),
        cert_file=layout.certificate("etcd"),
        key_file=layout.key("etcd"),
        # The state ends with the cluster: it need not survive a power failure.
        unsafe_no_fsync="true",
    )


def _apiserver(layout: Layout) -> list[str]:
    return _flags(
        advertise_address=NODE_ADDRESS,
        secure_port=API_PORT,
        allow_privileged="true",
        authorization_mode="Node,RBAC",
        enable_admission_plugins="NodeRestriction",
        client_ca_file=layout.certificate("authority"),
        tls_cert_file=layout.certificate("apiserver"),
        tls_private_key_file=layout.key("apiserver"),
        etcd_servers=f"https://127.0.0.1:{ETCD_PORT}",
        etcd_cafile=layout.certificate("etcd-authority"),
        etcd_certfile=layout.certificate("apiserver-etcd-client"),
        etcd_keyfile=layout.key("apiserver-etcd-client"),
        kubelet_certificate_authority=layout.certificate("authority"),
        kubelet_client_certificate=layout.certificate("apiserver-kubelet-client"),
        kubelet_client_key=layout.key("apiserver-kubelet-client"),
        kubelet_preferred_address_types="InternalIP",
        proxy_client_cert_file=layout.certificate("front-proxy-client"),
        proxy_client_key_file=layout.key("front-proxy-client"),
        requestheader_client_ca_file=layout.certificate("front-proxy-authority"),
        requestheader_allowed_names="front-proxy-client",
        requestheader_username_headers="X-Remote-User",
        requestheader_group_headers="X-Remote-Group",
        requestheader_extra_headers_prefix="X-Remote-Extra-",
        service_account_issuer="https://kubernetes.default.svc.cluster.local",
        service_account_key_file=layout.keys / "service-accounts.pub",
        service_account_signing_key_file=layout.key("service-accounts"),
        service_cluster_ip_range=SERVICES,
    )


def _component(layout: Layout, name: str) -> list[str]:
    """Return what the controllers and the scheduler have in common."""
    kubeconfig = layout.kubeconfig_of(name)
    same = dict.fromkeys(("kubeconfig", "authentication_kubeconfig", "authorization_kubeconfig"), kubeconfig)
    return _flags(**same, bind_address="127.0.0.1", leader_elect="false", cert_dir=f"/run/{name}")


def _controllers(layout: Layout) -> list[str]:
    return _flags(
        allocate_node_cidrs="true",
        cluster_cidr=PODS,
        node_cidr_mask_size=24,
        service_cluster_ip_range=SERVICES,
        root_ca_file=layout.certificate("authority"),
        service_account_private_key_file=layout.key("service-accounts"),
        use_service_account_credentials="true",
        # Each controller gets an account first; at the default rate that alone takes six seconds.
        kube_api_qps=200,
        kube_api_burst=400,
    )


def programs(layout: Layout) -> list[Program]:
    """All of them, in the order in which they start."""
    configuration = layout.configuration
    kubelet = _flags(
        config=configuration / "kubelet.yaml",
        kubeconfig=layout.kubeconfig_of("kubelet"),
        hostname_override=NODE,
        node_ip=NODE_ADDRESS,
    )
    policies = _flags(kubeconfig=layout.kubeconfig_of("policies"), node=NODE, services=SERVICES)

    def one(name: str, words: list[str], precondition: Callable[[], bool] = lambda: _api_is_ready(layout)) -> Program:
        return Program(name, [str(PROGRAM), name, *words], precondition)

    return [
        one("etcd", _etcd(layout), lambda: True),
        Program("containerd", ["containerd", f"--config={configuration / 'containerd.toml'}"]),
        one("kube-apiserver", _apiserver(layout), lambda: _accepts(ETCD_PORT)),
        one("kube-controller-manager", [*_component(layout, "controller-manager"), *_controllers(layout)]),
        one("kube-scheduler", _component(layout, "scheduler")),
        one("kubelet", kubelet),
        one("kube-proxy", _flags(config=configuration / "proxy.yaml")),
        # The kubelet makes the object of the node, without which it ends.
        one("network-policies", policies, lambda: _accepts(KUBELET_PORT)),
    ]
