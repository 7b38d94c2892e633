"""Takes away what belongs to the person who runs the tests: settings, home and profile."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from llamesh.kit.config import Settings

_DECLARED = [re.escape(field.validation_alias.choices[0]) for field in Settings.model_fields.values()]  # type: ignore[union-attr, arg-type]
SETTINGS = re.compile(
    "|".join([*_DECLARED, "(LLAMESH|MINIO|JWT|HF|OPENAI|WATCHDOG)_.*", "LLAMA_SERVER_BIN", "NOTIFY_SOCKET"]),
    re.IGNORECASE,
)
"""Variables that steer a mesh, a command or a client. ENVOY_BIN stays: on some systems it is the only way to have an Envoy."""


def leave_the_persons_own(environment: MutableMapping[str, str]) -> Path:
    """Remove all settings from an environment and give it an empty home, which is removed at the end of this process."""
    for name in [name for name in environment if SETTINGS.fullmatch(name)]:
        del environment[name]
    kept = Path(environment.get("HOME", "~")).expanduser()
    # Package downloads of tests go on using what this person has configured and fetched already.
    environment.setdefault("PIP_CACHE_DIR", str(kept / ".cache" / "pip"))
    configuration = Path(environment.pop("XDG_CONFIG_HOME", str(kept / ".config"))) / "pip" / "pip.conf"
    if configuration.is_file():
        environment.setdefault("PIP_CONFIG_FILE", str(configuration))
    home = Path(tempfile.mkdtemp(prefix="home-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    environment["HOME"] = str(home)
    return home
