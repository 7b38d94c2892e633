"""The decision record on ownership says of every table what several processes on one database do with it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_table_is_in_the_record() -> None:
    """The table of leases is of the kit, and each member that uses it has one."""
    (record,) = (ROOT / "docs" / "adr").glob("0016-*.md")
    rows = re.findall(r"^\|( `.*?) \|", record.read_text(encoding="utf-8"), re.MULTILINE)
    recorded = {name for row in rows for name in re.findall(r"`([a-z_.]+)`", row) if not name.endswith(".lease")}
    found = set()
    for path in [*ROOT.glob("services/*/*.py"), *ROOT.glob("controller/*.py")]:
        for name in re.findall(r'^    __tablename__ = "(\w+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            found.add(f"{path.parent.name}.{name}")
    assert recorded == found
    assert "download.transfer" in found
