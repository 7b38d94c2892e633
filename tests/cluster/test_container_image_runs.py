"""The Dockerfile's image, built and run without Docker: it answers through Envoy, is healthy, stops in order and keeps its state."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine import sentence
from tests.cluster.containers import IMAGE, Containers, lacking
from tests.mesh.running import ROOT, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(lacking()), reason=lacking() or "nothing is missing"),
]

SERVICE = yaml.safe_load((ROOT / "deploy" / "container" / "compose.yaml").read_text())["services"]["llamesh"]
PASSWORD = "the password of this test"
# Run in the network of the container with this machine's OpenAI SDK: base address, key, and the most tokens.
CHAT = """
import sys, openai
client = openai.OpenAI(base_url="http://127.0.0.1:8080/v1", api_key=sys.argv[1], max_retries=0)
stream = client.chat.completions.create(model="sentence", messages=[{"role": "user", "content": "Hi"}], stream=True,
    max_tokens=int(sys.argv[2]), extra_body={"ignore_eos": sys.argv[2] != "64"})
for chunk in stream:
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    ended = chunk.choices[0].finish_reason
print("\\nfinish:", ended)
"""


class Container:
    """A mesh in a container, on the volume that all containers of this test share."""

    def __init__(self, containers: Containers, name: str, model: Path) -> None:
        self._containers, self.name = containers, name
        settings = ["--env", f"LLAMESH_ADMIN_PASSWORD={PASSWORD}"]
        volumes = [word for volume in SERVICE["volumes"] for word in ("--volume", volume)]
        containers.run(name, *settings, *volumes, "--volume", f"{model}:/model.gguf:ro", IMAGE)
        until(self.healthy, 120, "a healthy container")
        self.llamesh("login", "admin", "--password-stdin", stdin=PASSWORD)

    def healthy(self) -> bool:
        """Whether the image's health check passes now."""
        assert self._containers.inspect(self.name, "State.Running") == "true", self.logs()
        return self._containers.podman("healthcheck", "run", self.name, check=False).returncode == 0

    def logs(self) -> str:
        """What it printed."""
        done = self._containers.podman("logs", self.name)
        return done.stdout + done.stderr

    def llamesh(self, *words: str, stdin: str = "") -> str:
        """Run the command in the container."""
        return self._containers.podman(
            "exec", "--interactive", self.name, "llamesh", *words, stdin=stdin
        ).stdout.strip()

    def chat(self, key: str, tokens: int = 64) -> subprocess.Popen[str]:
        """Ask the model by the container's network."""
        process = self._containers.inspect(self.name, "State.Pid")
        words = ["nsenter", f"--target={process}", "--net", sys.executable, "-c", CHAT, key, str(tokens)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def stop(self) -> str:
        """Send SIGTERM as `docker stop` does with the time of compose.yaml, and return the exit code: 137 if it was killed."""
        seconds = SERVICE["stop_grace_period"].removesuffix("s")
        self._containers.podman("stop", "--time", seconds, self.name)
        return self._containers.inspect(self.name, "State.ExitCode")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    found = sentence.write(tmp_path / "model.gguf")
    found.chmod(0o644)
    return found


def test_the_health_check_fails_without_a_mesh(containers: Containers) -> None:
    containers.run("idle", IMAGE, "sleep", "infinity")
    assert containers.podman("healthcheck", "run", "idle", check=False).returncode == 1
    assert containers.podman("exec", "idle", "id", "--user").stdout == "1000\n"


def test_it_answers_stops_in_order_and_keeps_its_state(containers: Containers, model: Path) -> None:
    first = Container(containers, "first", model)
    first.llamesh("pull", "/model.gguf", "--name", "sentence")
    first.llamesh("serve", "sentence", "--ctx-size", "16384", "--parallel", "1")
    key = first.llamesh("keys", "create", "client", "--scope", "infer:*").splitlines()[-1]
    answer, errors = first.chat(key).communicate(timeout=120)
    assert answer == f"{sentence.SENTENCE}\nfinish: stop\n", errors

    # Beyond loopback nobody asks without a key.
    refused, errors = first.chat("no-key").communicate(timeout=120)
    assert "401" in errors, refused

    with first.chat(key, tokens=2000) as running:
        assert running.stdout is not None
        assert running.stdout.read(1)
        assert first.stop() == "0", first.logs()
        rest, errors = running.communicate(timeout=120)
    assert rest.endswith("\nfinish: length\n"), errors

    second = Container(containers, "second", model)
    servers = json.loads(second.llamesh("status", "-o", "json"))
    assert "sentence" in json.dumps(servers)
    answer, errors = second.chat(key).communicate(timeout=120)
    assert answer == f"{sentence.SENTENCE}\nfinish: stop\n", errors
    assert second.stop() == "0", second.logs()
