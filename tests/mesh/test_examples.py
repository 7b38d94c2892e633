"""Every file of examples/ runs as its first line says, against a whole mesh."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from tests.mesh.conftest import Served
from tests.mesh.running import COMMAND_SECONDS, ROOT

EXAMPLES = ROOT / "examples"


def user(home: Path) -> dict[str, str]:
    """The environment of a user with an empty home, who has the command on the PATH."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home)}


def example(served: Served, home: Path, *command: str, cwd: Path = ROOT) -> str:
    """What an example prints. Its user is logged in and has no other setting than the home of a mesh, which is not on the usual ports."""
    mesh = served.mesh
    answer = subprocess.run(
        command,
        cwd=cwd,
        env=user(home) | {"LLAMESH_HOME": str(mesh.home), "LLAMESH_TOKEN": mesh.token},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def served_models(served: Served) -> list[str]:
    return [item["model_uuid"] for item in served.mesh.call("GET", "/status").json()["servers"]]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(served: Served, tmp_path: Path) -> None:
    shown = example(served, tmp_path, "sh", "examples/curl.sh", served.model)
    assert served.server_uuid in shown
    assert SENTENCE in shown


def test_the_openai_client(served: Served, tmp_path: Path) -> None:
    assert example(served, tmp_path, sys.executable, "examples/openai_chat.py", served.model).strip() == SENTENCE


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_javascript_client(served: Served, tmp_path: Path) -> None:
    """The client itself is tested in tests/cluster, where it is installed; here a stand-in records what it is asked."""
    package = tmp_path / "node_modules" / "openai"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "openai", "type": "module", "exports": "./index.js"}')
    (package / "index.js").write_text(STAND_IN)
    shutil.copyfile(EXAMPLES / "openai_stream.mjs", tmp_path / "openai_stream.mjs")
    shown = example(served, tmp_path, "node", "openai_stream.mjs", served.model, cwd=tmp_path)
    assert shown.strip() == SENTENCE


def test_the_sdk(served: Served, tmp_path: Path) -> None:
    file = served.mesh.home / "import" / "example.gguf"
    sentence.write(file)
    before = served_models(served)
    shown = example(served, tmp_path, sys.executable, "examples/sdk.py", str(file)).splitlines()
    assert shown[-1].strip() == SENTENCE
    assert "example" in shown[-2]
    assert shown[-3].endswith(" bytes")
    assert served_models(served) == before
    served.mesh.call("DELETE", "/models/example")


def test_plain_grpc(served: Served, tmp_path: Path) -> None:
    shown = example(served, tmp_path, sys.executable, "examples/grpc_client.py")
    assert f"{served.model}: 1 of 1 engines answer at http" in shown
    assert shown.splitlines()[-1] == "synced"


@pytest.mark.parametrize(
    "command",
    [["sh", "examples/curl.sh", "smol"], [sys.executable, "examples/grpc_client.py"]],
    ids=["curl", "grpc"],
)
def test_nothing_is_sent_to_a_mesh_without_a_login(command: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        url = f"http://127.0.0.1:{stranger.getsockname()[1]}"
        answer = subprocess.run(
            command,
            cwd=ROOT,
            env=user(tmp_path) | {"LLAMESH_URL": url, "LLAMESH_INFERENCE_URL": url},
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert answer.returncode != 0
        assert "llamesh login" in answer.stderr
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.accept()


def test_the_page_lists_them_all() -> None:
    page = (EXAMPLES / "README.md").read_text()
    files = [path.name for path in EXAMPLES.iterdir() if path.name != "README.md" and path.is_file()]
    assert len(files) == 5
    assert all(f"]({name})" in page for name in files)


STAND_IN = """\
export default class OpenAI {
  constructor({ baseURL }) {
    this.chat = { completions: { create: async (body) => events(await fetch(`${baseURL}/chat/completions`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    })) } };
  }
}
async function* events(answer) {
  for (const line of (await answer.text()).split("\\n")) {
    if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}
"""
