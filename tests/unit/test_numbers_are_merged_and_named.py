"""Prometheus' text format in and out: families of several sources become one, and Envoy's become ours."""

from __future__ import annotations

import pytest

from llamesh.kit.exposition import labelled, merged, parsed, renamed
from llamesh.names import cluster_of_stat, model_cluster, server_cluster, stat_name
from services.gateway.envoy_metrics import exposed

ENVOY = b"""
# TYPE envoy_llamesh_time_to_first_token histogram
envoy_llamesh_time_to_first_token_bucket{target="m:qwen3.gguf",content="text/event-stream",le="500000"} 1
envoy_llamesh_time_to_first_token_bucket{target="m:qwen3.gguf",content="text/event-stream",le="+Inf"} 2
envoy_llamesh_time_to_first_token_sum{target="m:qwen3.gguf",content="text/event-stream"} 2500000
envoy_llamesh_time_to_first_token_count{target="m:qwen3.gguf",content="text/event-stream"} 2
# TYPE envoy_llamesh_input_tokens counter
envoy_llamesh_input_tokens{target="s:0b1e",content="application/json"} 7
# TYPE envoy_llamesh_output_tokens counter
envoy_llamesh_output_tokens{target="s:0b1e",content="application/json"} 5
# TYPE envoy_cluster_upstream_rq_active gauge
envoy_cluster_upstream_rq_active{envoy_cluster_name="m%3Aqwen3%2Egguf"} 3
envoy_cluster_upstream_rq_active{envoy_cluster_name="contract"} 1
# TYPE envoy_cluster_circuit_breakers_default_cx_open gauge
envoy_cluster_circuit_breakers_default_cx_open{envoy_cluster_name="contract"} 0
"""


def lines(text: bytes) -> list[str]:
    return [line for line in text.decode().splitlines() if not line.startswith("#")]


def test_families_of_several_sources_are_written_once_with_all_samples() -> None:
    text = b"# HELP up Whether.\n# TYPE up gauge\nup 1.0\n"
    families = [labelled(family, {"member": name}) for name in ("gateway", "contract") for family in parsed(text)]
    assert merged(families) == (
        b'# HELP up Whether.\n# TYPE up gauge\nup{member="gateway"} 1.0\nup{member="contract"} 1.0\n'
    )


def test_a_histogram_is_renamed_with_its_bounds_and_sum_divided() -> None:
    text = b'# TYPE a histogram\na_bucket{le="1000"} 2\na_bucket{le="+Inf"} 3\na_sum 4000\na_count 3\n'
    (family,) = (renamed(family, "b_seconds", "How long.", 1000) for family in parsed(text))
    assert lines(merged([family])) == [
        'b_seconds_bucket{le="1.0"} 2.0',
        'b_seconds_bucket{le="+Inf"} 3.0',
        "b_seconds_sum 4.0",
        "b_seconds_count 3.0",
    ]


def test_a_text_in_another_format_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r".+"):
        list(parsed(b"<html>\n"))


def test_envoys_numbers_are_told_by_model_or_server_in_seconds_and_no_others() -> None:
    found = lines(merged(exposed(parsed(ENVOY))))
    labels = 'gen_ai_request_model="qwen3.gguf"'
    assert found == [
        f'gen_ai_server_time_to_first_token_seconds_bucket{{{labels},le="0.5",stream="true"}} 1.0',
        f'gen_ai_server_time_to_first_token_seconds_bucket{{{labels},le="+Inf",stream="true"}} 2.0',
        f'gen_ai_server_time_to_first_token_seconds_sum{{{labels},stream="true"}} 2.5',
        f'gen_ai_server_time_to_first_token_seconds_count{{{labels},stream="true"}} 2.0',
        f"llamesh_upstream_requests_active{{{labels}}} 3.0",
        'llamesh_upstream_requests_active{member="contract"} 1.0',
        'gen_ai_client_token_usage_tokens_total{gen_ai_token_type="input",server="0b1e",stream="false"} 7.0',
        'gen_ai_client_token_usage_tokens_total{gen_ai_token_type="output",server="0b1e",stream="false"} 5.0',
    ]


@pytest.mark.parametrize("cluster", [server_cluster("0b1e-4"), model_cluster("org/Qwen3.5:Q4_K_M%"), "contract"])
def test_a_cluster_is_found_again_by_its_name_in_statistics(cluster: str) -> None:
    name = stat_name(cluster)
    assert not {".", ":"} & set(name)
    assert cluster_of_stat(name) == cluster
