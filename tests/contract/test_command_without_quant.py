"""Commands of the Quant service against a mesh that runs none: they say so, with the remedy."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.quant_connection import calls_quant
from llamesh.client.errors import MeshError, of_reason
from llamesh.client.quant_presence import asking_quant

pytestmark = pytest.mark.usefixtures("url", "gateway")


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs"],
        ["jobs", "ls"],
        ["jobs", "show", "job_1"],
        ["jobs", "cancel", "job_1"],
        ["jobs", "retry", "job_1"],
        ["jobs", "retry", "job_1", "--wait"],
        ["jobs", "rm", "job_1"],
        ["variants"],
        ["jobs", "rm", "job_1", "job_2"],
        ["variants", "rm", "m"],
        ["quantize", "m0", "--dry-run"],
        ["quantize", "m0", "--types", "Q8_0"],
        ["quantize", "m0", "--types", "Q8_0", "--wait"],
    ],
)
def test_every_command_of_quant_names_the_missing_service(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == Exit.UNAVAILABLE
    said = capsys.readouterr().err
    assert "runs no Quant service" in said
    assert "llamesh up --quant" in said
    assert "Method not found" not in said


def test_the_port_of_another_service_is_not_a_mesh_without_quant() -> None:
    error = of_reason("NOT_IMPLEMENTED", "there is no such call here", metadata={"service": "contract"})
    error.code = "UNIMPLEMENTED"
    with pytest.raises(MeshError) as raised, asking_quant():
        raise error
    assert "Quant" not in raised.value.message
    with pytest.raises(MeshError) as raised, calls_quant(Mock()):
        raise error
    assert raised.value is error
