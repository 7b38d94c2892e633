"""Every call of the reference deployment works as its instructions write it, with curl, field for field."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from engine.sentence import SENTENCE
from tests.mesh.conftest import MODEL, Served
from tests.mesh.running import RunningMesh, until

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(*arguments: str) -> tuple[int, Any]:
    """Status and JSON body of a call by curl."""
    answer = subprocess.run(
        ["curl", "-sS", "-m", "60", "-w", "\n%{http_code}", *arguments], capture_output=True, text=True, check=True
    )
    body, _, status = answer.stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_a_token_is_given_for_the_default_login(mesh: RunningMesh) -> None:
    status, body = curl(
        "-X", "POST", mesh.url("gateway", "/auth/token"),
        "-H", "Content-Type: application/json",
        "-d", '{"username": "admin", "password": "admin"}',
    )  # fmt: skip
    assert status == 200
    assert body["token_type"] == "bearer"
    assert body["access_token"].count(".") == 2
    assert body["expires_in"] == 24 * 3600


def test_a_wrong_password_is_a_typed_error(mesh: RunningMesh) -> None:
    status, body = curl("-X", "POST", mesh.url("gateway", "/auth/token"), "-d", '{"username":"admin","password":"no"}',
                        "-H", "Content-Type: application/json")  # fmt: skip
    assert status == 401
    assert reasons(body) == ["WRONG_CREDENTIALS"]


@pytest.mark.parametrize("port", ["gateway", "contract", "download"])
def test_health_needs_no_token_and_names_each_component(mesh: RunningMesh, port: str) -> None:
    names = ("gateway", "contract", "download", "controller", "envoy", "database", "store")
    well = dict.fromkeys(("mesh", *names), "HEALTH_STATE_OK")

    def found() -> dict[str, str]:
        _, body = curl(mesh.url(port, "/health"))
        components = {item["name"]: item["status"] for item in body.get("components", ())}
        return {"mesh": body.get("status", ""), **components}

    # A component that a busy machine keeps from answering within a second is down for a second.
    until(lambda: found() == well, 30, "every component to be well")


def test_a_shared_secret_is_no_public_key(mesh: RunningMesh) -> None:
    assert curl(mesh.url("gateway", "/.well-known/jwks.json")) == (200, {"keys": []})


@pytest.mark.parametrize("path", ["/models", "/status", "/users", "/watch", "/policy", "/downloads"])
def test_everything_else_needs_a_token(mesh: RunningMesh, path: str) -> None:
    status, body = curl(mesh.url("gateway", path))
    assert status == 401
    assert body["code"] == 16


def test_models_are_listed_and_read(mesh: RunningMesh) -> None:
    listed = mesh.call("GET", "/models").json()["models"]
    model = next(item for item in listed if item["model_uuid"] == "sentence")
    assert model["name"] == MODEL
    assert model["gguf"]["architecture"] == "llama"
    assert mesh.call("GET", "/models/sentence").json() == model


def test_a_model_is_served_seen_used_and_stopped(mesh: RunningMesh) -> None:
    bearer = f"Authorization: Bearer {mesh.token}"
    json_type = "Content-Type: application/json"
    status, server = curl(
        "-X", "POST", mesh.url("gateway", "/serve"), "-H", bearer, "-H", json_type,
        "-d", '{"model_uuid": "sentence", "model_name": "Qwen.gguf", "replicas": 1, "runtime_params": "--ctx-size 2048"}',
    )  # fmt: skip
    assert status == 200, server
    uuid = server["server_uuid"]
    assert server["endpoint"] == f"http://localhost:{mesh.ports['inference']}/{uuid}/v1"
    assert server["runtime_params"] == "--ctx-size 2048"
    mesh.until_state(uuid, "SERVER_STATE_READY")

    status, listed = curl(mesh.url("gateway", "/status"), "-H", bearer)
    mine = next(item for item in listed["servers"] if item["server_uuid"] == uuid)
    assert status == 200
    assert (mine["replicas"], mine["ready_replicas"]) == (1, 1)
    ready = next(item for item in mine["conditions"] if item["type"] == "Ready")
    assert ready["status"] == "CONDITION_STATUS_TRUE"
    assert ready["reason"]

    status, chat = curl(
        mesh.url("inference", f"/{uuid}/v1/chat/completions"), "-H", json_type,
        "-d", '{"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0.7}',
    )  # fmt: skip
    assert status == 200
    assert chat["choices"][0]["message"]["content"].strip() == SENTENCE
    status, completion = curl(
        mesh.url("inference", f"/{uuid}/v1/completions"), "-H", json_type,
        "-d", '{"prompt": "Hello, how are you?", "max_tokens": 100}',
    )  # fmt: skip
    assert status == 200
    assert completion["choices"][0]["text"].strip() == SENTENCE

    status, stopped = curl("-X", "DELETE", mesh.url("gateway", f"/stop/{uuid}"), "-H", bearer)
    assert (status, stopped["server_uuid"], stopped["state"]) == (200, uuid, "SERVER_STATE_STOPPED")
    status, again = curl("-X", "DELETE", mesh.url("gateway", f"/stop/{uuid}"), "-H", bearer)
    assert (status, reasons(again)) == (404, ["SERVER_NOT_FOUND"])
    assert mesh.http.post(mesh.url("inference", f"/{uuid}/v1/completions"), json={"prompt": "x"}).status_code == 404


def test_a_download_without_source_or_quant_says_so(mesh: RunningMesh) -> None:
    answer = mesh.call("POST", "/download/elsewhere", "download")
    assert answer.status_code == 400
    assert reasons(answer.json()) == ["QUANT_NOT_CONFIGURED"]


def test_a_download_shows_its_state_and_is_repeatable(mesh: RunningMesh) -> None:
    first = mesh.add_model("again", "again.gguf")
    source = (mesh.home / "import" / "again.gguf").as_uri()
    assert first["bytes_done"] == first["bytes_total"] != "0"
    second = mesh.call("POST", "/download/again", "download", json={"source": source, "name": "again.gguf"})
    assert second.status_code == 200, second.text
    assert second.json()["state"] == "DOWNLOAD_STATE_SUCCEEDED"


def test_the_contract_service_answers_at_its_own_port_and_at_the_common_one(mesh: RunningMesh) -> None:
    for port in ("contract", "gateway"):
        check = mesh.call("POST", "/check", port, json={"model_uuid": "sentence", "runtime_params": "--ctx-size 2048"})
        assert check.status_code == 200, check.text
        assert check.json()["allowed"] is True
        assert int(check.json()["memory"]["total_bytes"]) > 0


def test_models_of_the_openai_face_are_listed(served: Served) -> None:
    body = served.mesh.http.get(served.mesh.url("inference", "/v1/models")).json()
    assert body["object"] == "list"
    entry = next(item for item in body["data"] if item["id"] == MODEL)
    assert entry["object"] == "model"


def reasons(body: dict[str, Any]) -> list[str]:
    """Reasons in a google.rpc.Status."""
    return [detail["reason"] for detail in body["details"] if detail["@type"].endswith("ErrorInfo")]
