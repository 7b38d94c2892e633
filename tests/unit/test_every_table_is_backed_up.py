"""A backup of PostgreSQL has the schema of every member that opens a database."""

from __future__ import annotations

import re
from pathlib import Path

from llamesh.kit.postgres_dump import SCHEMAS

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_schema_of_every_member_is_dumped() -> None:
    roots = [*ROOT.glob("services/*/service.py"), ROOT / "controller" / "machine.py"]
    opened = {name for path in roots for name in re.findall(r'open_database\(\w+, "(\w+)"\)', path.read_text())}
    assert opened == set(SCHEMAS)
    assert len(opened) == len(roots)
