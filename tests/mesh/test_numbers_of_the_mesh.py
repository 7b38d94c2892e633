"""GET /metrics on a whole mesh: one scrape of members, Envoy and engines, for who may read it; and the dashboard made of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.mesh.running import ROOT, RunningMesh, until

MODEL = "a.dotted:name.gguf"
DASHBOARD = ROOT / "deploy" / "grafana" / "llamesh.json"
_PROMPT_MS = re.compile(rb'"prompt_ms":([0-9.]+)')
_NAME = re.compile(r"\b(?:llamesh_|gen_ai_|llamacpp:|process_)\w+")
_FUNCTIONS_OF_LABELS = {"gen_ai_request_model", "gen_ai_token_type"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    mesh = RunningMesh(tmp_path_factory.mktemp("m") / "home")
    try:
        mesh.start()
        mesh.add_model("sentence", MODEL)
        mesh.serve("sentence", model_name=MODEL, replicas=2)
        yield mesh
    finally:
        mesh.stop()


def key(mesh: RunningMesh, scope: str) -> dict[str, str]:
    answer = mesh.call("POST", "/keys", json={"display_name": scope, "scopes": [scope]})
    assert answer.status_code == 200, answer.text
    return {"authorization": f"Bearer {answer.json()['token']}"}


@dataclass
class Answered:
    """An answer, and what is known of its first token without Envoy."""

    seconds: float
    """By the client's clock, until it had the first token; of an answer that is not streamed, until it had the answer."""
    prompt_seconds: float
    """By the engine's clock, for the prompt alone; 0 if the answer does not say it."""


