"""Whatever is typed, the command answers with words and one of its exit codes: random arguments, seeded, against the fakes."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamesh.cli.completion import candidates
from llamesh.cli.failure import Exit
from llamesh.cli.main import COMMANDS, run
from llamesh.cli.options import subcommands
from llamesh.v1 import download_pb2, gateway_pb2, server_pb2
from tests.contract.fakes import FakeDownloads, FakeGateway, fake_mesh

SEED = 7
SECONDS = 6.0
MIN_RUNS = 200
NEVER = {"up", "down", "doctor"}
"""They look at this machine, not at the fakes; tests/mesh runs them."""
FOREVER = {"--watch", "-w", "--follow", "-f"}
VALUES = (
    *("", " ", "-", "--", "-1", "0", "1", "5", "1e9", "99999999999999999999", "nan", "inf", "1.5", "true", "no"),
    *(
        "smol",
        "name3",
        "json",
        "yaml",
        "name",
        "wide",
        "table",
        "10m",
        "infer:*",
        "manage",
        "é漢字",
        "\x1b[31m",
        "a\nb",
        "\udcff",
    ),
    *(
        "../../etc/passwd",
        "@/nowhere",
        "@",
        "{}",
        "{bad",
        "https://models.example/x.gguf",
        "file:///x",
        "%00",
        "x" * 5000,
    ),
    *("GET", "DELETE", "/status", "//", "-h", "--help", "--version", "--output", "-o", "--", "--nonsense", "--no-wait"),
)


class DoneDownloads(FakeDownloads):
    """Every download has succeeded at once: nothing is waited for."""

    def StartDownload(self, request: Any, context: Any) -> download_pb2.Download:
        return download_pb2.Download(model_uuid=request.model_uuid, state=download_pb2.DOWNLOAD_STATE_SUCCEEDED)


class ReadyGateway(FakeGateway):
    """Every server that is asked for is ready."""

    def Watch(self, request: gateway_pb2.WatchRequest, context: Any) -> Iterator[gateway_pb2.WatchResponse]:
        for uuid in request.server_uuids:
            ready = server_pb2.Server(server_uuid=uuid, state=server_pb2.SERVER_STATE_READY)
            yield gateway_pb2.WatchResponse(server=ready)


@pytest.fixture(autouse=True)
def mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLAMESH_INFERENCE_URL", "http://127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    with fake_mesh(ReadyGateway(), DoneDownloads()) as address:
        monkeypatch.setenv("LLAMESH_URL", address)
        monkeypatch.setenv("LLAMESH_TOKEN", "token")
        yield


def arguments(chance: random.Random) -> list[str]:
    """A command, likely with some of its options, and values that may or may not be what they want."""
    command = chance.choice([name for names in COMMANDS.values() for name in names if name not in NEVER])
    words = [command]
    if (verbs := subcommands(command)) and chance.random() < 0.9:
        words.append(chance.choice(verbs))
    options = [option for option in candidates([*words, "-"], lambda _: {}) if option not in FOREVER]
    for _ in range(chance.randrange(5)):
        if options and chance.random() < 0.5:
            words.append(chance.choice(options))
        if chance.random() < 0.8:
            words.append(chance.choice(VALUES))
    return [word for word in words if word not in FOREVER]


def test_random_arguments_never_end_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    ends = time.monotonic() + SECONDS
    runs = 0
    seen: set[int] = set()
    while runs < MIN_RUNS or (time.monotonic() < ends and runs < 10 * MIN_RUNS):
        words = arguments(chance)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"right\n")))
        try:
            code = run(words)
        except BaseException as error:
            raise AssertionError(f"{words} ended in {error!r}") from error
        shown = capsys.readouterr()
        assert code in set(Exit), words
        assert "Traceback" not in shown.err, words
        assert "defect" not in shown.err, (words, shown.err)
        lines = [line for line in shown.err.splitlines() if not line.startswith("warning: ")]
        # What went well before, for other names, is said first.
        said = next((line for line in lines if not line.startswith(("stopped ", "removed ", "revoked "))), "")
        assert code == Exit.OK or said.startswith(("error: ", "user name")), (words, shown.err)
        seen.add(code)
        runs += 1
    assert {Exit.OK, Exit.USAGE, Exit.NOT_FOUND} <= seen
