"""Write the plain manifests deploy/infra from the chart deploy/chart: `python -m tools.infra`. Needs Helm (python tools/build.py helm).

They install what the chart installs with a PostgreSQL and a MinIO of its own. What only Helm reads is left out: its labels and annotations,
its hooks but the Secrets, and checksums, which nobody would keep true. Secrets have placeholders; a JWT_SECRET of this length is refused by
every member.
"""

from __future__ import annotations

import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
HELM = ROOT / ".tools" / "bin" / "helm"
CHART = ROOT / "deploy" / "chart"
INFRA = ROOT / "deploy" / "infra"
NAMESPACE = "llamesh"
PLACEHOLDER = "change-me"
_SECRET = "changeme" * 4
"""Stands for a secret while the chart is rendered, which refuses shorter ones."""
VALUES: Mapping[str, Any] = {
    "secrets": dict.fromkeys(
        ("jwtSecret", "adminPassword", "postgresPassword", "minioAccessKey", "minioSecretKey"), _SECRET
    ),
    "image": {"tag": "latest"},
    "engineImage": {"tag": "latest"},
    "postgres": {"enabled": True},
    "minio": {"enabled": True},
    # deploy/kubernetes/modelserves.yaml is the same.
    "customResource": {"install": False},
}
HEAD = "# Generated from deploy/chart by `python -m tools.infra`; docs/guide/kubernetes.md has the order. Namespace: llamesh.\n"
REMEDY = "# Replace each change-me. Members do not start with this JWT_SECRET: make one with `openssl rand -hex 32`.\n"


def manifests() -> dict[str, str]:
    """Return the text of each file by its name."""
    files: dict[str, list[Any]] = {}
    for item in _rendered():
        files.setdefault(_file_of(item), []).append(_plain(item))
    return {
        name: HEAD
        + (REMEDY if name == "secrets.yaml" else "")
        + yaml.safe_dump_all(items, sort_keys=False, width=140, allow_unicode=True)
        for name, items in files.items()
    }


def _rendered() -> Iterator[Any]:
    command = [str(HELM), "template", "llamesh", str(CHART), f"--namespace={NAMESPACE}", "--values=-"]
    done = subprocess.run(command, input=yaml.safe_dump(dict(VALUES)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return (
        item for item in yaml.safe_load_all(done.stdout) if item and (item["kind"] == "Secret" or not _is_hook(item))
    )


def _is_hook(item: Any) -> bool:
    return "helm.sh/hook" in item["metadata"].get("annotations", {})


def _file_of(item: Any) -> str:
    by_kind = {"ConfigMap": "configmap.yaml", "Secret": "secrets.yaml"}
    by_name = {"postgres": "postgres.yaml", "minio": "minio.yaml"}
    return by_kind.get(item["kind"]) or by_name.get(item["metadata"]["name"], "services.yaml")


def _plain(item: Any) -> Any:
    """Return a manifest without what only Helm reads."""
    metadata = item["metadata"]
    if not metadata["name"].startswith("llamesh-nodes"):
        metadata.setdefault("namespace", NAMESPACE)
    for name in ("helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/instance"):
        metadata["labels"].pop(name, None)
    _drop(metadata, "helm.sh/")
    if item["kind"] in {"Deployment", "StatefulSet"}:
        _drop(item["spec"]["template"]["metadata"], "checksum/")
    if item["kind"] == "CronJob":
        item["spec"]["jobTemplate"].pop("metadata")
    if item["kind"] == "Secret":
        contents = {name: b64decode(text).decode() for name, text in item.pop("data").items()}
        item["stringData"] = {name: text.replace(_SECRET, PLACEHOLDER) for name, text in contents.items()}
    return item


def _drop(metadata: Any, prefix: str) -> None:
    """Remove annotations with a prefix."""
    left = {name: text for name, text in metadata.pop("annotations", {}).items() if not name.startswith(prefix)}
    if left:
        metadata["annotations"] = left


if __name__ == "__main__":
    if not HELM.exists():
        sys.exit("Helm is not built: python tools/build.py helm")
    INFRA.mkdir(parents=True, exist_ok=True)
    for name, text in manifests().items():
        (INFRA / name).write_text(text, encoding="utf-8")
