"""`set`, `describe` and the warning of `serve` against labelled fakes."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from llamesh import runtime_parameters
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import server_pb2
from tests.contract.fakes import FakeGateway

pytestmark = pytest.mark.usefixtures("url")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def served(gateway: FakeGateway) -> server_pb2.Server:
    server = server_pb2.Server(server_uuid="0f0c6a0e", model_name="smol", model_uuid="m0", etag="7", replicas=1)
    server.spec.parameters.ctx_size = 2048
    server.spec.parameters.parallel = 2
    server.spec.wake_budget.FromSeconds(30)
    gateway.servers = [server]
    return server


@pytest.mark.usefixtures("served")
def test_set_changes_only_given_fields_and_names_the_restart(gateway: FakeGateway, capsys: Capture) -> None:
    assert run(["set", "smol", "--ctx-size", "4096", "--idle-sleep", "10m"]) == Exit.OK
    (request,) = gateway.updated
    assert (request.etag, request.changes.idle_sleep.seconds) == ("7", 600)
    assert request.changes.parameters == server_pb2.RuntimeParameters(ctx_size=4096, parallel=2)
    assert not request.changes.HasField("replicas")
    assert not request.changes.HasField("wake_budget")
    assert capsys.readouterr().err.splitlines() == [
        "parameters.ctx_size: 2048 -> 4096",
        "idle_sleep: default -> 600s",
        "engines that run are replaced one after the other with these parameters; requests go on",
    ]


@pytest.mark.usefixtures("served")
def test_set_without_parameters_restarts_nothing(gateway: FakeGateway, capsys: Capture) -> None:
    assert run(["set", "smol", "--idle-sleep", "10m"]) == Exit.OK
    assert not gateway.updated[0].changes.HasField("parameters")
    assert "no engine is restarted" in capsys.readouterr().err


def test_set_does_not_wait_for_a_server_that_is_asleep(gateway: FakeGateway, served: server_pb2.Server) -> None:
    served.state = server_pb2.SERVER_STATE_SLEEPING
    assert run(["set", "smol", "--idle-sleep", "10m", "--wait"]) == Exit.OK
    assert gateway.watches == []


@pytest.mark.usefixtures("served")
def test_unset_gives_a_parameter_its_default_again(gateway: FakeGateway) -> None:
    assert run(["set", "smol", "--unset", "ctx-size"]) == Exit.OK
    assert gateway.updated[0].changes.parameters == server_pb2.RuntimeParameters(parallel=2)
    assert run(["set", "smol", "--unset", "ctx-size", "--unset", "parallel"]) == Exit.OK
    assert gateway.updated[1].changes.HasField("runtime_params")


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--idle-sleep", "never"], "idle_sleep", {}),
        (["--idle-sleep", "0"], "idle_sleep", {}),
        (["--unset", "idle-sleep"], "idle_sleep", {}),
        (["--unset", "--idle_sleep"], "idle_sleep", {}),
        (["--wake-budget", "default"], "wake_budget", {}),
        (["--unset", "wake-budget"], "wake_budget", {}),
        (["--unset", "metered"], "metered", False),
        (["--no-metered"], "metered", False),
        (["--unset", "replicas"], "replicas", 1),
        (["--unset", "-r"], "replicas", 1),
        (["--unset", "name"], "model_name", "Found"),
        (["--unset", "alias"], "model_name", "Found"),
    ],
)
def test_every_option_of_serve_gets_its_default_again(
    gateway: FakeGateway, arguments: list[str], field: str, value: object
) -> None:
    assert run(["set", "smol", *arguments]) == Exit.OK
    (request,) = gateway.updated
    ((changed, found),) = request.changes.ListFields()
    assert changed.name == field
    assert found == (Duration() if value == {} else value)


@pytest.mark.parametrize("command", [["serve", "m0"], ["set", "smol"]])
@pytest.mark.parametrize("option", [["--idle-sleep", "never"], ["--wake-budget", "default"]])
@pytest.mark.usefixtures("served")
def test_serve_and_set_take_the_same_words(command: list[str], option: list[str]) -> None:
    assert run([*command, *option]) == Exit.OK


@pytest.mark.parametrize(
    ("given", "word"),
    [("parallel", "-np"), ("gpu_layers", "ngl"), ("load_mode", "--no-mmap"), ("load_mode", "load-mode")],
)
def test_unset_takes_every_flag_of_a_parameter(
    gateway: FakeGateway, served: server_pb2.Server, given: str, word: str
) -> None:
    setattr(served.spec.parameters, given, 1)
    assert run(["set", "smol", "--unset", word]) == Exit.OK
    (request,) = gateway.updated
    assert not request.changes.parameters.HasField(given)
    assert request.changes.parameters.ctx_size == 2048


@pytest.mark.parametrize(
    ("name", "flag", "word"),
    [
        (item.name, item.flag, word)
        for item in runtime_parameters.all_parameters().values()
        for word in sorted(item.absent)
    ],
)
def test_a_value_that_means_the_default_replaces_the_present_one(
    gateway: FakeGateway, served: server_pb2.Server, name: str, flag: str, word: str
) -> None:
    setattr(served.spec.parameters, name, "high" if name == "reasoning_effort" else 1)
    assert run(["set", "smol", f"{flag}={word}"]) == Exit.OK
    assert not gateway.updated[0].changes.parameters.HasField(name)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--namespace", "prod"], "--namespace cannot be changed"),
        (["--unset", "namespace"], "--namespace cannot be changed"),
        (["--unset", "ctx-sise"], "did you mean ctx-size?"),
        (["--unset", "idle-slep"], "did you mean idle-sleep?"),
        (["--unset", "ctx-size", "-c", "1024"], "--ctx-size is given and unset at once"),
        (["--unset", "idle-sleep", "--idle-sleep", "1m"], "--idle-sleep is given and unset at once"),
        (["--unset", "ctx-size", "--", "-np", "2"], "none is left to unset"),
        (["--replicas", "0"], "replicas"),
    ],
)
def test_set_refuses_a_change_that_cannot_be_meant(
    gateway: FakeGateway, arguments: list[str], said: str, capsys: Capture
) -> None:
    assert run(["set", "smol", *arguments]) == Exit.USAGE
    assert gateway.updated == []
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("arguments", [[], ["--unset", "ctx-sise"], ["--ctx-size", "1", "--", "-c", "9"]])
def test_set_refuses_arguments_without_a_change(gateway: FakeGateway, arguments: list[str]) -> None:
    assert run(["set", "smol", *arguments]) == Exit.USAGE
    assert gateway.updated == []


@pytest.mark.usefixtures("served")
def test_describe_shows_everything_in_force(capsys: Capture) -> None:
    assert run(["describe", "smol"]) == Exit.OK
    shown = capsys.readouterr().out
    for line in (
        "Context     1024 tokens of 2048 for each of 2 slots",
        "Memory      369.0 MiB estimated for 1 engine; each: weights 92.0 MiB, KV cache 180.0 MiB, overhead 97.0 MiB",
        "Idle sleep  never",
        "Wake budget 30s",
        "Metered     no: the contract service is asked about tokens with a limited contract or with rights that may have ended",
        "Namespace   default",
    ):
        assert line in shown


def test_describe_shows_where_engines_run(served: server_pb2.Server, capsys: Capture) -> None:
    assert run(["describe", "smol"]) == Exit.OK
    assert "Placement" not in capsys.readouterr().out
    served.spec.placement.gpus.count = 2
    served.spec.placement.tolerations.add(key="nvidia.com/gpu", operator=server_pb2.TOLERATION_OPERATOR_EXISTS)
    assert run(["describe", "smol"]) == Exit.OK
    assert "Placement   --toleration nvidia.com/gpu --gpus 2" in capsys.readouterr().out


def test_serve_names_an_equal_server(gateway: FakeGateway, served: server_pb2.Server, capsys: Capture) -> None:
    served.runtime_params = "--ctx-size 2048"
    serve = ["serve", "m0", "--", "--ctx-size", "2048"]
    assert run(serve) == Exit.OK
    assert "`llamesh scale 0f0c6a0e 2`" in capsys.readouterr().err
    served.model_uuid = "m1"
    assert run(serve) == Exit.OK
    assert "llamesh scale" not in capsys.readouterr().err
    assert len(gateway.served) == 2


@pytest.mark.parametrize("days", ["0", "-1", "3651", "x"])
def test_a_key_that_would_not_last_a_day_is_refused(days: str, capsys: Capture) -> None:
    assert run(["keys", "create", "ci", "--days", days]) == Exit.USAGE
    assert "days" in capsys.readouterr().err.lower()
