"""The command takes every runtime parameter of the contract, as options and as llama.cpp's flags."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.json_shape import shaped
from llamesh.cli.main import run
from llamesh.client.parameters import typed
from llamesh.runtime_parameters import Parameter, Value, about, all_parameters, refused_options
from llamesh.v1 import server_pb2
from tests.contract.fakes import FakeGateway, a_value

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("url")


def test_serve_takes_every_runtime_parameter_of_the_contract(gateway: FakeGateway, capsys: Capture) -> None:
    options = ["--ctx-size", "2048", "-np", "2", "--cache-type-k", "q8_0", "--no-cont-batching", "--temp=0.5"]
    assert run(["serve", "name3", *options, "-o", "json"]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    assert found["model_uuid"] == "m3"
    assert found["spec"]["parameters"] == {
        "ctx_size": 2048,
        "parallel": 2,
        "cache_type_k": "Q8_0",
        "cont_batching": False,
        "temp": 0.5,
    }


@pytest.mark.parametrize(
    ("flag", "mode"), [(flag, mode) for flag, mode in all_parameters()["load_mode"].implied.items()]
)
def test_flags_that_llama_cpp_replaced_are_taken(gateway: FakeGateway, flag: str, mode: str) -> None:
    assert run(["serve", "name3", flag, "-np", "2"]) == Exit.OK
    assert gateway.declared[-1].parameters == typed({"load_mode": mode, "parallel": 2})


def test_a_flag_that_llama_cpp_replaced_and_its_option_are_a_mistake(gateway: FakeGateway, capsys: Capture) -> None:
    for more in (["--load-mode", "mmap"], ["--no-mmap"]):
        assert run(["serve", "name3", "--mlock", *more]) == Exit.USAGE
        assert "is given already" in capsys.readouterr().err
    assert gateway.declared == []


@pytest.mark.parametrize("command", ["serve", "fit"])
@pytest.mark.parametrize(
    "words", [["--mmproj", "x"], ["--control-vector=x"], ["--mirostat", "2"], ["-lv", "3"], ["-mm", "x"]]
)
def test_an_option_that_may_not_be_given_says_why(
    gateway: FakeGateway, capsys: Capture, command: str, words: list[str]
) -> None:
    assert run([command, "name3", *words]) == Exit.USAGE
    said = capsys.readouterr().err
    assert refused_options()[words[0].partition("=")[0]] in said
    assert "Unknown option" not in said


def test_serve_passes_flags_on_as_they_are(gateway: FakeGateway) -> None:
    assert run(["serve", "name3", "-o", "json", "--", "--ctx-size", "2048", "-np", "2"]) == Exit.OK
    assert gateway.runtime_params == ["--ctx-size 2048 -np 2"] * 2


def test_flags_and_options_together_are_a_mistake(gateway: FakeGateway, capsys: Capture) -> None:
    assert run(["serve", "name3", "-np", "2", "--", "--ctx-size", "2048"]) == Exit.USAGE
    assert "not both" in capsys.readouterr().err
    assert gateway.serve_requests == []


@pytest.mark.parametrize("options", [["--ctx-size", "many"], ["--cache-type-k", "q9"], ["--api-key", "x"]])
def test_a_wrong_parameter_is_usage_before_anything_is_asked(gateway: FakeGateway, options: list[str]) -> None:
    assert run(["serve", "name3", *options]) == Exit.USAGE
    assert gateway.tokens == []


def test_lengths_of_time_are_taken_as_people_write_them(gateway: FakeGateway, capsys: Capture) -> None:
    assert run(["serve", "name3", "--idle-sleep", "10m", "--wake-budget", "90", "-o", "json"]) == Exit.OK
    assert [request.idle_sleep.seconds for request in gateway.declared] == [600, 600]
    assert gateway.declared[0].wake_budget.seconds == 90
    capsys.readouterr()
    assert run(["serve", "name3", "--idle-sleep", "10 weeks"]) == Exit.USAGE
    assert "'10 weeks' is not a length of time like 30s" in capsys.readouterr().err


def _ways(parameter: Parameter) -> Iterator[tuple[list[str], Value]]:
    """Every way in which the command takes a parameter, and the value that must arrive."""
    value = a_value(parameter)
    for flag in (parameter.flag, *parameter.aliases):
        yield [flag] if parameter.switch else [flag, str(value)], value
    for negative in parameter.negatives:
        yield [negative], False


EVERY_OPTION = [
    (parameter.name, words, value) for parameter in all_parameters().values() for words, value in _ways(parameter)
]


def test_numbers_may_be_said_in_llama_cpp_s_words(gateway: FakeGateway) -> None:
    for words, wanted in (
        (["--threads", "-1", "--seed", "-1", "-tb", "-1"], {}),
        (["-ngl", "auto"], {}),
        (["-ngl=-1"], {}),
        (["--gpu-layers", "all"], {"gpu_layers": 1000}),
    ):
        assert run(["serve", "m0", *words]) == Exit.OK, words
        assert gateway.declared[-1].parameters == server_pb2.RuntimeParameters(**wanted), words


def test_a_draft_model_is_found_by_its_name(gateway: FakeGateway) -> None:
    assert run(["serve", "m0", "--model-draft", "name1"]) == Exit.OK
    assert gateway.declared[-1].parameters.model_draft == "m1"


def test_flags_keep_their_quotes(gateway: FakeGateway) -> None:
    assert run(["serve", "m0", "--", "--chat-template-kwargs", '{"a": "b c"}', "-t", "2"]) == Exit.OK
    assert gateway.runtime_params[-1] == """--chat-template-kwargs '{"a": "b c"}' -t 2"""


def test_help_explains_each_parameter_and_its_default(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert run(["serve", "--help"]) == Exit.OK
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, parameter in all_parameters().items():
        assert parameter.flag in shown
        assert about()[name].split(". ")[0] in shown, name
        assert "Default" in about()[name], name
    assert "Default 4. [1 to 64]" in shown
    assert "[above 0, at most 1000000000]" in shown
    assert "[choices: minimal, low, medium, high, xhigh, max, default]" in shown


def test_every_runtime_option_of_serve_arrives(gateway: FakeGateway) -> None:
    lost = []
    for name, words, value in EVERY_OPTION:
        assert run(["serve", "m0", *words]) == Exit.OK, words
        if gateway.declared[-1].parameters != typed({name: value}):
            lost.append(words)
    assert lost == []


def test_every_runtime_option_of_fit_arrives(capsys: Capture) -> None:
    lost = []
    for name, words, value in EVERY_OPTION:
        run(["fit", "m0", "--output", "json", *words])
        answer = json.loads(capsys.readouterr().out)
        if answer["parameters"] != shaped(typed({name: value})):
            lost.append(words)
    assert lost == []


def test_runtime_options_leave_the_commands_own_options_alone(gateway: FakeGateway) -> None:
    values = {name: a_value(parameter) for name, parameter in all_parameters().items()}
    runtime = [
        word
        for name, words, value in EVERY_OPTION
        if words[0] == all_parameters()[name].flag and value
        for word in words
    ]
    own = ["--name", "words", "--replicas", "3", "--idle-sleep", "10m", "--wake-budget", "7s", "--namespace", "n"]
    assert run(["serve", "m0", *runtime, *own, "--metered"]) == Exit.OK
    request = gateway.declared[-1]
    assert request.parameters == typed(values)
    assert (request.model_name, request.replicas, request.namespace, request.metered) == ("words", 3, "n", True)
    assert (request.idle_sleep.seconds, request.wake_budget.seconds) == (600, 7)
