"""The command against a mesh of labelled fakes: what it prints where, and its exit codes."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.client.parameters import typed
from llamesh.client.profile import Profile, load_profile, profile_path, save_profile
from llamesh.runtime_parameters import Parameter, Value, about, all_parameters, refused_options
from llamesh.v1 import download_pb2, gateway_pb2, server_pb2
from tests.contract.fakes import FakeContracts, FakeDownloads, FakeGateway, a_value, fake_mesh

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture(autouse=True)
def url(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with fake_mesh(gateway, FakeDownloads()) as address:
        monkeypatch.setenv("LLAMESH_URL", address)
        monkeypatch.setenv("LLAMESH_TOKEN", "token")
        yield address


def server(uuid: str, name: str) -> server_pb2.Server:
    return server_pb2.Server(
        server_uuid=uuid, model_name=name, state=server_pb2.SERVER_STATE_READY, replicas=2, ready_replicas=1
    )


def test_an_empty_list_is_an_empty_array(capsys: Capture) -> None:
    assert run(["status", "--output", "json"]) == Exit.OK
    assert capsys.readouterr().out == "[]\n"


def test_a_table_on_a_pipe_is_plain_text(gateway: FakeGateway, capsys: Capture) -> None:
    gateway.servers = [server("0f0c6a0e", "smol"), server("a1b2c3d4", "a\x1b[31mname")]
    assert run(["status"]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["SERVER", "MODEL", "STATE", "READY", "ENDPOINT"]
    assert lines[1].split() == ["0f0c6a0e", "smol", "READY", "1/2", "-"]
    assert "\x1b" not in lines[2]


def test_why_a_server_is_not_as_it_should_be_is_said_beside_the_table(gateway: FakeGateway, capsys: Capture) -> None:
    failing, well = server("0f0c6a0e", "smol"), server("a1b2c3d4", "other")
    failing.state = server_pb2.SERVER_STATE_FAILING
    for each in (failing, well):
        each.conditions.add(type="Ready", message="the engine cannot be started: No space left\x1b on device")
    gateway.servers = [failing, well]
    assert run(["status"]) == Exit.OK
    said = capsys.readouterr()
    assert "No space" not in said.out
    assert said.err.splitlines() == [
        "smol is FAILING: the engine cannot be started: No space left  on device",
    ]
    for output in ("json", "name", "wide"):
        run(["status", "--output", output])
        assert not capsys.readouterr().err


def test_json_is_the_rest_shape(gateway: FakeGateway, capsys: Capture) -> None:
    gateway.servers = [server("0f0c6a0e", "smol")]
    run(["status", "-o", "json"])
    found = json.loads(capsys.readouterr().out)
    assert (found[0]["server_uuid"], found[0]["ready_replicas"], found[0]["state"]) == (
        "0f0c6a0e",
        1,
        "SERVER_STATE_READY",
    )


def test_yaml_says_what_json_says(gateway: FakeGateway, capsys: Capture) -> None:
    import yaml

    gateway.servers = [server("0f0c6a0e", 'yes: no # "quoted"'), server("a1b2c3d4", "-")]
    gateway.servers[0].conditions.add(type="Ready", message="two\nlines")
    run(["status", "-o", "json"])
    as_json = json.loads(capsys.readouterr().out)
    run(["status", "-o", "yaml"])
    assert yaml.safe_load(capsys.readouterr().out) == as_json


def test_names_only(gateway: FakeGateway, capsys: Capture) -> None:
    gateway.servers = [server("0f0c6a0e", "smol"), server("a1b2c3d4", "smol")]
    run(["status", "-o", "name"])
    assert capsys.readouterr().out == "0f0c6a0e\na1b2c3d4\n"


@pytest.mark.parametrize("name", ["smol", "0f0c6a0e", "0f0c"])
def test_ids_and_names_are_taken(gateway: FakeGateway, capsys: Capture, name: str) -> None:
    gateway.servers = [server("0f0c6a0e", "smol"), server("a1b2c3d4", "other")]
    assert run(["stop", name]) == Exit.OK
    assert gateway.stopped == ["0f0c6a0e"]
    assert capsys.readouterr().out == ""


def test_an_ambiguous_name_lists_the_candidates_and_does_nothing(gateway: FakeGateway, capsys: Capture) -> None:
    gateway.servers = [server("0f0c6a0e", "smol"), server("a1b2c3d4", "smol")]
    assert run(["stop", "smol"]) == Exit.USAGE
    assert "  0f0c6a0e\n  a1b2c3d4\n" in capsys.readouterr().err
    assert gateway.stopped == []


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "PARAMETER_UNKNOWN", Exit.USAGE),
        (grpc.StatusCode.NOT_FOUND, "SERVER_NOT_FOUND", Exit.NOT_FOUND),
        (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", Exit.NOT_SIGNED_IN),
        (grpc.StatusCode.PERMISSION_DENIED, "TOO_MANY_REPLICAS", Exit.REFUSED),
        (grpc.StatusCode.FAILED_PRECONDITION, "DOES_NOT_FIT", Exit.REFUSED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "CONCURRENCY_EXCEEDED", Exit.REFUSED),
        (grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE", Exit.UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", Exit.UNAVAILABLE),
        (grpc.StatusCode.INTERNAL, "INTERNAL", Exit.FAILED),
    ],
)
def test_exit_codes_say_what_kind_of_failure_it_was(
    gateway: FakeGateway, capsys: Capture, code: grpc.StatusCode, reason: str, exit_code: Exit
) -> None:
    gateway.refusal = code, reason, "that is so"
    assert run(["status"]) == exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: that is so\n")
    assert "\nhint: " in shown.err


@pytest.mark.parametrize("token", ["", "a.b.c"])
def test_a_disabled_user_is_not_sent_to_log_in(
    gateway: FakeGateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("LLAMESH_TOKEN", token)
    said = "the user ada is disabled"
    gateway.refusal = grpc.StatusCode.UNAUTHENTICATED, "USER_DISABLED", said, {"username": "ada"}
    assert run(["status"]) == Exit.NOT_SIGNED_IN
    assert (
        capsys.readouterr().err
        == f"error: {said}\nhint: an administrator enables the user: `llamesh users enable ada`\n"
    )


def test_no_mesh_is_said_with_what_to_do(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_URL", "http://127.0.0.1:1")
    assert run(["status"]) == Exit.UNAVAILABLE
    assert "llamesh up" in capsys.readouterr().err
    assert run(["chat", "smol", "hi"]) == Exit.UNAVAILABLE


def test_a_mesh_that_hangs_is_said_in_a_bounded_time(
    gateway: FakeGateway, url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.hung = threading.Event()
    monkeypatch.setattr("llamesh.client.transport.DEADLINE", 0.3)
    try:
        assert run(["status"]) == Exit.UNAVAILABLE
    finally:
        gateway.hung.set()
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: the mesh at {url} did not answer in time\n")
    assert "llamesh doctor" in shown


def test_a_mistyped_command_is_usage(capsys: Capture) -> None:
    assert run(["statsu"]) == Exit.USAGE
    assert 'Did you mean "status"?' in capsys.readouterr().err


def test_serve_takes_every_runtime_parameter_of_the_contract(gateway: FakeGateway, capsys: Capture) -> None:
    options = ["--ctx-size", "2048", "-np", "2", "--cache-type-k", "q8_0", "--no-cont-batching", "--temp=0.5"]
    assert run(["serve", "name3", *options, "-o", "json"]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    assert found["model_uuid"] == "m3"
    assert found["spec"]["parameters"] == {
        "ctx_size": 2048,
        "parallel": 2,
        "cache_type_k": "CACHE_TYPE_Q8_0",
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
@pytest.mark.parametrize("words", [["--mmproj", "x"], ["--lora=x"], ["--mirostat", "2"], ["-lv", "3"], ["-mm", "x"]])
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


def test_a_refused_fit_prints_the_estimate_and_exits_5(capsys: Capture) -> None:
    assert run(["fit", "name3"]) == Exit.REFUSED
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].startswith("no ")
    assert shown.err.startswith("error: too big")


@pytest.mark.parametrize(
    ("shared", "needs", "words"),
    [
        (92, "923.0 MiB", "NEEDS = shared weights 92.0 MiB once + 277.0 MiB for each of 3 replicas"),
        (0, "1.1 GiB", "NEEDS = 369.0 MiB for each of 3 replicas"),
    ],
)
def test_a_fit_of_replicas_says_how_its_parts_add_up(
    shared: int, needs: str, words: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeContracts, "shared", shared)
    run(["fit", "name3", "--replicas", "3"])
    shown = capsys.readouterr()
    titles, row = shown.out.splitlines()
    place = titles.index("SHARED")
    assert row[place:].startswith(f"{shared}.0 MiB" if shared else "0 B")
    assert needs in row
    assert words in shown.err
    run(["fit", "name3"])
    assert "NEEDS" not in capsys.readouterr().err


def test_lengths_of_time_are_taken_as_people_write_them(gateway: FakeGateway, capsys: Capture) -> None:
    assert run(["serve", "name3", "--idle-sleep", "10m", "--wake-budget", "90", "-o", "json"]) == Exit.OK
    assert [request.idle_sleep.seconds for request in gateway.declared] == [600, 600]
    assert gateway.declared[0].wake_budget.seconds == 90
    capsys.readouterr()
    assert run(["serve", "name3", "--idle-sleep", "10 weeks"]) == Exit.USAGE
    assert "'10 weeks' is not a length of time like 30s" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["keys", "create", "--help"], ["serve", "--help"]])
def test_help_shows_what_is_written(arguments: list[str], capsys: Capture) -> None:
    assert run(arguments) == Exit.OK
    shown = capsys.readouterr().out
    assert "()" not in shown
    assert '""' not in shown
    assert ("infer:*" in shown) is (arguments[0] == "keys")


@pytest.mark.parametrize("address", ["http://localhost:x", "http://localhost:99999", "ftp://localhost", "http://:8200"])
@pytest.mark.parametrize("arguments", [["status"], ["api", "GET", "/status"], ["login", "ada", "--password-stdin"]])
def test_an_address_that_is_none_is_named(
    address: str, arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMESH_URL", address)
    assert run(arguments) == Exit.USAGE
    assert capsys.readouterr().err == f"error: {address!r} is not an address like http://localhost:8200\n"


@pytest.mark.parametrize("token", ["to\nken", "tok\u00e9n", "\x1b[31m"])
@pytest.mark.parametrize("arguments", [["status"], ["api", "GET", "/status"]])
def test_what_no_header_can_carry_is_no_token(
    token: str, arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMESH_TOKEN", token)
    assert run(arguments) == Exit.NOT_SIGNED_IN
    assert capsys.readouterr().err == "error: LLAMESH_TOKEN holds no token\nhint: llamesh login\n"


def test_a_token_from_a_file_may_end_with_a_line_end(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_TOKEN", "token\n")
    assert run(["status"]) == Exit.OK


@pytest.mark.parametrize(
    "arguments",
    [
        ["scale", "smol", "-1"],
        ["logs", "--tail", "-3"],
        ["logs", "smol", "--tail", "-3"],
        ["keys", "create", "x", "--days", "-1"],
        ["serve", "name3", "--replicas", "99999999999"],
        ["serve", "name3", "--ctx-size", "-5"],
        ["serve", "name3", "--idle-sleep", "nan"],
        ["usage", "--days", "inf"],
        ["pull"],
        ["api", "GET", "/status", "--data", "@/nowhere/at/all"],
    ],
)
def test_values_that_cannot_be_are_words_not_tracebacks(arguments: list[str], capsys: Capture) -> None:
    assert run(arguments) in {Exit.USAGE, Exit.FAILED}
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "defect" not in shown.err


def test_a_question_that_is_not_answered_ends_the_command(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import io

    def ended(_: str = "") -> str:
        raise EOFError

    terminal = io.StringIO("ada\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("getpass.getpass", ended)
    assert run(["login", "ada"]) == Exit.USAGE
    assert "the input ended" in capsys.readouterr().err


def test_a_defect_is_called_one_and_shown_to_who_asks(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("by design")

    monkeypatch.setattr("llamesh.client.sync.Client.__init__", broken)
    assert run(["status"]) == Exit.FAILED
    assert capsys.readouterr().err.startswith("error: RuntimeError: by design\nhint: this is a defect")
    monkeypatch.setenv("LLAMESH_LOG_LEVEL", "debug")
    with pytest.raises(RuntimeError):
        run(["status"])


def test_ctrl_c_while_a_model_comes_says_that_it_still_comes(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llamesh.client.sync.Pull.wait", interrupted)
    assert run(["pull", "https://models.example/x.gguf"]) == Exit.INTERRUPTED
    assert "the mesh goes on fetching x.gguf" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_a_pull_says_once_why_it_waits(
    gateway: FakeGateway, terminal: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    waits = download_pb2.Download(model_uuid="x.gguf", state=download_pb2.DOWNLOAD_STATE_QUEUED)
    waits.error.message = "waits for the object store: it cannot be reached\x1b[31m"
    done = download_pb2.Download(model_uuid="x.gguf", state=download_pb2.DOWNLOAD_STATE_SUCCEEDED)
    gateway.watch_scripts = [[gateway_pb2.WatchResponse(download=now) for now in (waits, waits, done)]]
    assert run(["pull", "https://models.example/x.gguf"]) == Exit.OK
    shown = capsys.readouterr().err
    assert shown.count("x.gguf waits for the object store: it cannot be reached [31m") == 1
    assert shown.count("waits for the object store") == 1


def test_hints_name_commands(gateway: FakeGateway, capsys: Capture) -> None:
    gateway.refusal = grpc.StatusCode.NOT_FOUND, "SERVER_NOT_FOUND", "no server nope"
    run(["status"])
    assert "hint: `llamesh status` lists the servers\n" in capsys.readouterr().err


def test_the_hint_about_a_corrupt_model_is_the_command_that_repairs_it(gateway: FakeGateway, capsys: Capture) -> None:
    gateway.refusal = grpc.StatusCode.DATA_LOSS, "MODEL_CORRUPT", "words cannot be used", {"modelUuid": "words"}
    run(["status"])
    assert "hint: `llamesh pull --uuid words` downloads it again and repairs it\n" in capsys.readouterr().err


def test_login_keeps_the_token_for_this_user_only(url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.delenv("LLAMESH_TOKEN")
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
    assert run(["login", "ada", "--password-stdin"]) == Exit.NOT_SIGNED_IN
    assert not profile_path().exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("right\n"))
    assert run(["login", "ada", "--password-stdin"]) == Exit.OK
    assert profile_path().stat().st_mode & 0o777 == 0o600
    assert load_profile() == Profile(url, "fresh")
    assert "fresh" not in capsys.readouterr().err


def test_a_token_goes_only_to_the_mesh_that_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMESH_TOKEN")
    save_profile(Profile("https://mesh.example", "secret"))
    assert load_profile().token == ""
    monkeypatch.delenv("LLAMESH_URL")
    assert load_profile() == Profile("https://mesh.example", "secret")


@pytest.mark.parametrize(
    "command",
    [
        ["stop", "smol"],
        ["status"],
        ["models"],
        ["chat", "smol", "Hello"],
        ["api", "GET", "/status"],
        ["login", "ada", "--password-stdin"],
        ["version"],
    ],
    ids=" ".join,
)
def test_a_home_without_a_mesh_leaves_the_mesh_of_the_login_alone(
    command: list[str],
    gateway: FakeGateway,
    url: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    gateway.servers = [server("0f0c6a0e", "smol")]
    save_profile(Profile(url, "token"))
    monkeypatch.delenv("LLAMESH_URL")
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    assert run(command) == Exit.UNAVAILABLE
    said = capsys.readouterr()
    assert said.err.startswith(f"error: no mesh runs in LLAMESH_HOME={tmp_path / 'home'}\n")
    assert f"without LLAMESH_HOME the mesh at {url} is used" in said.err
    assert not said.out or command == ["version"]
    assert len(gateway.servers) == 1


def test_an_address_that_is_given_needs_no_mesh_in_the_home(
    url: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import io

    monkeypatch.delenv("LLAMESH_TOKEN")
    monkeypatch.delenv("LLAMESH_URL")
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.stdin", io.StringIO("right\n"))
    assert run(["login", "ada", "--password-stdin", "--url", url]) == Exit.OK
    assert "LLAMESH_HOME is set, so other commands use the mesh that it names" in capsys.readouterr().err
    monkeypatch.setenv("LLAMESH_URL", url)
    assert run(["status"]) == Exit.OK


def a_token(**claims: str) -> str:
    """A token as the mesh makes them, without a signature."""
    return "e30." + base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=") + ".x"


@pytest.mark.parametrize(
    ("kept", "given", "after", "said"),
    [
        ({"sub": "ada", "jti": "4f1c"}, None, "fresh", "you are logged in again"),
        ({"sub": "root", "jti": "4f1c"}, None, None, "its earlier logins have ended, its keys have not\n"),
        ({"sub": "root", "jti": "4f1c"}, {"sub": "ada", "jti": "4f1c"}, None, "LLAMESH_TOKEN has ended too"),
        ({"sub": "root", "jti": "4f1c"}, {"sub": "ada", "jti": "key_1"}, None, "its keys have not\n"),
    ],
)
def test_whoever_sets_its_own_password_is_logged_in_again(
    url: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    kept: dict,
    given: dict | None,
    after: str | None,
    said: str,
) -> None:
    import io

    token = a_token(**kept)
    save_profile(Profile(url, token))
    monkeypatch.delenv("LLAMESH_TOKEN")
    if given:
        monkeypatch.setenv("LLAMESH_TOKEN", a_token(**given))
    monkeypatch.setattr("sys.stdin", io.StringIO("before\nright\n"))
    assert run(["users", "password", "ada", "--password-stdin"]) == Exit.OK
    assert said in capsys.readouterr().err
    monkeypatch.delenv("LLAMESH_TOKEN", raising=False)
    assert load_profile().token == (after or token)


def test_nothing_is_asked_where_there_is_no_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["login", "ada"]) == Exit.USAGE
    assert run(["users", "create", "ada"]) == Exit.USAGE
    assert "--password-stdin" in capsys.readouterr().err


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


def test_help_says_what_each_parameter_means_and_its_default(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
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
        arrived = json_format.ParseDict(answer["parameters"], server_pb2.RuntimeParameters())
        if arrived != typed({name: value}):
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
