"""Decodes the runtime parameters of a spec and completes them with defaults for this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from engine.cores import Threads
from engine.failure import EngineError, FailureReason
from engine.spec import EngineSpec
from llamesh.runtime_parameters import Setting, adapters, all_parameters, settings, with_defaults
from llamesh.v1.server_pb2 import RuntimeParameters


def decode(document: Mapping[str, Any]) -> RuntimeParameters:
    """Decode ProtoJSON. Raises EngineError(BAD_SPEC) for an unknown field or a wrong type; the contract service checks bounds."""
    try:
        return json_format.ParseDict(dict(document), RuntimeParameters())
    except json_format.ParseError as error:
        raise EngineError(FailureReason.BAD_SPEC, f"parameters: {error}") from error


def completed(parameters: RuntimeParameters, model_context: int, threads: Threads) -> RuntimeParameters:
    """Return the parameters completed with llamesh's defaults and the default threads: see `engine.cores`."""
    filled = with_defaults(parameters, model_context)
    if not filled.HasField("threads_batch"):
        filled.threads_batch = filled.threads or threads.prompts
    if not filled.HasField("threads"):
        filled.threads = threads.answers
    return filled


def launch_settings(spec: EngineSpec, threads: Threads) -> list[Setting]:
    """Return the settings for llama.cpp, with files instead of models. Raises EngineError(BAD_SPEC) if a model's file is missing."""
    found = settings(completed(decode(spec.parameters), spec.model_context, threads))
    return [_with_files(setting, spec) for setting in found]


def scaled_files(value: str) -> list[tuple[str, float]]:
    """Return path and scale of each adapter from the value of the setting `lora`."""
    pairs = (item.rpartition(":") for item in value.split(","))
    return [(path, float(scale)) for path, _, scale in pairs]


def _with_files(setting: Setting, spec: EngineSpec) -> Setting:
    """Return a setting with the files that it names. Adapters become `PATH:SCALE,...`, as llama.cpp reads them."""
    if setting.name == "lora":
        named = adapters(RuntimeParameters(lora=str(setting.value)))
        files = [(_file(setting, spec.adapters, name), scale) for name, scale in named.items()]
        if unusable := [path for path, _ in files if "," in str(path) or ":" in str(path)]:
            raise EngineError(
                FailureReason.BAD_SPEC, f"--lora: llama.cpp takes no path with , or : in it: {unusable[0]}"
            )
        return replace(setting, flag="--lora-scaled", value=",".join(f"{path}:{scale:g}" for path, scale in files))
    if all_parameters()[setting.name].model:
        return replace(setting, value=str(_file(setting, spec.files, setting.name)))
    return setting


def _file(setting: Setting, files: Mapping[str, Path], name: str) -> Path:
    path = files.get(name)
    if path is None:
        what = f"the adapter {name}" if setting.name == "lora" else f"the model {setting.value}"
        raise EngineError(FailureReason.BAD_SPEC, f"{setting.flag}: no file is given for {what}")
    return path
