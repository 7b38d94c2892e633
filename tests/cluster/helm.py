"""Helm, driven by its command as a person does it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tools.infra import CHART, HELM, NAMESPACE

RELEASE = "llamesh"
SECRETS = {"jwtSecret": "s" * 48, "adminPassword": "the password of this test"}
KEYS = {"minioAccessKey": "minioadmin", "minioSecretKey": "minioadmin123"}
LEAST: Mapping[str, Any] = {
    "secrets": {**SECRETS, **KEYS, "databaseUrl": "postgresql://admin:secret@database:5432/inference_db"},
    "store": {"endpoint": "minio:9000"},
}
"""The fewest values that the chart needs."""
MOST: Mapping[str, Any] = {
    "secrets": {
        **SECRETS,
        **KEYS,
        "postgresPassword": "securepassword123",
        "quantMinioAccessKey": "quantadmin",
        "quantMinioSecretKey": "quantadmin123",
        "extra": {"HF_TOKEN": "token"},
    },
    "image": {"pullSecrets": ["registry"]},
    "publicHost": "llm.example.com",
    "settings": {"MAX_REPLICAS": "8"},
    "tls": {"secret": "front-door"},
    "certificates": {"issuer": "cert-manager", "issuerRef": {"name": "llamesh-members"}},
    "envoy": {
        "service": {"type": "LoadBalancer", "annotations": {"example.com/a": "b"}},
        "autoscaling": {"enabled": True},
    },
    "download": {"replicas": 2, "sourceHosts": ["models.internal"], "httpSourceHosts": ["models.internal:8000"]},
    "quant": {"enabled": True, "engine": "argo", "minio": {"enabled": True}, "argo": {"image": "quant:1"}},
    "pods": {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "mesh", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
    },
    "postgres": {"enabled": True, "storage": {"className": "fast"}},
    "minio": {"enabled": True, "storage": {"className": "fast"}},
}
"""Most values of the chart, each changed."""


def lacking() -> str:
    """Why Helm cannot run here, or nothing."""
    return "" if HELM.exists() else "not built: python tools/build.py helm"


def helm(
    *words: str | Path, values: Mapping[str, Any] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Helm with values in the namespace of the tests."""
    given = [] if values is None else ["--values=-"]
    command = [str(HELM), *map(str, words), f"--namespace={NAMESPACE}", *given]
    text = "" if values is None else yaml.safe_dump(dict(values))
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=600, check=False)
    assert not check or done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done


def rendered(values: Mapping[str, Any], *words: str) -> list[Any]:
    """Return the objects that the chart makes of values."""
    found = helm("template", RELEASE, CHART, *words, values=values)
    return [item for item in yaml.safe_load_all(found.stdout) if item]


def refusal(values: Mapping[str, Any]) -> str:
    """Return the words with which the chart refuses values."""
    done = helm("template", RELEASE, CHART, values=values, check=False)
    assert done.returncode, "the chart takes these values"
    return done.stderr


def merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with others laid over them."""
    result = dict(values)
    for name, value in more.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return result
