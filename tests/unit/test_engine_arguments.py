"""Every runtime parameter means the same in both of llama.cpp's forms, and nothing but parameters gets through."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xllamacpp
from google.protobuf.descriptor import FieldDescriptor

from engine import embedded, launch, parameters
from engine.cores import Threads
from engine.failure import EngineError, FailureReason
from engine.spec import Address, EngineSpec
from llamesh.runtime_parameters import Setting, settings
from llamesh.v1.server_pb2 import RuntimeParameters
from tests.unit import llama_parser

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = launch.Program(Path("/opt/llama-server"), launch.MIN_BUILD)
SPEC = EngineSpec(model=Path("/models/m.gguf"), listen=Address("/run/e.sock"), alias="m", api_key="secret-key")
THREADS = Threads(answers=2, prompts=3)
FIELDS = list(RuntimeParameters.DESCRIPTOR.fields)
KINDS = {
    FieldDescriptor.TYPE_BOOL: True,
    FieldDescriptor.TYPE_UINT32: 64,
    FieldDescriptor.TYPE_INT32: -1,
    FieldDescriptor.TYPE_DOUBLE: 0.5,
    FieldDescriptor.TYPE_STRING: "chatml",
}
TEXTS = {"chat_template_kwargs": '{"a":1}', "lora": "style:0.5", "model_draft": "small", "reasoning_effort": "low"}
ENGINE_FIELDS = [field for field in FIELDS if field.name != "alias"]
"""What an engine may be told: the alias has become the server's name before."""


def command(document: dict[str, Any]) -> list[str]:
    """The tail of the command line: what the parameters alone add."""
    plain = launch.arguments(PROGRAM, SPEC, [])
    full = launch.arguments(PROGRAM, SPEC, settings(parameters.decode(document)))
    assert full[: len(plain)] == plain
    return full[len(plain) :]


def values(field: FieldDescriptor) -> list[Any]:
    """Every value of an enum, both of a boolean, one of anything else."""
    if field.enum_type is not None:
        return [value.name for value in field.enum_type.values if value.number]
    if field.type == FieldDescriptor.TYPE_BOOL:
        return [True, False]
    return [TEXTS.get(field.name, KINDS[field.type])]


def attribute(params: Any, path: str) -> Any:
    for name in path.split("."):
        params = getattr(params, name)
    return params


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_each_parameter_is_one_flag_with_one_value(field: FieldDescriptor) -> None:
    for value in values(field):
        written = command({field.name: value})
        if value is True:
            assert len(written) == 1
        elif value is False:
            assert len(written) <= 1
            assert written != command({field.name: True})
        else:
            assert len(written) == 2
            assert written[1]
        assert all(flag.startswith("--") for flag in written[:1])


UNLIKE = {
    "cpuparams_batch.n_threads",
    "speculative.draft.cpuparams.n_threads",
    "speculative.draft.cpuparams_batch.n_threads",
    "speculative.draft.mparams.hf_file",
}
"""What llama-server's parser fills in at once and the library when it starts, and a name that only counts with a repository."""


@pytest.mark.parametrize("field", ENGINE_FIELDS, ids=lambda field: field.name)
def test_each_parameter_means_the_same_to_the_library_as_to_llama_server(field: FieldDescriptor) -> None:
    seen = []
    for value in values(field):
        files = {field.name: Path("/models/small.gguf")}
        adapters = {"style": Path("/models/style.gguf")}
        spec = replace(SPEC, api_key="", parameters={field.name: value}, files=files, adapters=adapters)
        given = parameters.launch_settings(spec, THREADS)
        library = llama_parser.values(embedded.common_params(xllamacpp, spec, given))
        program = llama_parser.values(llama_parser.parsed(launch.arguments(PROGRAM, spec, given)[1:]))
        unlike = {name: (library[name], program[name]) for name in library if library[name] != program[name]}
        assert unlike.keys() <= UNLIKE, unlike
        seen.append(repr(sorted(library.items())))
    assert len(set(seen)) == len(seen), "two values became one"


def test_texts_and_variables_reach_the_library_as_they_reach_llama_server() -> None:
    document = {
        "chat_template_kwargs": '{"a": "it\'s", "b": [1, 2.5, null, true], "\u00fc": {"c": "\\n\u00fc"}}',
        "reasoning": "SWITCH_OFF",
        "reasoning_effort": "high",
        "reasoning_preserve": False,
        "reasoning_budget_message": "It's \u00fcber.",
    }
    spec = replace(SPEC, api_key="", parameters=document)
    given = parameters.launch_settings(spec, THREADS)
    library = embedded.common_params(xllamacpp, spec, given)
    program = llama_parser.parsed(launch.arguments(PROGRAM, spec, given)[1:])
    assert library.default_template_kwargs == program.default_template_kwargs
    assert library.default_template_kwargs.keys() == {
        *("a", "b", "\u00fc"),
        *("enable_thinking", "reasoning_effort", "preserve_reasoning"),
    }
    assert library.sampling.reasoning_budget_message == program.sampling.reasoning_budget_message == "It's \u00fcber."


