"""Fail if the contracts break clients of the accepted baseline, or of main if HEAD is another commit.

`proto/baseline.binpb` has the accepted contracts as a buf image; `tools/breaking.py --accept` replaces it, which is visible in a review.
Runs in the environment of requirements/gen.txt.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "proto" / "baseline.binpb"


def revision(name: str) -> str | None:
    """Return the commit with a name; None if there is none."""
    answer = subprocess.run(["git", "rev-parse", "--verify", "--quiet", name], cwd=ROOT, capture_output=True, text=True)
    return answer.stdout.strip() or None


def image_of(commit: str) -> bytes | None:
    """Return the baseline in a commit; None if it has none."""
    answer = subprocess.run(["git", "show", f"{commit}:proto/baseline.binpb"], cwd=ROOT, capture_output=True)
    return answer.stdout if answer.returncode == 0 else None


def compare(image: Path) -> None:
    """Exit with buf's findings if the contracts of the working tree break those of the image."""
    status = subprocess.run(["buf", "breaking", "proto", "--against", str(image)], cwd=ROOT).returncode
    if status:
        sys.exit(status)


def main() -> None:
    """Compare, or accept."""
    if "--accept" in sys.argv:
        subprocess.run(["buf", "build", "proto", "--exclude-source-info", "-o", str(BASELINE)], cwd=ROOT, check=True)
        return
    compare(BASELINE)
    main_branch = revision("origin/main")
    if main_branch and main_branch != revision("HEAD") and (image := image_of(main_branch)):
        other = ROOT / ".tools" / "main.binpb"
        other.write_bytes(image)
        compare(other)


if __name__ == "__main__":
    main()
