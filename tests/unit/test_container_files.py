"""The Dockerfile and compose.yaml name what there is: commands, ports, settings, extras. tests/cluster builds and runs the image."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

from llamesh.cli.main import COMMANDS
from llamesh.kit.config import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy" / "container" / "Dockerfile").read_text()
SERVICE = yaml.safe_load((ROOT / "deploy" / "container" / "compose.yaml").read_text())["services"]["llamesh"]


def settings() -> dict[str, object]:
    return {field.validation_alias.choices[0]: field.default for field in Settings.model_fields.values()}  # type: ignore[union-attr]


def test_every_setting_of_the_files_is_one() -> None:
    named = set(re.findall(r"LLAMESH_[A-Z_]+", DOCKERFILE)) | set(SERVICE["environment"])
    assert named <= settings().keys()


def test_the_ports_are_those_of_the_settings() -> None:
    defaults = {
        str(value) for name, value in settings().items() if name.endswith("_PORT") and str(value).startswith("8")
    }
    exposed = set(re.findall(r"\d+", re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)[1]))  # type: ignore[index]
    assert exposed <= defaults
    assert {port.rsplit(":", 1)[1] for port in SERVICE["ports"]} == exposed
    assert all(port.startswith("127.0.0.1:") for port in SERVICE["ports"])


def test_the_commands_and_extras_exist() -> None:
    commands = {name for group in COMMANDS.values() for name in group}
    used = re.findall(r'"llamesh", "(\w+)"', DOCKERFILE)
    assert used
    assert set(used) <= commands
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.search(r"^ARG EXTRAS=([\w,]+)$", DOCKERFILE, re.MULTILINE)[1].split(",")) <= extras.keys()  # type: ignore[index]


def test_a_stop_leaves_time_for_the_drain_and_the_user_is_not_root() -> None:
    assert float(SERVICE["stop_grace_period"].removesuffix("s")) > float(str(settings()["LLAMESH_DRAIN_SECONDS"])) * 2
    assert re.search(r"^USER llamesh$", DOCKERFILE, re.MULTILINE)
