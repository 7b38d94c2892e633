"""The command against a mesh of labelled fakes: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import threading

import grpc
import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.v1 import download_pb2, gateway_pb2, server_pb2
from tests.contract.fakes import FakeContracts, FakeDownloads, FakeGateway

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("url")


def server(uuid: str, name: str) -> server_pb2.Server:
    return server_pb2.Server(
        server_uuid=uuid, model_name=name, state=server_pb2.SERVER_STATE_READY, replicas=2, ready_replicas=1
    )


def test_an_empty_list_is_an_empty_array(capsys: Capture) -> None:
    assert run(["status", "--output", "json"]) == Exit.OK
    assert capsys.readouterr().out == "[]\n"


def test_filters_and_order_of_models_are_asked_of_the_mesh(gateway: FakeGateway, capsys: Capture) -> None:
    filters = ["--architecture", "llama", "--quantisation", "Q8_0", "--tag", "chat", "--source", "hub"]
    assert run(["models", "smol", *filters, "--order", "size", "--reverse", "-o", "name"]) == Exit.OK
    assert capsys.readouterr().out.splitlines() == [f"m{number}" for number in range(6)]
    assert [request.page_token for request in gateway.listed] == ["", "2", "4"]
    for request in gateway.listed:
        request.page_token = ""
        assert request == gateway_pb2.ListModelsRequest(
            query="smol",
            architecture="llama",
            quantisation="Q8_0",
            tag="chat",
            source_kind="MODEL_SOURCE_KIND_HUB",
            order_by="MODEL_ORDER_SIZE_BYTES",
            descending=True,
        )


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


def test_json_has_the_contract_s_names_and_plain_words(gateway: FakeGateway, capsys: Capture) -> None:
    gateway.servers = [server("0f0c6a0e", "smol")]
    run(["status", "-o", "json"])
    found = json.loads(capsys.readouterr().out)
    assert (found[0]["server_uuid"], found[0]["ready_replicas"], found[0]["state"]) == (
        "0f0c6a0e",
        1,
        "READY",
    )


def test_yaml_output_is_a_manifest_with_the_values_of_json(gateway: FakeGateway, capsys: Capture) -> None:
    import yaml

    gateway.servers = [server("0f0c6a0e", 'yes: no # "quoted"'), server("a1b2c3d4", "-")]
    gateway.servers[0].conditions.add(type="Ready", message="two\nlines")
    run(["status", "-o", "yaml"])
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [item["metadata"]["annotations"]["llamesh.dev/id"] for item in documents] == ["0f0c6a0e", "a1b2c3d4"]
    assert [item["spec"]["modelName"] for item in documents] == ['yes: no # "quoted"', "-"]
    assert documents[0]["status"]["conditions"][0]["message"] == "two\nlines"


def test_names_only(gateway: FakeGateway, capsys: Capture) -> None:
    gateway.servers = [server("0f0c6a0e", "smol"), server("a1b2c3d4", "smol")]
    run(["status", "-o", "name"])
    assert capsys.readouterr().out == "0f0c6a0e\na1b2c3d4\n"


@pytest.mark.parametrize(("word", "command"), [("ps", "status"), ("list", "models"), ("ls", "models")])
def test_words_of_other_tools_are_understood(word: str, command: str, capsys: Capture) -> None:
    assert run([command]) == Exit.OK
    meant = capsys.readouterr().out
    assert run([word]) == Exit.OK
    assert capsys.readouterr().out == meant


@pytest.mark.parametrize("name", ["smol", "0f0c6a0e", "0f0c"])
def test_ids_and_names_are_taken(gateway: FakeGateway, capsys: Capture, name: str) -> None:
    gateway.servers = [server("0f0c6a0e", "smol"), server("a1b2c3d4", "other")]
    assert run(["stop", name]) == Exit.OK
    assert gateway.stopped == ["0f0c6a0e"]
    assert capsys.readouterr().out == ""


def test_an_ambiguous_name_lists_the_candidates_and_does_nothing(gateway: FakeGateway, capsys: Capture) -> None:
    gateway.servers = [server("0f0c6a0e", "smol"), server("a1b2c3d4", "smol")]
    assert run(["stop", "smol"]) == Exit.USAGE
    assert "  0f0c6a0e  smol\n  a1b2c3d4  smol\n" in capsys.readouterr().err
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
def test_exit_codes_tell_kinds_of_failure_apart(
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


def test_a_missing_mesh_is_reported_with_the_remedy(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("arguments", [["keys", "create", "--help"], ["serve", "--help"]])
def test_help_shows_its_text_without_empty_markup(arguments: list[str], capsys: Capture) -> None:
    assert run(arguments) == Exit.OK
    shown = capsys.readouterr().out
    assert "()" not in shown
    assert '""' not in shown
    assert ("infer:*" in shown) is (arguments[0] == "keys")


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


def test_a_defect_is_reported_as_one_and_shown_at_log_level_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
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


@pytest.mark.parametrize(
    ("source", "uuid"),
    [
        ("hf:Qwen3-0.6B-GGUF", "hf-Qwen3-0.6B-GGUF"),
        ("https://models.example/", "https-models.example"),
        ("https://ada:secret@models.example/", "model"),
        ("hf:o/m:Q8_0", "m-Q8_0"),
    ],
)
def test_the_mesh_judges_an_address_without_a_name(downloads: FakeDownloads, source: str, uuid: str) -> None:
    run(["pull", source, "--no-wait"])
    assert [(item.source, item.model_uuid) for item in downloads.requests] == [(source, uuid)]


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
