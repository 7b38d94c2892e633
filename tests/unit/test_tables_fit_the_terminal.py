"""A table in a terminal keeps what people copy in one piece and leaves out what has no room."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llamesh.cli.downloads import DOWNLOAD
from llamesh.cli.keys import KEY
from llamesh.cli.servers import SERVER
from llamesh.cli.terminal_table import below, fitting, table, wrapped
from llamesh.v1 import contract_pb2, download_pb2, server_pb2

UUID = "3c44fe7d-6294-4375-8238-2ec086bec7fa"
SERVERS = [
    server_pb2.Server(server_uuid=UUID, model_name="a-model", endpoint=f"http://localhost:8080/{UUID}/v1", replicas=1)
]
COLUMNS = [column for column in SERVER if not column.wide]


def drawn(width: int) -> list[str]:
    shown = io.StringIO()
    Console(file=shown, width=width).print(table(SERVERS, fitting(SERVERS, COLUMNS, width), width))
    return shown.getvalue().splitlines()


@pytest.mark.parametrize(("width", "endpoint"), [(80, False), (120, False), (160, True)])
def test_an_id_is_never_broken(width: int, endpoint: bool) -> None:
    lines = drawn(width)
    assert any(UUID in line.split() for line in lines)
    assert any("ENDPOINT" in line for line in lines) is endpoint
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_breaks_cells_never_titles(width: int) -> None:
    lines = drawn(width)
    assert lines[1].split() == ["SERVER", "MODEL", "STATE", "READY"]
    assert max(map(len, lines)) <= width


def test_columns_that_fit_are_shown() -> None:
    assert fitting(SERVERS, COLUMNS, 1000) == COLUMNS


def test_an_id_of_a_key_can_be_copied_at_80_columns() -> None:
    key = contract_pb2.Key(key_id=f"key_{'a' * 32}", display_name="continuous integration", owner="administrator")
    key.scopes.extend(["infer:*", "manage", "infer:SmolLM2-135M-Instruct"])
    key.state = contract_pb2.KEY_STATE_WORKS
    key.expire_time.FromSeconds(1_800_000_000)
    columns = fitting([key], [column for column in KEY if not column.wide], 80)
    shown = io.StringIO()
    Console(file=shown, width=80).print(table([key], columns, 80))
    assert any(key.key_id in line.split() for line in shown.getvalue().splitlines())


FAILED = download_pb2.Download(
    model_uuid="smollm2-135m-instruct-q8-0",
    state=download_pb2.DOWNLOAD_STATE_FAILED,
)
FAILED.error.message = "the server answered 404: there is no such file at this address"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_reason_of_a_failed_download_is_always_shown(width: int) -> None:
    succeeded = download_pb2.Download(model_uuid="other", state=download_pb2.DOWNLOAD_STATE_SUCCEEDED)
    columns = [column for column in DOWNLOAD if not column.wide]
    shown = fitting([FAILED, succeeded], columns, width)
    drawn = io.StringIO()
    Console(file=drawn, width=width).print(table([FAILED, succeeded], shown, width))
    lines = [wrapped(line, width) for line in below([FAILED, succeeded], columns, shown)]
    both = drawn.getvalue() + "\n".join(lines)
    assert " ".join(FAILED.error.message.split()) in " ".join(both.split())
    assert max(map(len, both.splitlines())) <= width
    assert not any(line.startswith("other:") for line in lines)


def test_a_reason_is_shown_in_the_table_if_it_has_room() -> None:
    columns = [column for column in DOWNLOAD if not column.wide]
    shown = fitting([FAILED], columns, 400)
    assert "WHY" in [column.title for column in shown]
    assert below([FAILED], columns, shown) == []
