"""The filter of the front door against the real llama.cpp: what the engine reads of a body that passes was judged.

The engine tells what it read (`verbose`). The limits are lowered, so that a value which the filter took for another shows.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from controller.xds import scripts
from engine import sentence
from tests.mesh.engines import engine
from tests.mesh.json_variants import LOWERED, body
from tests.unit.lua_request import LuaFilter

BODIES = int(os.environ.get("TEST_VARIANTS", "1500"))
"""Bodies that are made; a hundred thousand are some minutes' work."""
SEED = int(os.environ.get("TEST_FUZZ_SEED", "1"))
SETTINGS = {"kind": "inference", "anonymous": True, "host localhost": True}


def read_by(answer: dict[str, Any]) -> dict[str, Any]:
    """What the engine read of the request that it answered."""
    return dict(answer["__verbose"]["generation_settings"])


def beyond(read: dict[str, Any], usual: dict[str, Any], choices: int) -> list[str]:
    """Fields that the engine read and that are beyond the limits."""
    most = {
        "repeat_last_n": LOWERED["window.tokens"],
        "dry_penalty_last_n": LOWERED["window.tokens"],
        "n_probs": LOWERED["probabilities"],
        "n_discard": 0,
    }
    found = [name for name, limit in most.items() if read[name] > limit and read[name] != usual[name]]
    lists = {
        "stop": LOWERED["stop.items"],
        "samplers": LOWERED["samplers.items"],
        "dry_sequence_breakers": LOWERED["breakers.items"],
        "logit_bias": LOWERED["bias.entries"],
        "preserved_tokens": 0,
        "grammar_triggers": 0,
    }
    found += [name for name, limit in lists.items() if len(read[name]) > limit and read[name] != usual[name]]
    if any(len(each.encode()) > LOWERED["stop.bytes"] for each in read["stop"]):
        found.append("stop.bytes")
    if choices > LOWERED["generations"]:
        found.append("choices")
    return found


async def test_the_filter_judges_every_value_that_the_engine_reads(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    front_door = LuaFilter(scripts.route(LOWERED))
    model = sentence.write(tmp_path / "sentence.gguf")
    wrong: list[str] = []
    needless: list[str] = []
    seen: Counter[str] = Counter()

    async with engine(tmp_path, model) as running, running.client() as client:
        await running.until("ready")

        async def ask(path: str, text: bytes) -> tuple[int, Any]:
            headers = {"content-type": "application/json"}
            async with client.post(path, data=text, headers=headers, timeout=aiohttp.ClientTimeout(30)) as answer:
                return answer.status, await answer.json(content_type=None)

        _, plain = await ask("/v1/completions", b'{"prompt":"a","n_predict":1,"verbose":true}')
        usual = read_by(plain)
        for _ in range(BODIES):
            path, text = body(chance)
            headers = {":path": path, ":method": "POST", ":authority": "localhost", "content-type": "application/json"}
            with_model = text.replace(b"{", b'{"model":"m",', 1)
            outcome = front_door.run(headers, dict(SETTINGS), {}, with_model)
            status, answer = await ask(path, with_model)
            assert running.process.returncode is None
            seen[f"{outcome.code or 'passes'} {status}"] += 1
            if outcome.status is None and status == 200 and "__verbose" in answer:  # Its name may be what was damaged.
                read = read_by(answer)
                fields = beyond(read, usual, len(answer.get("choices", [0])))
                if fields:
                    wrong.append(f"{fields} {path} {with_model!r}")
            elif outcome.code == "invalid_json" and status == 200 and b"\x00" not in text:
                needless.append(f"{path} {with_model!r}")
    assert not wrong, f"seed {SEED}: " + "\n".join(wrong[:5])
    assert not needless, f"seed {SEED}: " + "\n".join(needless[:5])
    assert seen["passes 200"] > BODIES / 20, seen
    assert seen["limit_exceeded 200"] > BODIES / 20, seen
