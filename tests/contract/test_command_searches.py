"""`llamesh search` prints what can be fetched, for people and for programs."""

from __future__ import annotations

import json

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import download_pb2 as pb
from tests.contract.fakes import FakeDownloads

Capture = pytest.CaptureFixture[str]
GIB = 1 << 30


@pytest.fixture
def hub(downloads: FakeDownloads, url: str) -> FakeDownloads:
    small = pb.HubModel(
        source="hf:ada/tiny-GGUF:Q4_K_M", quantisation="Q4_K_M", size_bytes=GIB, file_count=1, fit=pb.HUB_FIT_NOW
    )
    large = pb.HubModel(source="hf:ada/tiny-GGUF:F16", size_bytes=9 * GIB, file_count=2, fit=pb.HUB_FIT_NO)
    downloads.found = pb.SearchHubResponse(
        repositories=[
            pb.HubRepository(repository="ada/tiny-GGUF", models=[small, large], downloads=12, license="mit"),
            pb.HubRepository(repository="ben/gone", problem="the Hub did not list it"),
        ]
    )
    return downloads


def test_a_table_has_a_line_for_each_model_and_says_what_was_not_listed(hub: FakeDownloads, capsys: Capture) -> None:
    assert run(["search", "tiny", "gguf", "--limit", "7"]) == Exit.OK
    assert (hub.searched.query, hub.searched.max_repositories) == ("tiny gguf", 7)
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()] == [
        ["SOURCE", "SIZE", "FITS", "HERE", "DOWNLOADS"],
        ["hf:ada/tiny-GGUF:Q4_K_M", "1.0", "GiB", "yes", "-", "12"],
        ["hf:ada/tiny-GGUF:F16", "9.0", "GiB", "no", "-", "12"],
    ]
    assert shown.err == "ben/gone: the Hub did not list it\n"


def test_programs_get_repositories_or_sources(hub: FakeDownloads, capsys: Capture) -> None:
    assert run(["search", "tiny", "-o", "json"]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    assert [item["repository"] for item in found] == ["ada/tiny-GGUF", "ben/gone"]
    assert (found[0]["models"][0]["fit"], found[0]["models"][0]["size_bytes"]) == ("NOW", GIB)
    assert run(["search", "tiny", "-o", "yaml"]) == Exit.OK
    assert 'repository: "ada/tiny-GGUF"' in capsys.readouterr().out
    assert run(["search", "tiny", "-o", "name"]) == Exit.OK
    assert capsys.readouterr().out.splitlines() == ["hf:ada/tiny-GGUF:Q4_K_M", "hf:ada/tiny-GGUF:F16"]
    assert run(["search", "tiny", "-o", "wide"]) == Exit.OK
    assert "LICENSE" in capsys.readouterr().out


def test_a_hub_that_does_not_answer_is_asked_once(hub: FakeDownloads, capsys: Capture) -> None:
    hub.unsearchable = "huggingface.co cannot be searched: the host huggingface.co cannot be found"
    assert run(["search", "tiny"]) == Exit.UNAVAILABLE
    said = capsys.readouterr().err
    assert hub.unsearchable in said
    assert "check HF_ENDPOINT" in said
    assert "pull" not in said
    assert hub.searches == 1


def test_nothing_found_is_said(hub: FakeDownloads, capsys: Capture) -> None:
    hub.found = pb.SearchHubResponse()
    assert run(["search", "nothing"]) == Exit.OK
    assert "nothing was found" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["x", "--limit", "0"], ["x", "--limit", "21"]])
def test_misuse_is_refused_before_anything_is_asked(hub: FakeDownloads, words: list[str]) -> None:
    assert run(["search", *words]) == Exit.USAGE
    assert not hub.searched.query
