"""`serve` says where engine pods run, in options that a placement is shown as too."""

from __future__ import annotations

import json
from shlex import split

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.placement import options_of, read_placement
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Gpus, Placement, Toleration
from tests.contract.fakes import FakeGateway

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("url")

EXISTS = server_pb2.TOLERATION_OPERATOR_EXISTS
EQUAL = server_pb2.TOLERATION_OPERATOR_EQUAL
OPTIONS = [
    *("--node-selector", "llamesh.dev/pool=a", "--node-selector", "zone="),
    *("--toleration", "nvidia.com/gpu", "--toleration", "dedicated=llm:NoSchedule", "--toleration", "flaky:NoExecute"),
    *("--gpus", "2:amd.com/gpu", "--priority-class", "batch", "--image", "reg.example:5000/engine:cuda"),
]
PLACED = Placement(
    node_selector={"llamesh.dev/pool": "a", "zone": ""},
    tolerations=[
        Toleration(key="nvidia.com/gpu", operator=EXISTS),
        Toleration(key="dedicated", operator=EQUAL, value="llm", effect=server_pb2.TAINT_EFFECT_NO_SCHEDULE),
        Toleration(key="flaky", operator=EXISTS, effect=server_pb2.TAINT_EFFECT_NO_EXECUTE),
    ],
    gpus=Gpus(count=2, resource="amd.com/gpu"),
    priority_class="batch",
    image="reg.example:5000/engine:cuda",
)


def test_every_option_reaches_the_request(gateway: FakeGateway, capsys: Capture) -> None:
    assert run(["serve", "name3", *OPTIONS, "-o", "json"]) == Exit.OK
    assert gateway.declared[-1].placement == PLACED
    assert json.loads(capsys.readouterr().out)["spec"]["placement"]["gpus"] == {"count": 2, "resource": "amd.com/gpu"}


def test_without_an_option_no_placement_is_sent(gateway: FakeGateway) -> None:
    assert run(["serve", "name3"]) == Exit.OK
    assert not gateway.declared[-1].HasField("placement")


def test_a_placement_is_shown_as_the_options_that_give_it() -> None:
    assert split(options_of(PLACED)) == OPTIONS
    assert options_of(Placement(gpus=Gpus(count=1))) == "--gpus 1"
    assert options_of(Placement()) == ""
    assert read_placement((), (), "", "", "") is None


@pytest.mark.parametrize("effect", ["NoSchedule", "no_schedule", "NO_SCHEDULE", "TAINT_EFFECT_NO_SCHEDULE"])
def test_effects_are_taken_in_every_spelling(effect: str) -> None:
    made = read_placement((), (f"a:{effect}",), "", "", "")
    assert made is not None
    assert made.tolerations[0].effect == server_pb2.TAINT_EFFECT_NO_SCHEDULE


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--node-selector", "zone"], "--node-selector zone: must be KEY=VALUE"),
        (
            ["--toleration", "a:Never"],
            "Never is no effect of a taint; those are NoSchedule, PreferNoSchedule, NoExecute",
        ),
        (["--gpus", "many"], "--gpus many: must be a number, or NUMBER:RESOURCE"),
        (["--gpus", "-1"], "--gpus"),
    ],
)
def test_a_malformed_option_is_usage_before_anything_is_asked(
    gateway: FakeGateway, capsys: Capture, options: list[str], said: str
) -> None:
    assert run(["serve", "name3", *options]) == Exit.USAGE
    assert said in capsys.readouterr().err
    assert gateway.declared == []