def test_a_projector_reaches_the_library_as_it_reaches_llama_server() -> None:
    spec = replace(SPEC, api_key="", projector=Path("/models/p.gguf"))
    given = parameters.launch_settings(spec, THREADS)
    library = embedded.common_params(xllamacpp, spec, given)
    program = llama_parser.parsed(launch.arguments(PROGRAM, spec, given)[1:])
    assert library.mmproj.path == program.mmproj.path == "/models/p.gguf"
    assert EngineSpec.decode({"model": "/m", "listen": "h:1", "alias": "m", "projector": "/p"}).projector == Path("/p")


def test_without_parameters_the_library_has_the_values_of_llama_server() -> None:
    spec = replace(SPEC, api_key="")
    given = parameters.launch_settings(spec, THREADS)
    library = llama_parser.values(embedded.common_params(xllamacpp, spec, given))
    program = llama_parser.values(llama_parser.parsed(launch.arguments(PROGRAM, spec, given)[1:]))
    assert {name for name in library if library[name] != program[name]} <= UNLIKE


def test_a_model_that_a_parameter_names_needs_a_file() -> None:
    spec = replace(SPEC, parameters={"model_draft": "small"})
    with pytest.raises(EngineError, match="--model-draft: no file is given for the model small") as caught:
        parameters.launch_settings(spec, THREADS)
    assert caught.value.reason is FailureReason.BAD_SPEC


def test_adapters_reach_the_library_as_they_reach_llama_server() -> None:
    adapters = {"style": Path("/models/s.gguf"), "law": Path("/models/l.gguf")}
    spec = replace(SPEC, api_key="", parameters={"lora": "style:-0.25,law"}, adapters=adapters)
    given = parameters.launch_settings(spec, THREADS)
    library = embedded.common_params(xllamacpp, spec, given)
    program = llama_parser.parsed(launch.arguments(PROGRAM, spec, given)[1:])
    for found in (library, program):
        assert [(each.path, each.scale) for each in found.lora_adapters] == [
            ("/models/s.gguf", -0.25),
            ("/models/l.gguf", 1.0),
        ]
    for paths, problem in (
        ({}, "no file is given for the adapter style"),
        ({"style": Path("/a,b")}, "no path with ,"),
    ):
        with pytest.raises(EngineError, match=problem):
            parameters.launch_settings(replace(SPEC, parameters={"lora": "style"}, adapters=paths), THREADS)


def test_a_draft_model_is_put_to_use() -> None:
    spec = replace(SPEC, parameters={"model_draft": "small"}, files={"model_draft": Path("/models/small.gguf")})
    given = {setting.name: setting.value for setting in parameters.launch_settings(spec, THREADS)}
    assert (given["model_draft"], given["spec_type"]) == ("/models/small.gguf", "draft-simple")


@pytest.mark.parametrize(
    ("field", "value", "member"),
    [
        ("flash_attn", "SWITCH_ON", "LLAMA_FLASH_ATTN_TYPE_ENABLED"),
        ("flash_attn", "SWITCH_OFF", "LLAMA_FLASH_ATTN_TYPE_DISABLED"),
        ("cache_type_k", "CACHE_TYPE_F16", "GGML_TYPE_F16"),
        ("cache_type_v", "CACHE_TYPE_IQ4_NL", "GGML_TYPE_IQ4_NL"),
        ("load_mode", "LOAD_MODE_MLOCK", "LLAMA_LOAD_MODE_MLOCK"),
        ("pooling", "POOLING_RANK", "LLAMA_POOLING_TYPE_RANK"),
        ("reasoning_format", "REASONING_FORMAT_DEEPSEEK", "COMMON_REASONING_FORMAT_DEEPSEEK"),
        ("split_mode", "SPLIT_MODE_NONE", "LLAMA_SPLIT_MODE_NONE"),
        ("rope_scaling", "ROPE_SCALING_YARN", "LLAMA_ROPE_SCALING_TYPE_YARN"),
    ],
)
def test_an_enum_value_becomes_the_library_s_own(field: str, value: str, member: str) -> None:
    params = xllamacpp.CommonParams()
    [parameter] = settings(parameters.decode({field: value}))
    embedded.assign(params, parameter)
    assert attribute(params, parameter.embedded).name == member


