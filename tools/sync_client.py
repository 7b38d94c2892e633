"""Generate the package llamesh/client/sync from llamesh/client/aio, module by module: the same source without `await`.

python tools/sync_client.py            # writes
python tools/sync_client.py --check    # exit 1 if the package is not what would be written
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parent.parent / "llamesh" / "client"
HEADER = "# Written from {name} by tools/sync_client.py; edit there.\n"
PACKAGE = '''"""The mesh without `await`: `Client` and its parts. tools/sync_client.py writes this package from `aio`."""
'''
UNUSED = "# ruff: noqa: UP028 a loop over what comes, as in the source\n"

RULES: tuple[tuple[str, str], ...] = (
    (r"^# ruff: noqa: ASYNC109.*\n", ""),
    (r"^import asyncio\n", ""),
    (r"\[(\w+) async for \1 in ([^\[\]]+)\]", r"list(\2)"),
    (r"\bawait ", ""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsync([A-Z])", r"\1"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\basyncio\.to_thread\((\w+), ", r"\1("),
    (r"\bllamesh\.client\.aio\b", "llamesh.client.sync"),
)
"""Replacements that remove `await` from a module."""


def converted(name: str, source: str) -> str:
    """Return the synchronous version of a module."""
    body = source
    for pattern, replacement in RULES:
        body = re.sub(pattern, replacement, body, flags=re.MULTILINE)
    if name == "__init__.py":
        body = PACKAGE + body.split('"""\n', 1)[1]
    header = HEADER.format(name=f"aio/{name}") + (UNUSED if "yield" in body else "")
    target = CLIENT / "sync" / name
    checked = _ruff(
        header + body, "check", "--fix-only", "--quiet", "--select", "I,RUF022,RUF100,UP028", "--stdin-filename", target
    )
    return _ruff(checked, "format", "--stdin-filename", target)


def _ruff(source: str, *arguments: object) -> str:
    command = [sys.executable, "-m", "ruff", *map(str, arguments), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def package() -> dict[Path, str]:
    """Return every module of the synchronous client with its text."""
    # ruff treats imports of the package as first-party only if its folder exists.
    (CLIENT / "sync").mkdir(exist_ok=True)
    return {
        CLIENT / "sync" / path.name: converted(path.name, path.read_text(encoding="utf-8"))
        for path in sorted((CLIENT / "aio").glob("*.py"))
    }


def main(arguments: list[str]) -> int:
    """Run the command."""
    wanted = package()
    target = CLIENT / "sync"
    present = {path: path.read_text(encoding="utf-8") for path in target.glob("*.py")}
    if "--check" in arguments:
        return int(present != wanted)
    for path in present.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
