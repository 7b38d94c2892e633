"""Decodes the runtime parameters of a spec and completes them with defaults for this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from google.protobuf import json_format

from engine.cores import Threads
from engine.failure import EngineError, FailureReason
from engine.spec import EngineSpec
from llamesh.runtime_parameters import Setting, all_parameters, settings, with_defaults
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
    return [_with_file(setting, spec) if all_parameters()[setting.name].model else setting for setting in found]


def _with_file(setting: Setting, spec: EngineSpec) -> Setting:
    path = spec.files.get(setting.name)
    if path is None:
        raise EngineError(FailureReason.BAD_SPEC, f"{setting.flag}: no file is given for the model {setting.value}")
    return replace(setting, value=str(path))