def test_a_parameter_that_the_library_does_not_know_is_named() -> None:
    with pytest.raises(EngineError, match="--no-such") as caught:
        embedded.assign(xllamacpp.CommonParams(), Setting("no_such", "--no-such", "", "sampling.no_such", 1))
    assert caught.value.reason is FailureReason.BAD_SPEC
    with pytest.raises(EngineError, match=r"--flash-attn.*perhaps"):
        embedded.assign(
            xllamacpp.CommonParams(), Setting("flash_attn", "--flash-attn", "", "flash_attn_type", "perhaps")
        )


def test_the_timeout_holds_for_reading_and_writing() -> None:
    typed = settings(parameters.decode({"timeout": 17}))
    params = embedded.common_params(xllamacpp, SPEC, typed)
    assert (params.timeout_read, params.timeout_write) == (17, 17)


def test_the_key_is_never_on_the_command_line() -> None:
    full = launch.arguments(PROGRAM, SPEC, [])
    assert not any("secret-key" in word for word in full)
    assert launch.scrubbed({}, SPEC.api_key)["LLAMA_API_KEY"] == "secret-key"
    assert "secret-key" not in repr(SPEC)


def test_the_command_line_always_has_address_alias_and_safety_flags() -> None:
    full = launch.arguments(PROGRAM, SPEC, [])
    assert full[:7] == ["/opt/llama-server", "--model", "/models/m.gguf", "--alias", "m", "--host", "/run/e.sock"]
    assert "--port" not in full
    assert full[full.index("--threads-http") + 1] == "64"
    assert {"--metrics", "--slots", "--no-ui", "--offline"} <= set(full)
    over_tcp = launch.arguments(PROGRAM, EngineSpec(Path("/m"), Address("0.0.0.0", 9000), "m"), [])
    assert over_tcp[over_tcp.index("--host") + 1 : over_tcp.index("--host") + 4] == ["0.0.0.0", "--port", "9000"]


def test_llama_cpp_sees_no_variable_of_its_own_and_none_of_our_secrets() -> None:
    environment = {
        "PATH": "/bin",
        "HOME": "/home/a",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "1",
        "LLAMA_ARG_MODEL_URL": "http://elsewhere/",
        "LLAMA_ARG_HOST": "0.0.0.0",
        "LLAMA_API_KEY": "theirs",
        "LLAMA_CACHE": "/c",
        "GGML_VK_VISIBLE_DEVICES": "0",
        "HF_TOKEN": "t",
        "HF_ENDPOINT": "e",
        "JWT_SECRET": "s",
        "DATABASE_URL": "u",
        "MINIO_SECRET_KEY": "k",
        "LLAMESH_LIFELINE_FD": "7",
        "LD_PRELOAD": "x.so",
        "PATH_LIKE": "x",
    }
    passed = launch.scrubbed(environment)
    assert passed.pop("XDG_CONFIG_HOME") == os.devnull
    assert set(passed) == {"PATH", "HOME", "LC_ALL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}


def test_llama_cpp_reads_no_configuration_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / ".config" / "llama.cpp").mkdir(parents=True)
    (tmp_path / ".config" / "llama.cpp" / "config.ini").write_text("[*]\nctx-size = 777\n")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    question = "from tests.unit.llama_parser import parsed; print(parsed([]).n_ctx)"

    def context(variables: dict[str, str]) -> str:
        answer = subprocess.run(
            [sys.executable, "-c", question], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
        )
        return answer.stdout.split()[-1]

    assert context(environment) == "777"
    assert context(launch.scrubbed(environment)) == "0"


@pytest.mark.parametrize(
    ("given", "model_context", "ctx_size"),
    [
        ({}, 131072, 4 * 4096),
        ({}, 2048, 4 * 2048),
        ({}, 0, 4 * 4096),
        ({"parallel": 1}, 131072, 4096),
        ({"kv_unified": True}, 131072, 4096),
        ({"ctx_size": 512}, 131072, 512),
        ({"ctx_size": 512, "parallel": 2}, 256, 512),
    ],
)
def test_the_default_context_gives_each_slot_its_own(given: dict[str, Any], model_context: int, ctx_size: int) -> None:
    filled = parameters.completed(parameters.decode(given), model_context, THREADS)
    assert filled.ctx_size == ctx_size
    assert filled.parallel == given.get("parallel", 4)
    assert filled.cache_ram == 0
    assert (filled.threads, filled.threads_batch) == (2, 3)


