"""Broken files and forbidden sources end in a typed refusal and leave nothing; what a `kill -9` interrupts finishes by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from tests.mesh.running import RunningMesh, running_mesh, until
from tests.unit.test_gguf_refuses_malformed_files import CASES

BROKEN = (
    "empty",
    "an HTML page",
    "a zip archive",
    "version 0",
    "big endian",
    "tensor count 2^64-1",
    "key length 2^64-1",
    "string value that wraps",
    "array of 2^60 strings",
    "architecture a path",
    "dimensions that wrap to a small size",
    "tensors overlap",
    "place 2^64-32",
    "tensor larger than the file",
    "no data",
    "one byte short",
    "a second file appended",
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh() as running:
        (running.home / "import").mkdir()
        yield running


def start(mesh: RunningMesh, model_uuid: str, source: str) -> Any:
    return mesh.call("POST", f"/download/{model_uuid}", "download", json={"source": source})


def state(mesh: RunningMesh, model_uuid: str) -> dict[str, Any]:
    found: dict[str, Any] = mesh.call("GET", f"/status/{model_uuid}", "download").json()
    return found


def failed(mesh: RunningMesh, model_uuid: str) -> dict[str, Any]:
    """The download once it has failed."""

    def ended() -> dict[str, Any] | None:
        found = state(mesh, model_uuid)
        assert found["state"] != "DOWNLOAD_STATE_SUCCEEDED", found
        return found if found["state"] == "DOWNLOAD_STATE_FAILED" else None

    return until(ended, 60, f"{model_uuid} to fail") or {}


def stored(mesh: RunningMesh) -> list[Path]:
    """Every file of the store, published or not."""
    return [path for name in ("objects", "cache") for path in (mesh.home / name).rglob("*") if path.is_file()]


def test_each_broken_file_is_invalid_and_leaves_nothing(mesh: RunningMesh) -> None:
    uuids = {case: f"broken-{number}" for number, case in enumerate(BROKEN)}
    with mesh.without_restarts():
        for case, model_uuid in uuids.items():
            path = mesh.home / "import" / f"{model_uuid}.gguf"
            path.write_bytes(CASES[case][0])
            answer = start(mesh, model_uuid, path.as_uri())
            assert answer.status_code == 200, (case, answer.text)
        for case, model_uuid in uuids.items():
            found = failed(mesh, model_uuid)
            assert found["error"]["reason"] == "MODEL_INVALID", (case, found)
            assert found["error"]["message"], case
            assert mesh.call("GET", f"/models/{model_uuid}").status_code == 404
            refused = mesh.call("POST", "/serve", json={"model_uuid": model_uuid, "replicas": 1})
            assert refused.status_code in (400, 404), (case, refused.text)
    assert stored(mesh) == []


FORBIDDEN = {
    "a file outside": ("file:///etc/passwd", "folder"),
    "a path outside": ("/etc/passwd", "folder"),
    "up and out": ("file://{home}/import/../config.env", "folder"),
    "up and out, encoded": ("file://{home}/import/%2e%2e/secrets/jwt", "folder"),
    "a link out": ("file://{home}/import/link.gguf", "folder"),
    "a file of another host": ("file://example.com/model.gguf", "file URL"),
    "a relative path": ("file:model.gguf", "absolute path"),
    "loopback without TLS": ("http://127.0.0.1/model.gguf", "scheme"),
    "the metadata address": ("http://169.254.169.254/latest/meta-data/", "scheme"),
    "ftp": ("ftp://example.com/model.gguf", "form"),
    "no scheme": ("example.com/model.gguf", "form"),
    "a name and a password": ("https://user:secret@example.com/model.gguf", "credentials"),
    "no host": ("https:///model.gguf", "host"),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_a_forbidden_source_is_refused_with_its_rule(mesh: RunningMesh, case: str) -> None:
    source, rule = FORBIDDEN[case]
    link = mesh.home / "import" / "link.gguf"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    answer = start(mesh, "forbidden", source.replace("{home}", str(mesh.home)))
    assert answer.status_code == 403, answer.text
    info = reason_of(answer)
    assert (info["reason"], info["metadata"]["rule"]) == ("SOURCE_REFUSED", rule)
    assert "secret" not in answer.text.replace("secrets", "")
    assert mesh.call("GET", "/status/forbidden", "download").status_code == 404


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_a_private_address_is_refused_with_tls_too(mesh: RunningMesh, address: str) -> None:
    model_uuid = "private-" + "".join(letter for letter in address if letter.isalnum())
    answer = start(mesh, model_uuid, f"https://{address}/model.gguf")
    if answer.status_code == 200:
        # It takes a look-up to know: the refusal is the transfer's.
        assert failed(mesh, model_uuid)["error"]["reason"] == "SOURCE_REFUSED"
    else:
        assert answer.status_code == 403, answer.text
        assert reason_of(answer)["reason"] == "SOURCE_REFUSED"


def test_a_very_long_address_is_an_invalid_field(mesh: RunningMesh) -> None:
    answer = start(mesh, "long", "https://example.com/" + "a" * 100_000)
    assert answer.status_code == 400, answer.text
    assert reason_of(answer)["reason"] == "INVALID_FIELD"
    assert "source" in answer.text


@pytest.mark.parametrize("model_uuid", ["..", "a%2fb", "%00", "a b", "x" * 200])
def test_an_id_that_could_be_a_path_is_refused(mesh: RunningMesh, model_uuid: str) -> None:
    answer = start(mesh, model_uuid, "https://example.com/model.gguf")
    assert answer.status_code in (400, 404), answer.text


def reason_of(answer: Any) -> dict[str, Any]:
    """The ErrorInfo of a refusal."""
    for detail in answer.json()["details"]:
        if detail["@type"].endswith("ErrorInfo"):
            return dict(detail)
    raise AssertionError(answer.text)


class Slow(BaseHTTPRequestHandler):
    """Serves one file, and waits in its middle until the test lets it go on."""

    data = b""
    half_sent = threading.Event()
    go_on = threading.Event()
    asked = 0

    def do_GET(self) -> None:
        Slow.asked += 1
        self.send_response(200)
        self.send_header("content-length", str(len(self.data)))
        self.end_headers()
        half = len(self.data) // 2
        try:
            self.wfile.write(self.data[:half])
            self.wfile.flush()
            self.half_sent.set()
            self.go_on.wait(60)
            self.wfile.write(self.data[half:])
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def slow_server(data: bytes) -> Iterator[str]:
    Slow.data, Slow.asked = data, 0
    Slow.half_sent.clear()
    Slow.go_on.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        Slow.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_download_finishes_by_itself_after_the_whole_mesh_was_killed(tmp_path: Path) -> None:
    sentence.write(tmp_path / "model.gguf")
    with (
        slow_server((tmp_path / "model.gguf").read_bytes()) as host,
        running_mesh(LLAMESH_HTTP_SOURCE_HOSTS=host) as mesh,
    ):
        answer = start(mesh, "slow", f"http://{host}/slow.gguf")
        assert answer.status_code == 200, answer.text
        assert Slow.half_sent.wait(60)
        # What the server has sent may still be on its way.
        until(
            lambda: len(stored(mesh)) == 1 and int(state(mesh, "slow").get("bytes_done", 0)) > 0,
            30,
            "bytes in the store",
        )
        assert state(mesh, "slow")["state"] == "DOWNLOAD_STATE_RUNNING"

        mesh.kill()
        Slow.go_on.set()
        mesh.start()

        def succeeded() -> dict[str, Any] | None:
            found = state(mesh, "slow")
            assert found["state"] != "DOWNLOAD_STATE_FAILED", found
            return found if found["state"] == "DOWNLOAD_STATE_SUCCEEDED" else None

        found = until(succeeded, 60, "the download to finish by itself") or {}
        assert found["resume_count"] == 1
        assert Slow.asked == 2
        assert [path.parent.name for path in stored(mesh)] == ["models"]
        mesh.serve("slow", model_name="slow.gguf")
        body = {"model": "slow.gguf", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
        chat = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body)
        assert chat.json()["choices"][0]["message"]["content"].strip() == SENTENCE
