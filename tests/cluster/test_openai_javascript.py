"""The official JavaScript client chats, completes, streams and gets its typed exceptions, at both addresses."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from engine.sentence import COMPLETION_TOKENS, SENTENCE
from tests.mesh.conftest import Served

HERE = Path(__file__).parent / "javascript"

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="Node is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, installed from the lock file into the test's folder."""
    target = tmp_path_factory.mktemp("javascript")
    for name in ("package.json", "package-lock.json", "chat.mjs"):
        shutil.copyfile(HERE / name, target / name)
    subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=target, check=True, capture_output=True
    )
    return target


@pytest.mark.parametrize("address", ["by name", "by server"])
def test_the_javascript_client_works_unchanged(folder: Path, served: Served, address: str) -> None:
    base = served.path("/v1") if address == "by server" else served.mesh.url("inference", "/v1")
    answer = subprocess.run(
        ["node", "chat.mjs", base, served.model], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    seen = json.loads(answer.stdout)
    assert seen.pop("chunks") > 5
    assert seen == {
        "chat": SENTENCE,
        "usage": COMPLETION_TOKENS,
        "completion": SENTENCE,
        "stream": SENTENCE,
        "stream_usage": COMPLETION_TOKENS,
        "unauthenticated": "AuthenticationError 401",
        "forbidden_field": "BadRequestError 400",
    }