def test_a_given_parameter_is_not_replaced_by_a_default() -> None:
    asked = parameters.decode(
        {
            "parallel": 2,
            "ctx_size": 100,
            "batch_size": 2048,
            "cache_ram": 64,
            "threads": 9,
            "threads_batch": 9,
            "ctx_checkpoints": 0,
        }
    )
    assert parameters.completed(asked, 0, THREADS) == asked


@pytest.mark.parametrize(
    ("given", "answers", "prompts"),
    [({"threads": 7}, 7, 7), ({"threads_batch": 7}, 2, 7), ({"threads": 1, "threads_batch": 7}, 1, 7)],
)
def test_threads_that_are_asked_for_win(given: dict[str, Any], answers: int, prompts: int) -> None:
    filled = parameters.completed(parameters.decode(given), 0, THREADS)
    assert (filled.threads, filled.threads_batch) == (answers, prompts)


@pytest.mark.parametrize("document", [{"no_such": 1}, {"ctx_size": "many"}, {"ctx_size": -1}, {"flash_attn": "MAYBE"}])
def test_parameters_that_are_not_the_contract_s_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as caught:
        parameters.decode(document)
    assert caught.value.reason is FailureReason.BAD_SPEC


@pytest.mark.parametrize(
    ("environment", "program", "expected"),
    [
        ({}, None, {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "300000"}),
        ({}, PROGRAM, {"GOMP_SPINCOUNT": "100"}),
        ({"GOMP_SPINCOUNT": "7"}, None, {}),
        ({"OMP_WAIT_POLICY": "active"}, PROGRAM, {}),
    ],
)
def test_how_threads_wait_is_the_user_s_to_say(
    environment: dict[str, str], program: launch.Program | None, expected: dict[str, str]
) -> None:
    assert launch.computing(environment, program) == expected


def fake_server(path: Path, says: str, exit_code: int = 0) -> Path:
    """A stand-in for llama-server that only knows its version."""
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {exit_code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("says", ["version: 11434 (abcdef)", "version: 0.5.1 (build 11434, commit abcdef)"])
def test_a_program_on_path_is_taken_when_it_is_new_enough(tmp_path: Path, says: str) -> None:
    fake = fake_server(tmp_path / "llama-server", says)
    program, words = launch.find_program({"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert program == launch.Program(fake, 11434)
    assert "11434" in words


@pytest.mark.parametrize(("says", "exit_code"), [("version: 9093 (a)", 0), ("cannot open shared object", 127), ("", 0)])
def test_an_unusable_program_on_path_gives_way_to_the_library(tmp_path: Path, says: str, exit_code: int) -> None:
    fake_server(tmp_path / "llama-server", says, exit_code)
    program, words = launch.find_program({"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert program is None
    assert "embedded" in words
    assert str(tmp_path) in words


def test_a_program_that_was_asked_for_must_be_usable(tmp_path: Path) -> None:
    old = fake_server(tmp_path / "mine", "version: 9093 (a)")
    for path in (str(old), str(tmp_path / "absent")):
        with pytest.raises(EngineError) as caught:
            launch.find_program({"LLAMA_SERVER_BIN": path, "PATH": "/bin:/usr/bin"})
        assert caught.value.reason is FailureReason.NO_LLAMA_CPP
        assert path in str(caught.value)


def test_a_program_of_unknown_build_is_used_only_if_it_is_configured(tmp_path: Path) -> None:
    fake = fake_server(tmp_path / "llama-server", "version: 0.5.1 (build 0, commit unknown)")
    path = f"{tmp_path}:/bin:/usr/bin"
    assert launch.find_program({"PATH": path})[0] is None
    assert launch.find_program({"PATH": path, "LLAMA_SERVER_BIN": str(fake)})[0] == launch.Program(fake, 0)


def test_the_library_can_be_asked_for(tmp_path: Path) -> None:
    fake_server(tmp_path / "llama-server", "version: 11434 (abcdef)")
    assert launch.find_program({"LLAMA_SERVER_BIN": "embedded", "PATH": f"{tmp_path}:/bin"})[0] is None


@pytest.mark.parametrize(
    ("asked", "batch"), [({}, 512), ({"ubatch_size": 64}, 512), ({"ubatch_size": 2048}, 2048), ({"batch_size": 64}, 64)]
)
def test_a_batch_is_small_but_holds_a_physical_one(asked: dict[str, int], batch: int) -> None:
    assert parameters.completed(parameters.decode(asked), 0, THREADS).batch_size == batch
