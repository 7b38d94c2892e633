"""What tools/cluster writes before it starts anything: certificates, kubeconfigs and images."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from tools.cluster import configuration, credentials
from tools.cluster.images import write_image
from tools.cluster.layout import Layout
from tools.cluster.programs import programs


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path)
    credentials.write(found, 1234)
    configuration.write(found)
    return found


def certificate(layout: Layout, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(Path(layout.certificate(name)).read_bytes())


def test_each_private_file_is_readable_by_its_owner_only(layout: Layout) -> None:
    private = [path for path in layout.folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    private += [layout.kubeconfig, *layout.keys.glob("*.kubeconfig")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def test_no_key_of_an_authority_is_written(layout: Layout) -> None:
    authorities = {path.stem for path in layout.keys.glob("*authority.crt")}
    assert authorities == {"authority", "etcd-authority", "front-proxy-authority"}
    assert not any(Path(layout.key(name)).exists() for name in authorities)


def test_a_certificate_is_of_one_authority_only(layout: Layout) -> None:
    for name, issuer in {"admin": "authority", "apiserver-etcd-client": "etcd-authority"}.items():
        certificate(layout, name).verify_directly_issued_by(certificate(layout, issuer))
    with pytest.raises(ValueError):
        certificate(layout, "admin").verify_directly_issued_by(certificate(layout, "etcd-authority"))


def test_only_the_administrator_is_a_master(layout: Layout) -> None:
    masters = [
        path.stem
        for path in layout.keys.glob("*.crt")
        for group in certificate(layout, path.stem).subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        if group.value == "system:masters"
    ]
    assert masters == ["admin"]


def test_the_kubeconfig_leads_to_loopback_and_trusts_one_authority(layout: Layout) -> None:
    (cluster,) = yaml.safe_load(layout.kubeconfig.read_text(encoding="utf-8"))["clusters"]
    assert cluster["cluster"]["server"] == "https://127.0.0.1:1234"
    assert set(cluster["cluster"]) == {"server", "certificate-authority-data"}


def test_programs_name_files_that_exist(layout: Layout) -> None:
    folders = (str(layout.keys), str(layout.configuration))
    values = [word.partition("=")[2] for program in programs(layout) for word in program.words]
    named = [value for value in values if value.startswith(folders)]
    assert len(named) > 20
    assert [name for name in named if not Path(name).exists()] == []


def test_an_image_holds_its_programs_and_is_the_same_each_time(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"content")
    for name in ("one.tar", "two.tar"):
        write_image(tmp_path / name, "localhost/one:1", {"bin/program": program}, ["/bin/program"])
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert {"oci-layout", "index.json"} < set(archive.getnames())
