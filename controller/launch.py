"""Derives the launch specs of engines from a server's spec. Engines with the same spec hash are interchangeable."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable

from google.protobuf import json_format

from controller.model_files import ModelFile
from controller.request_holder import DEFAULT_BUDGET
from controller.runtimes import LaunchSpec
from controller.xds.clusters import BUDGET_MARGIN_SECONDS, SILENCE_SECONDS
from llamesh.kit.config import Settings
from llamesh.runtime_parameters import adapters, loads_projector, models, needed_models
from llamesh.v1.server_pb2 import ServerSpec

_SPARE_THREADS = 4
"""HTTP threads of an engine for the readiness and load probes of the mesh."""
_CLUSTERS = 2
"""Number of clusters through which Envoy reaches an engine: that of its server and that of its model name."""


def connections(spec: ServerSpec, settings: Settings) -> int:
    """Return the number of connections that each of the two clusters may open to an engine: enough for all its slots."""
    return max(settings.engine_http_threads // _CLUSTERS, spec.parameters.parallel, 1)


def wake_budget(spec: ServerSpec) -> int:
    """Return the seconds that a request may be held for an engine."""
    return math.ceil(spec.wake_budget.ToMilliseconds() / 1000) or int(DEFAULT_BUDGET)


def response_timeout(spec: ServerSpec) -> int:
    """Return the seconds that the server may take to begin an answer: its --timeout, but always more than a request may be held."""
    timeout = spec.parameters.timeout if spec.parameters.HasField("timeout") else SILENCE_SECONDS
    return max(timeout, wake_budget(spec) + BUDGET_MARGIN_SECONDS)


def spec_hash(spec: ServerSpec, settings: Settings) -> str:
    """Return a hash of the parts of a spec that running engines depend on: if it changes, they must be replaced."""
    return hashlib.sha256(json.dumps(_essence(spec, settings), sort_keys=True).encode()).hexdigest()[:16]


def launch_spec(
    server_uuid: str, replica: int, spec: ServerSpec, settings: Settings, model_file: Callable[[str], ModelFile]
) -> LaunchSpec:
    """Return the launch spec of one engine; `model_file` returns the file of each model that it needs."""
    model = model_file(spec.model_uuid)
    essence = _essence(spec, settings)
    return LaunchSpec(
        server_uuid=server_uuid,
        replica=replica,
        spec_hash=spec_hash(spec, settings),
        model_path=model.path,
        alias=str(essence["alias"]),
        http_threads=_CLUSTERS * connections(spec, settings) + _SPARE_THREADS,
        model_context=model.context_length,
        parameters=json_format.MessageToDict(spec.parameters, preserving_proto_field_name=True),
        files={name: model_file(model_uuid).path for name, model_uuid in models(spec.parameters).items()},
        adapter_paths={name: model.adapters[name] for name in adapters(spec.parameters) if name in model.adapters},
        projector_path=model.projector if loads_projector(spec.parameters) else "",
        placement=spec.placement,
        objects=[each for model_uuid in needed_models(spec) for each in model_file(model_uuid).objects],
    )


def engine_document(spec: LaunchSpec, listen: str, grace_seconds: float) -> dict[str, object]:
    """Return the spec that `python -m engine` reads, for an engine that listens on a Unix socket or host:port."""
    return {
        "model": spec.model_path,
        "listen": listen,
        "alias": spec.alias,
        "http_threads": spec.http_threads,
        "model_context": spec.model_context,
        "parameters": dict(spec.parameters),
        "files": dict(spec.files),
        "adapters": dict(spec.adapter_paths),
        "projector": spec.projector_path or None,
        "grace_seconds": grace_seconds,
    }


def _essence(spec: ServerSpec, settings: Settings) -> dict[str, object]:
    return {
        "model": spec.model_uuid,
        "alias": spec.model_name or spec.model_uuid,
        "connections": connections(spec, settings),
        "parameters": json_format.MessageToDict(spec.parameters, preserving_proto_field_name=True),
        # Without a placement the hash is that of releases that knew none, so that their engines go on.
        **({"placement": json_format.MessageToDict(spec.placement)} if spec.placement.ListFields() else {}),
    }
