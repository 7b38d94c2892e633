"""A real engine takes what its spec says: every parameter, reranking, embeddings and a draft model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format

from engine import sentence
from engine.failure import FailureReason
from llamesh.runtime_parameters import settings, slot_context
from llamesh.v1.server_pb2 import RuntimeParameters
from services.contract.flag_parser import parse
from tests.mesh.engines import LLAMA_SERVER_BIN, chat, engine
from tests.split_models import write_adapter

SLOW = {"ctx_size": 8192, "parallel": 1}
"""One slot with a context that an endless stream does not fill while a test looks on."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence.write(tmp_path_factory.mktemp("model") / "sentence.gguf")


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence.write(tmp_path_factory.mktemp("model") / "prefill.gguf", size=sentence.PREFILL)


async def test_the_check_names_the_program_that_would_run() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", "--check"),
        env=dict(os.environ) | {"LLAMA_SERVER_BIN": "embedded"},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    answer = json.loads(out)
    assert answer["usable"]
    assert "xllamacpp" in answer["engine"]


@pytest.mark.parametrize("form", ["embedded", "llama-server"])
async def test_every_parameter_at_once_is_taken(tmp_path: Path, model: Path, form: str) -> None:
    program = "embedded"
    if form == "llama-server":
        program = LLAMA_SERVER_BIN if LLAMA_SERVER_BIN != "embedded" else shutil.which("llama-server") or ""
    if not program:
        pytest.skip("no llama-server here: put one on PATH, or name it in TEST_LLAMA_SERVER_BIN")
    parameters = {
        "ctx_size": 512, "parallel": 2, "batch_size": 64, "ubatch_size": 32, "threads": 1, "threads_batch": 2,
        "gpu_layers": 0, "flash_attn": "SWITCH_ON", "cache_type_k": "CACHE_TYPE_Q8_0", "cache_type_v": "CACHE_TYPE_Q8_0",
        "load_mode": "LOAD_MODE_NONE", "keep": 1, "context_shift": False, "cont_batching": True, "cache_prompt": False,
        "cache_reuse": 0, "cache_ram": 1, "slot_prompt_similarity": 0.5, "kv_unified": True, "swa_full": True,
        "predict": -1, "seed": 7, "temp": 0.0, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "repeat_last_n": 0,
        "repeat_penalty": 1.0, "presence_penalty": -0.0, "frequency_penalty": 1e-5, "pooling": "POOLING_NONE",
        "jinja": True, "chat_template": "chatml", "reasoning_format": "REASONING_FORMAT_NONE", "reasoning_budget": 0,
        "split_mode": "SPLIT_MODE_NONE", "main_gpu": 0, "rope_freq_base": 10000.0, "rope_freq_scale": 1.0, "timeout": 60,
        "warmup": False, "rope_scaling": "ROPE_SCALING_YARN", "yarn_orig_ctx": 2048, "yarn_ext_factor": 0.0,
        "yarn_attn_factor": 1.0, "yarn_beta_slow": 1.0, "yarn_beta_fast": 32.0, "reasoning": "SWITCH_OFF",
        "reasoning_effort": "low", "reasoning_budget_message": "so", "reasoning_preserve": False,
        "chat_template_kwargs": '{"a": 1}', "ctx_checkpoints": 2, "checkpoint_min_step": 64, "model_draft": "self",
        "spec_type": "SPECULATIVE_TYPE_DRAFT_SIMPLE", "spec_draft_n_max": 4, "spec_draft_n_min": 1, "spec_draft_p_min": 0.1,
        "gpu_layers_draft": 0, "cache_type_k_draft": "CACHE_TYPE_F16", "cache_type_v_draft": "CACHE_TYPE_F16",
        "mmproj_auto": False, "lora": "style:0.5",
    }  # fmt: skip
    others = {"embeddings", "embd_normalize", "reranking", "rope_scale", "alias"}
    """Those that no engine for text can be told, that another one stands against, or that the mesh keeps."""
    assert parameters.keys() | others == set(RuntimeParameters.DESCRIPTOR.fields_by_name)
    async with engine(
        tmp_path / "e",
        model,
        environment={"LLAMA_SERVER_BIN": program},
        parameters=parameters,
        files={"model_draft": str(model)},
        adapters={"style": str(write_adapter(tmp_path / "style.gguf", model, 0, 0))},
    ) as running:
        await running.until("ready")
        async with running.client() as client, client.post("/v1/chat/completions", json=chat()) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == sentence.SENTENCE
        running.process.terminate()
        assert await running.ended() == 0


