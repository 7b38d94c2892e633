"""A table in a terminal keeps what people copy in one piece and leaves out what has no room."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llamesh.cli.output import fitting, table
from llamesh.cli.servers import SERVER
from llamesh.v1 import server_pb2

UUID = "3c44fe7d-6294-4375-8238-2ec086bec7fa"
SERVERS = [
    server_pb2.Server(server_uuid=UUID, model_name="a-model", endpoint=f"http://localhost:8080/{UUID}/v1", replicas=1)
]
COLUMNS = [column for column in SERVER if not column.wide]


@pytest.mark.parametrize(("width", "endpoint"), [(60, False), (80, False), (120, False), (160, True)])
def test_an_id_is_never_broken(width: int, endpoint: bool) -> None:
    shown = io.StringIO()
    Console(file=shown, width=width, force_terminal=True).print(table(SERVERS, fitting(SERVERS, COLUMNS, width)))
    lines = shown.getvalue().splitlines()
    assert any(UUID in line.split("v1")[0] for line in lines)
    assert ("ENDPOINT" in shown.getvalue()) is endpoint
    assert all(len(line) <= width for line in lines if "\x1b" not in line)


def test_what_fits_is_shown() -> None:
    assert fitting(SERVERS, COLUMNS, 1000) == COLUMNS
