"""The certificates of a cluster, as kubeadm divides them, and the kubeconfigs that use them.

Three authorities: of the cluster, of etcd and of the front proxy, so that a client of one is nobody for another. Keys of authorities are
never written, except the key with which service account tokens are signed. Every private file has the mode 600.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tools.cluster.layout import API_PORT, API_SERVICE, DOMAIN, NODE, NODE_ADDRESS, Layout

VALID = timedelta(days=365)
API_NAMES = (
    "localhost",
    "127.0.0.1",
    NODE_ADDRESS,
    API_SERVICE,
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    f"kubernetes.default.svc.{DOMAIN}",
)
"""Names and addresses by which clients reach the API server."""
CLIENTS = {
    "admin": ("kubernetes-admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "proxy": ("system:kube-proxy", ""),
    "policies": ("llamesh:network-policies", ""),
    "apiserver-kubelet-client": ("kube-apiserver-kubelet-client", ""),
}
"""Name and group of each client of the cluster's authority."""


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content)


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _subject(name: str, group: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


class Authority:
    """Signs certificates. Its key stays in memory."""

    def __init__(self, folder: Path, name: str, now: datetime) -> None:
        self._folder, self._now = folder, now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject(f"llamesh-{name}")
        usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
        self._certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.content = self._certificate.public_bytes(serialization.Encoding.PEM)
        (folder / f"{name}.crt").write_bytes(self.content)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # The clocks of programs may differ by some seconds from that of this process.
            .not_valid_before(self._now - timedelta(minutes=5))
            .not_valid_after(self._now + VALID)
        )

    def issue(self, file: str, name: str, group: str = "", hosts: Iterable[str] = ()) -> None:
        """Write the key and the certificate of a client, and of a server if it has hosts."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_subject(name, group), key)
        hosts = list(hosts)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), False)
        certificate = builder.sign(self._key, hashes.SHA256())
        (self._folder / f"{file}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        write_private(self._folder / f"{file}.key", _private_bytes(key))


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _kubeconfig(layout: Layout, client: str, authority: bytes, server: str) -> bytes:
    def data(content: bytes) -> str:
        return base64.b64encode(content).decode()

    name = "llamesh"
    user = {
        "client-certificate-data": data(Path(layout.certificate(client)).read_bytes()),
        "client-key-data": data(Path(layout.key(client)).read_bytes()),
    }
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": data(authority)}}],
        "users": [{"name": client, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": client}}],
        "current-context": name,
    }
    return yaml.safe_dump(config, sort_keys=False).encode()


def write(layout: Layout, port: int) -> None:
    """Write all of them; the API server is reached at a port of this machine's loopback interface."""
    layout.keys.mkdir(mode=0o700)
    now = datetime.now(UTC)
    cluster = Authority(layout.keys, "authority", now)
    cluster.issue("apiserver", "kube-apiserver", hosts=API_NAMES)
    cluster.issue("kubelet-server", f"system:node:{NODE}", "system:nodes", (NODE, NODE_ADDRESS))
    for client, (name, group) in CLIENTS.items():
        cluster.issue(client, name, group)
        inside = f"https://127.0.0.1:{API_PORT}"
        write_private(Path(layout.kubeconfig_of(client)), _kubeconfig(layout, client, cluster.content, inside))
    outside = _kubeconfig(layout, "admin", cluster.content, f"https://127.0.0.1:{port}")
    write_private(layout.kubeconfig, outside)
    etcd = Authority(layout.keys, "etcd-authority", now)
    etcd.issue("etcd", "etcd", hosts=("localhost", "127.0.0.1"))
    etcd.issue("apiserver-etcd-client", "kube-apiserver-etcd-client")
    Authority(layout.keys, "front-proxy-authority", now).issue("front-proxy-client", "front-proxy-client")
    tokens = ec.generate_private_key(ec.SECP256R1())
    write_private(layout.keys / "service-accounts.key", _private_bytes(tokens))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = tokens.public_key().public_bytes(serialization.Encoding.PEM, form)
    (layout.keys / "service-accounts.pub").write_bytes(public)
