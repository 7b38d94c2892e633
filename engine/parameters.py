"""The parameters that an engine is told, as its spec carries them, typed and completed for this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from engine.cores import Threads
from engine.failure import EngineError, Reason
from llamesh.parameters import with_defaults
from llamesh.v1.server_pb2 import RuntimeParameters


def decode(document: Mapping[str, Any]) -> RuntimeParameters:
    """Type ProtoJSON. Raises EngineError(BAD_SPEC) on an unknown field or a wrong type; bounds are the contract service's."""
    try:
        return json_format.ParseDict(dict(document), RuntimeParameters())
    except json_format.ParseError as error:
        raise EngineError(Reason.BAD_SPEC, f"parameters: {error}") from error


def completed(parameters: RuntimeParameters, model_context: int, threads: Threads) -> RuntimeParameters:
    """The parameters with llamesh's own defaults, and the threads that are not asked for: see `engine.cores`."""
    filled = with_defaults(parameters, model_context)
    if not filled.HasField("threads_batch"):
        filled.threads_batch = filled.threads or threads.prompts
    if not filled.HasField("threads"):
        filled.threads = threads.answers
    return filled
