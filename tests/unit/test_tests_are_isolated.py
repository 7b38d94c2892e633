"""No setting, home or profile of the person who runs the tests reaches a test."""

from __future__ import annotations

import os
from pathlib import Path

from llamesh.client.contexts import config_folder
from llamesh.kit.config import Settings
from llamesh.local_mesh import running_here
from llamesh.locations import home_directory
from tests.isolation import SETTINGS, leave_the_persons_own


def test_every_setting_is_taken_away_and_the_home_is_empty(tmp_path: Path) -> None:
    variables = [field.validation_alias.choices[0] for field in Settings.model_fields.values()]  # type: ignore[union-attr]
    clients = ["LLAMESH_URL", "LLAMESH_INFERENCE_URL", "LLAMESH_TOKEN", "LLAMESH_CONFIG", "LLAMESH_LIFELINE_FD"]
    theirs = {str(name): "theirs" for name in [*variables, *clients]} | {"HOME": str(tmp_path), "PATH": "/bin"}
    home = leave_the_persons_own(theirs)
    assert set(theirs) == {"HOME", "PATH", "PIP_CACHE_DIR"}
    assert theirs["HOME"] == str(home) != str(tmp_path)
    assert list(home.iterdir()) == []


def test_it_was_done_for_this_run() -> None:
    assert [name for name in os.environ if SETTINGS.fullmatch(name)] == []
    assert home_directory(os.environ).parent.name.startswith("home-")
    assert config_folder().is_relative_to(os.environ["HOME"])
    assert running_here(os.environ) is None
