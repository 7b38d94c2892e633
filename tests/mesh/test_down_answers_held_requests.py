"""`llamesh down` answers requests that wait for an engine, and takes no time for what does not run."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.mesh.running import COMMAND_SECONDS, running_mesh, until

NEVER_READY = '#!/bin/sh\ncase "$*" in *--version*) echo "version: 99999 (never)";; *) exec sleep 600;; esac\n'


def test_held_requests_get_503_and_the_drain_is_not_waited_for(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(NEVER_READY)
    program.chmod(0o755)
    drain = 80
    with (
        running_mesh(LLAMESH_DRAIN_SECONDS=str(drain), LLAMA_SERVER_BIN=str(program)) as mesh,
        ThreadPoolExecutor() as pool,
    ):
        mesh.add_model("slow")
        served = mesh.call("POST", "/serve", json={"model_uuid": "slow", "replicas": 1, "model_name": "slow"})
        assert served.status_code == 200, served.text
        body = {"model": "slow", "messages": [{"role": "user", "content": "Hi"}]}
        asked = [
            pool.submit(httpx.post, mesh.url("inference", "/v1/chat/completions"), json=body, timeout=110)
            for _ in range(3)
        ]
        until(lambda: mesh.server(served.json()["server_uuid"])["state"] == "SERVER_STATE_STARTING", 60, "a start")
        assert not any(each.done() for each in asked)
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "llamesh.cli.main", "down"],
            env=mesh.environment,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        took = time.monotonic() - began
        answers = [each.result() for each in asked]
    assert ended.returncode == 0
    assert {(each.status_code, each.json()["error"]["code"]) for each in answers} == {(503, "engine_not_ready")}
    assert "stopped" in answers[0].json()["error"]["message"]
    assert took < drain
