"""Which of Envoy's statistics the mesh exposes as metrics, and under which names.

Envoy names its statistics after its configuration: `envoy/listeners/inference.yaml` makes it count answers by cluster. This module turns a
cluster into the label `server` or `model`, and microseconds into seconds. A name that OpenTelemetry's semantic conventions for generative
AI (in development) define is used as it is there. Invariant: a family that is not in the tables below is not exposed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import Metric

from llamesh.kit.exposition import labelled, renamed, with_samples
from llamesh.names import cluster_of_stat, model_of, server_of

PATH = "/stats/prometheus"
"""Path of Envoy's admin interface."""
_ANSWERS = {
    "envoy_llamesh_request_duration": (
        "gen_ai_server_request_duration_seconds",
        "Seconds from the first byte of a request to the last byte of its answer, including the wait for an engine.",
    ),
    "envoy_llamesh_time_to_first_token": (
        "gen_ai_server_time_to_first_token_seconds",
        "Seconds from the head of a request to the first token of a streamed answer, including the wait for an engine.",
    ),
    "envoy_llamesh_time_per_output_token": (
        "gen_ai_server_time_per_output_token_seconds",
        "Seconds between two tokens of a streamed answer, after the first token.",
    ),
}
_TOKENS = {"envoy_llamesh_input_tokens": "input", "envoy_llamesh_output_tokens": "output"}
_FRONT_DOOR = {
    "envoy_http_downstream_rq_xx": ("llamesh_front_door_requests", "Requests by the first digit of the response status."),
    "envoy_http_downstream_rq_active": ("llamesh_front_door_requests_active", "Requests in progress."),
    "envoy_http_downstream_cx_active": ("llamesh_front_door_connections_active", "Open connections."),
    "envoy_cluster_upstream_rq_xx": ("llamesh_upstream_requests", "Requests to engines, members and the waker, by status."),
    "envoy_cluster_upstream_rq_active": ("llamesh_upstream_requests_active", "Requests in progress at engines and members."),
    "envoy_cluster_upstream_rq_pending_active": ("llamesh_upstream_requests_waiting", "Requests that wait in Envoy."),
    "envoy_cluster_upstream_rq_retry": ("llamesh_upstream_retries", "Requests that Envoy retried."),
    "envoy_server_memory_allocated": ("llamesh_envoy_memory_allocated_bytes", "Memory that Envoy uses."),
    "envoy_server_uptime": ("llamesh_envoy_uptime_seconds", "Seconds since Envoy started."),
    "envoy_control_plane_connected_state": ("llamesh_envoy_control_plane_connected", "1 while the controller configures Envoy."),
    "envoy_listener_manager_lds_update_rejected": ("llamesh_envoy_rejected_updates", "Listener updates that Envoy rejected."),
}  # fmt: skip

QUERY: Mapping[str, str] = {
    "histogram_buckets": "cumulative",
    "filter": r"^(llamesh\.|http\.[a-z]+\.downstream_(rq_[1-5]xx|rq_active|cx_active)$"
    r"|cluster\..*\.upstream_rq_([1-5]xx|active|pending_active|retry)$"
    r"|server\.(memory_allocated|uptime)$|control_plane\.connected_state$|listener_manager\.lds\.update_rejected$)",
}
"""Parameters of the request to Envoy: they select the statistics in the tables above."""

_STREAM = "text/event-stream"


def exposed(families: Iterable[Metric]) -> Iterator[Metric]:
    """Select and rename the families that the mesh exposes."""
    tokens = Metric("gen_ai_client_token_usage_tokens", "Tokens of prompts and answers.", "counter")
    for family in families:
        if family.name in _ANSWERS:
            name, words = _ANSWERS[family.name]
            yield _by_target(renamed(family, name, words, 1e6))
        elif family.name in _TOKENS:
            counted = renamed(family, tokens.name, tokens.documentation)
            tokens.samples += _by_target(labelled(counted, {"gen_ai_token_type": _TOKENS[family.name]})).samples
        elif family.name in _FRONT_DOOR:
            yield _by_target(renamed(family, *_FRONT_DOOR[family.name]))
    yield tokens


def _by_target(family: Metric) -> Metric:
    """Replace Envoy's labels by the mesh's: target of the cluster, streamed or not, listener, class of the status."""
    return with_samples(family, [each._replace(labels=_labels(each.labels)) for each in family.samples])


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    found = {name: labels[name] for name in ("le", "gen_ai_token_type") if name in labels}
    cluster = labels.get("target") or cluster_of_stat(labels.get("envoy_cluster_name", ""))
    if cluster:
        server, model = server_of(cluster), model_of(cluster)
        found |= {"server": server} if server else {"gen_ai_request_model": model} if model else {"member": cluster}
    if "content" in labels:
        found["stream"] = str(labels["content"].startswith(_STREAM)).lower()
    if "envoy_http_conn_manager_prefix" in labels:
        found["listener"] = labels["envoy_http_conn_manager_prefix"]
    if "envoy_response_code_class" in labels:
        found["status"] = labels["envoy_response_code_class"] + "xx"
    return found