async def test_an_engine_for_reranking_ranks(tmp_path: Path, model: Path) -> None:
    parameters = {"reranking": True, "ctx_size": 512, "parallel": 1, "warmup": False}
    async with engine(tmp_path / "e", model, parameters=parameters) as running:
        await running.until("ready")
        body = {"model": "sentence", "query": "What is it?", "documents": ["a", "b"]}
        async with running.client() as client, client.post("/v1/rerank", json=body) as answer:
            document = await answer.json()
            assert answer.status == 200, document
            assert len(document["results"]) == 2


@pytest.mark.parametrize("normalised", [-1, 2])
async def test_embeddings_are_normalised_as_the_server_is_told(tmp_path: Path, model: Path, normalised: int) -> None:
    parameters = {
        "embeddings": True,
        "embd_normalize": normalised,
        "pooling": "POOLING_MEAN",
        "ctx_size": 512,
        "parallel": 1,
    }
    async with engine(tmp_path / "e", model, parameters=parameters) as running:
        await running.until("ready")
        async with running.client() as client, client.post("/v1/embeddings", json={"input": "Hello"}) as answer:
            vector = (await answer.json())["data"][0]["embedding"]
    length = sum(value * value for value in vector) ** 0.5
    assert (abs(length - 1) < 1e-3) == (normalised == 2), length


async def test_a_draft_model_guesses_tokens_of_the_large_model(tmp_path: Path, model: Path) -> None:
    parameters = {"model_draft": "small", "ctx_size": 512, "parallel": 1, "warmup": False}
    async with engine(tmp_path / "e", model, parameters=parameters, files={"model_draft": str(model)}) as running:
        await running.until("ready")
        async with running.client() as client, client.post("/v1/chat/completions", json=chat()) as answer:
            document = await answer.json()
    assert document["choices"][0]["message"]["content"] == sentence.SENTENCE
    assert document["timings"]["draft_n_accepted"] > 0


async def test_a_draft_model_that_llama_cpp_would_leave_unused_is_refused(tmp_path: Path, model: Path) -> None:
    other = sentence.write(tmp_path / "other.gguf", sentence=sentence.SENTENCE.swapcase())
    parameters = {"model_draft": "other", "ctx_size": 512, "parallel": 1, "warmup": False}
    async with engine(tmp_path / "e", model, parameters=parameters, files={"model_draft": str(other)}) as running:
        assert await running.ended() == FailureReason.BAD_SPEC.value
        assert "--model-draft: llama.cpp does not use this draft model" in running.log


async def test_the_context_of_a_slot_equals_the_estimate_of_the_mesh(tmp_path: Path) -> None:
    trained = 2048
    model = sentence.write(tmp_path / "short.gguf", context=trained)
    for scaling, expected in (("ROPE_SCALING_LINEAR", trained), ("ROPE_SCALING_YARN", 2 * trained)):
        document = {"ctx_size": 8192, "parallel": 1, "rope_scaling": scaling, "rope_scale": 2.0, "warmup": False}
        assert slot_context(json_format.ParseDict(document, RuntimeParameters()), trained) == expected
        async with engine(tmp_path / scaling, model, parameters=document) as running:
            await running.until("ready")
            async with running.client() as client, client.get("/slots") as answer:
                assert (await answer.json())[0]["n_ctx"] == expected


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/embeddings"])
async def test_flags_that_llama_cpp_advises_are_accepted(tmp_path: Path, model: Path, path: str) -> None:
    async with engine(tmp_path / "e", model, parameters={"ctx_size": 512, "parallel": 1, "warmup": False}) as running:
        await running.until("ready")
        body = {"input": "a", "query": "a", "documents": ["a"]}
        async with running.client() as client, client.post(path, json=body) as answer:
            message = (await answer.json())["error"]["message"]
    [flag] = re.findall(r"--[a-z-]+", message)
    assert len(settings(parse(flag))) == 1
