"""Commands of the Quant service against a mesh that runs none: they say so, with the remedy."""

from __future__ import annotations

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run

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
