"""Each package's migrations follow each other in one line: two that follow the same one would stop every start."""

from __future__ import annotations

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from tests.mesh.running import ROOT


@pytest.mark.parametrize("package", ["controller", "services/gateway", "services/contract", "services/download"])
def test_every_migration_has_a_name_of_its_own_and_one_successor(package: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "llamesh" / "kit" / "migrations"))
    config.set_main_option("path_separator", "newline")
    versions = ROOT / package / "migrations" / "versions"
    config.set_main_option("version_locations", str(versions))
    scripts = ScriptDirectory.from_config(config)
    assert len(scripts.get_heads()) == 1
    assert len(list(scripts.walk_revisions())) == len(list(versions.glob("0*.py")))
