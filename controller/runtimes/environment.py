"""The environment variables that an engine process gets.

Invariant: no setting that is a secret reaches an engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from llamesh.kit.config import Settings

_ROOT = Path(__file__).resolve().parent.parent.parent


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without secrets, and with the folder of these packages on PYTHONPATH."""
    secrets = {
        str(name)
        for field in Settings.model_fields.values()
        if "SecretStr" in str(field.annotation)
        for name in getattr(field.validation_alias, "choices", ())
    }
    kept = {name: value for name, value in environment.items() if name not in secrets}
    paths = [str(_ROOT), *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}
