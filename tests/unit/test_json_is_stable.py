"""The JSON of each command, as programs read it: one golden text for each message that a command prints.

`python -m tests.unit.test_json_is_stable` writes the golden file anew after a change of the contract.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from llamesh.cli.json_shape import EXACT, shaped
from llamesh.v1 import contract_pb2, download_pb2, gateway_pb2, model_pb2, server_pb2

GOLDEN = Path(__file__).parent / "golden_json.json"

COMMANDS: dict[str, Message] = {
    "models": model_pb2.Model(model_uuid="m", name="M.gguf", size_bytes=2**40),
    "pull --no-wait": download_pb2.Download(model_uuid="m", state=download_pb2.DOWNLOAD_STATE_RUNNING, bytes_done=7),
    "status, describe, serve, set, scale, sleep, wake, wait": server_pb2.Server(
        server_uuid="s",
        state=server_pb2.SERVER_STATE_READY,
        spec=server_pb2.ServerSpec(parameters=server_pb2.RuntimeParameters(flash_attn=server_pb2.SWITCH_ON)),
        conditions=[server_pb2.Condition(type="Ready", status=server_pb2.CONDITION_STATUS_TRUE)],
        replica_statuses=[server_pb2.Replica(state=server_pb2.REPLICA_STATE_READY)],
    ),
    "fit": contract_pb2.CheckResponse(allowed=True, memory=server_pb2.MemoryEstimate(total_bytes=2**33)),
    "users list, create, update": gateway_pb2.User(username="ada", role=gateway_pb2.ROLE_ADMIN),
    "contracts list, create, update": contract_pb2.Contract(contract_id="c", models=["*"]),
    "keys list": contract_pb2.Key(key_id="k", scopes=["infer:*"], state=contract_pb2.KEY_STATE_WORKS),
    "keys create": contract_pb2.CreateKeyResponse(key=contract_pb2.Key(key_id="k"), token="t"),
    "usage": contract_pb2.Usage(day="2026-11-25", subject="ada", requests=3),
    "why": contract_pb2.Decision(decision_id="d", refusals=[contract_pb2.Refusal(reason="DOES_NOT_FIT")]),
}


def made() -> dict[str, Any]:
    """What each command prints today."""
    return {name: shaped(message) for name, message in COMMANDS.items()}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_the_json_of_a_command_equals_its_recorded_output(command: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(COMMANDS)
    assert made()[command] == golden[command]


def test_a_number_that_readers_would_round_is_a_text() -> None:
    assert shaped(model_pb2.Model(size_bytes=EXACT))["size_bytes"] == EXACT
    assert shaped(model_pb2.Model(size_bytes=EXACT + 1))["size_bytes"] == str(EXACT + 1)


def test_an_enum_value_of_a_newer_mesh_is_its_number() -> None:
    newer = server_pb2.Server.FromString(b"\x20\x63")
    assert shaped(newer)["state"] == 99


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(made(), indent=1) + "\n")
