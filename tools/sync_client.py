"""Writes llamesh/client/sync.py from aio.py: the same source without `await`.

python tools/sync_client.py            # writes
python tools/sync_client.py --check    # exit 1 where the file is not what would be written
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parent.parent / "llamesh" / "client"
HEADER = '''# ruff: noqa: UP028 a loop over what comes, as in the source
"""The mesh without `await`: `Client` and its parts. Written from aio.py by tools/sync_client.py; edit there."""
'''

RULES: tuple[tuple[str, str], ...] = (
    (r"^import asyncio\n", ""),
    (r"\bawait ", ""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"import AsyncIterator, Callable, Sequence", "import Callable, Iterator, Sequence"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsync([A-Z])", r"\1"),
    (r"\basyncio\.sleep\b", "time.sleep"),
)
"""What is said with `await`, and how it is said without."""


def converted(source: str) -> str:
    """The synchronous half."""
    body = source.split('"""\n', 1)[1]
    for pattern, replacement in RULES:
        body = re.sub(pattern, replacement, body, flags=re.MULTILINE)
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", "llamesh/client/sync.py", "-"],
        input=HEADER + body,
        capture_output=True,
        text=True,
        check=True,
    )
    return formatted.stdout


def main(arguments: list[str]) -> int:
    """The command."""
    wanted = converted((CLIENT / "aio.py").read_text())
    target = CLIENT / "sync.py"
    if "--check" in arguments:
        return int(not target.exists() or target.read_text() != wanted)
    target.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
