"""Images for a node without a registry: OCI archives made from files, and their import into containerd."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""What images call them."""
_MEDIA = "application/vnd.oci.image"


def _blob(archive: tarfile.TarFile, content: bytes, kind: str) -> dict[str, Any]:
    """Add a blob and return its descriptor."""
    digest = hashlib.sha256(content).hexdigest()
    _file(archive, f"blobs/sha256/{digest}", content)
    return {"mediaType": f"{_MEDIA}.{kind}", "digest": f"sha256:{digest}", "size": len(content)}


def _file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _layer(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w") as archive:
        for folder in ("tmp", "etc", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        for name, path in files.items():
            _file(archive, name.lstrip("/"), path.read_bytes(), 0o755)
    return buffer.getvalue()


def write_image(archive: Path, reference: str, files: Mapping[str, Path], command: Sequence[str]) -> None:
    """Write an image that holds programs: path in the image -> file here. The same input gives the same bytes."""
    layer = _layer(files)
    configuration = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": list(command), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    with tarfile.open(archive, "w") as tar:
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _blob(tar, json.dumps(configuration).encode(), "config.v1+json"),
            "layers": [_blob(tar, layer, "layer.v1.tar")],
        }
        described = _blob(tar, json.dumps(manifest).encode(), "manifest.v1+json")
        # containerd names an image by the first, other programs by the second.
        described["annotations"] = {
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference,
        }
        _file(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [described]}).encode())
        _file(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
