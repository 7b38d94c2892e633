"""A spec is complete and consistent, or it is refused with the field named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.failure import EngineError, FailureReason
from engine.spec import Address, EngineSpec

GOOD: dict[str, Any] = {"model": "/m.gguf", "listen": "/run/e.sock", "alias": "m"}


def test_a_small_spec_is_enough() -> None:
    spec = EngineSpec.decode(GOOD)
    assert spec.listen.socket == Path("/run/e.sock")
    assert (spec.http_threads, spec.api_key, spec.parameters, spec.state_file) == (64, "", {}, None)


def test_a_spec_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(GOOD | {"state_file": "/s", "grace_seconds": 2, "parameters": {"seed": 1}}))
    spec = EngineSpec.read(file)
    assert (spec.state_file, spec.grace_seconds, spec.parameters) == (Path("/s"), 2.0, {"seed": 1})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": ""}, "model"),
        ({"listen": ""}, "listen"),
        ({"alias": None}, "alias"),
        ({"alias": "--log-file=x"}, "alias"),
        ({"alias": "a,b"}, "alias"),
        ({"alias": 7}, "alias"),
        ({"listen": "/run/engine"}, r"\.sock"),
        ({"listen": f"/{'r' * 110}.sock"}, "107"),
        ({"listen": "localhost"}, "listen"),
        ({"listen": "localhost:0"}, "listen"),
        ({"listen": ":9000"}, "listen"),
        ({"listen": "localhost:70000"}, "listen"),
        ({"http_threads": 0}, "http_threads"),
        ({"http_threads": True}, "http_threads"),
        ({"http_threads": "64"}, "http_threads"),
        ({"model_context": -1}, "model_context"),
        ({"grace_seconds": -0.5}, "grace_seconds"),
        ({"parameters": "--ctx-size 2048"}, "parameters"),
        ({"state_file": 3}, "state_file"),
        ({"slot_save_path": "/tmp"}, "slot_save_path"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named) as caught:
        EngineSpec.decode(GOOD | change)
    assert caught.value.reason is FailureReason.BAD_SPEC


@pytest.mark.parametrize("text", ["", "[]", "{", "7", '{"model":'])
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "spec.json"
    file.write_text(text)
    with pytest.raises(EngineError, match="spec"):
        EngineSpec.read(file)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/e.sock", Address("/run/e.sock")),
        ("unix:/run/e.sock", Address("/run/e.sock")),
        ("127.0.0.1:9000", Address("127.0.0.1", 9000)),
        ("[::1]:9000", Address("::1", 9000)),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address