def chat(mesh: RunningMesh, prompt: str = "Hi", **more: object) -> Answered:
    """Ask with a token."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8, **more}
    headers = {"authorization": f"Bearer {mesh.token}"}
    began = time.monotonic()
    with mesh.http.stream("POST", mesh.url("inference", "/v1/chat/completions"), json=body, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        pieces = answer.iter_bytes()
        first = next(pieces)
        seconds = time.monotonic() - began
        found = _PROMPT_MS.search(first + b"".join(pieces))
    return Answered(seconds, float(found[1]) / 1000 if found else 0)


def scraped(mesh: RunningMesh) -> dict[str, Metric]:
    answer = mesh.call("GET", "/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in families}) == len(families), "each family stands once"
    return {family.name: family for family in families}


def value(families: dict[str, Metric], sample: str, **labels: str) -> float:
    """The sum of the samples of a name that have these labels."""
    return sum(
        each.value
        for family in families.values()
        for each in family.samples
        if each.name == sample and labels.items() <= each.labels.items()
    )


def answering(families: dict[str, Metric]) -> dict[str, float]:
    """1 for each source that has answered a scrape, 0 for each other one."""
    return {each.labels["source"]: each.value for each in families["llamesh_up"].samples}


def test_the_metrics_scope_opens_the_metrics_and_nothing_else(mesh: RunningMesh) -> None:
    assert mesh.http.get(mesh.url("gateway", "/metrics")).status_code == 401
    refused = mesh.http.get(mesh.url("gateway", "/metrics"), headers=key(mesh, "manage"))
    assert (refused.status_code, "metrics" in refused.text) == (403, True)
    own = key(mesh, "metrics")
    assert mesh.http.get(mesh.url("gateway", "/metrics"), headers=own).status_code == 200
    assert mesh.http.get(mesh.url("gateway", "/status"), headers=own).status_code == 403
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), headers=own, json=body)
    assert answer.status_code == 403, answer.text


def test_the_latency_measured_by_envoy_agrees_with_a_clients_clock(mesh: RunningMesh) -> None:
    name = "gen_ai_server_time_to_first_token_seconds"
    about = {"gen_ai_request_model": MODEL, "stream": "true"}
    before = scraped(mesh)
    # Each prompt differs in its first words, so that no engine has it in its cache.
    measured = [chat(mesh, f"{number} " + "Hello! " * 100, stream=True) for number in range(20)]
    expected = value(before, f"{name}_count", **about) + 20
    after = until(
        lambda: (found := scraped(mesh)) and value(found, f"{name}_count", **about) >= expected and found,
        60,
        "the histogram",
    )
    assert value(after, f"{name}_count", **about) == expected
    told = value(after, f"{name}_sum", **about) - value(before, f"{name}_sum", **about)
    # The client's clock begins earlier and ends later; what lies between is the way through the kernel, and this test's own work. The
    # engine's clock begins later and ends earlier. Envoy's histograms store values with two digits.
    assert (
        0 < sum(each.prompt_seconds for each in measured) * 0.9 <= told <= sum(each.seconds for each in measured) / 0.9
    )
    assert value(after, "gen_ai_client_token_usage_tokens_total", gen_ai_token_type="output", **about) >= 20 * 8
    assert value(after, "gen_ai_server_time_per_output_token_seconds_count", **about) >= 20
    assert value(after, "llamesh_upstream_requests_total", gen_ai_request_model=MODEL, status="2xx") >= 20


def test_every_engine_server_and_part_is_told_by_name(mesh: RunningMesh) -> None:
    # Each source has two seconds, which a busy machine may take from it.
    families = until(
        lambda: (
            all((found := scraped(mesh)) and answering(found).values())
            and value(found, "llamesh_engine_up", model=MODEL) == 2
            and found
        ),
        60,
        "a scrape of every part",
    )
    assert answering(families) == dict.fromkeys(("gateway", "contract", "download", "controller", "envoy"), 1.0)
    assert value(families, "llamesh_server_ready_replicas", model=MODEL) == 2
    assert value(families, "llamesh_server_state", model=MODEL, state="ready") == 1
    assert {each.labels["replica"] for each in families["llamacpp:requests_processing"].samples} == {"0", "1"}
    assert value(families, "llamesh_call_duration_seconds_count", member="gateway", code="OK") > 0


def test_nothing_that_a_client_makes_up_becomes_a_label(mesh: RunningMesh) -> None:
    for number in range(50):
        body = {"model": f"made-up-{number}", "messages": [{"role": "user", "content": "Hi"}]}
        mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body)
        mesh.http.get(mesh.url("gateway", f"/made-up-{number}"))
        mesh.http.post(mesh.url("gateway", f"/llamesh.v1.GatewayService/Made-up-{number}"))
    until(
        lambda: value(scraped(mesh), "llamesh_front_door_requests_total", listener="gateway", status="4xx") >= 50,
        60,
        "the calls in the numbers of Envoy",
    )
    assert "ade-up" not in mesh.call("GET", "/metrics").text


def test_a_part_that_does_not_answer_is_left_out_and_said(mesh: RunningMesh) -> None:
    victim = mesh.processes()["contract"]
    victim.suspend()
    try:
        assert answering(scraped(mesh))["contract"] == 0
        others = until(
            lambda: (
                answering(found := scraped(mesh))["envoy"]
                and value(found, "llamesh_engine_up", model=MODEL) == 2
                and found
            ),
            60,
            "a scrape of all others",
        )
        assert answering(others)["contract"] == 0
    finally:
        victim.resume()


def test_every_panel_of_the_dashboard_has_numbers(mesh: RunningMesh) -> None:
    for stream in (True, False):
        chat(mesh, stream=stream)
    needed = dashboard_names(DASHBOARD)
    assert len(needed) > 15
    names = until(lambda: needed <= (found := sample_names(scraped(mesh))) and found, 60, f"all of {sorted(needed)}")
    assert needed <= names


def sample_names(families: dict[str, Metric]) -> set[str]:
    return {each.name for family in families.values() for each in family.samples}


def dashboard_names(path: Path) -> set[str]:
    """The names of all samples that the panels ask for."""
    expressions = [
        target["expr"] for panel in json.loads(path.read_text())["panels"] for target in panel.get("targets", ())
    ]
    return {name for text in expressions for name in _NAME.findall(text)} - _FUNCTIONS_OF_LABELS
