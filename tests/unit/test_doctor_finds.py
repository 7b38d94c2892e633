"""`llamesh doctor` goes on after a wrong setting, finds dead servers and wrong programs, and fits the terminal."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.devices import listed
from llamesh.cli.diagnosis import lines
from llamesh.cli.mesh import certificate_checks, key_files
from llamesh.cli.mesh import checks as checks_of_doctor
from llamesh.cli.mesh.checks import examine
from llamesh.cli.mesh.findings import Finding
from llamesh.cli.mesh.settings import MeshSettings
from tests.ports import free_ports
from tests.terminal import terminal


def environment(home: Path, **settings: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("LLAMESH_", "MINIO_", "DATABASE"))
    }
    ports = free_ports(4)
    names = ("INFERENCE", "GATEWAY", "CONTRACT", "DOWNLOAD")
    return {
        **kept,
        "LLAMESH_HOME": str(home),
        **{f"LLAMESH_{name}_PORT": str(port) for name, port in zip(names, ports, strict=True)},
        **settings,
    }


def found(variables: dict[str, str]) -> dict[str, list[Finding]]:
    by_check: dict[str, list[Finding]] = {}
    for finding in examine(variables):
        by_check.setdefault(finding.check, []).append(finding)
    return by_check


def test_a_wrong_setting_hides_no_other_check_and_no_other_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "config.env").write_text("LLAMESH_GATWAY_PORT=1\nMAX_REPLICAS=many\nMINIO_ENDPOINT=127.0.0.1:1\n")
    checks = found(environment(tmp_path, DATABASE_URL="postgresql://u:secret@127.0.0.1:1/x", LLAMESH_INFERNCE_PORT="1"))
    words = " ".join(finding.found for finding in checks["settings"])
    assert "did you mean LLAMESH_GATEWAY_PORT?" in words
    assert "MAX_REPLICAS" in words
    assert "did you mean LLAMESH_INFERENCE_PORT?" in words
    assert checks["database"][0].state == checks["object store"][0].state == "problem"
    assert "127.0.0.1:1" in checks["database"][0].found
    assert "secret" not in str(checks)
    assert {"engine", "envoy", "disk", "open files", "sockets", "mesh", "ports"} <= checks.keys()


def test_a_home_whose_path_is_too_long_hides_no_other_check(tmp_path: Path) -> None:
    checks = found(environment(tmp_path / ("a" * 300)))
    assert {"engine", "envoy", "settings", "home", "open files", "sockets"} <= checks.keys()
    for check in ("disk", "mesh"):
        (finding,) = checks[check]
        assert (finding.state, "File name too long" in finding.found) == ("problem", True)
        assert finding.fix == "set LLAMESH_HOME to another folder"


@pytest.mark.parametrize(
    ("check", "module", "name"),
    [
        ("home", checks_of_doctor, "files_of_home"),
        ("certificate", certificate_checks, "of_files"),
        ("authority", certificate_checks, "of_authority"),
        ("key", key_files, "readable_keys"),
        ("disk", checks_of_doctor, "disk"),
        ("sockets", checks_of_doctor, "run_directory"),
    ],
)
def test_a_file_that_this_user_may_not_see_hides_no_other_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str, module: object, name: str
) -> None:
    def closed(settings: MeshSettings) -> list[Finding]:
        raise PermissionError(errno.EACCES, "Permission denied", str(settings.home / "closed"))

    monkeypatch.setattr(module, name, closed)
    checks = found(environment(tmp_path))
    (finding,) = checks[check]
    assert (finding.state, finding.found) == ("problem", f"{tmp_path / 'closed'}: Permission denied")
    assert "run `llamesh doctor` as the user of the mesh" in finding.fix
    assert {"engine", "envoy", "open files", "mesh", "ports"} <= checks.keys()


def test_a_socket_of_quant_that_this_user_may_not_see_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exists = Path.exists

    def closed(path: Path) -> bool:
        if path.name == "quant.sock":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", closed)
    assert "quantiser" not in found(environment(tmp_path))


def test_the_quantiser_is_checked_if_the_quant_service_is_on(tmp_path: Path) -> None:
    (tmp_path / "config.env").write_text("LLAMA_QUANTIZE_BIN=/nothing/llama-quantize\n")
    assert "quantiser" not in found(environment(tmp_path))
    (finding,) = found(environment(tmp_path, LLAMESH_QUANT="true"))["quantiser"]
    assert (finding.state, "/nothing/llama-quantize" in finding.found) == ("problem", True)
    assert finding.fix


def test_the_quantiser_lists_what_importance_matrices_lack(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="without the packages of the Quant service, only they are named")
    (tmp_path / "config.env").write_text(f"LLAMA_QUANTIZE_BIN={sys.executable}\n")
    (finding,) = found(environment(tmp_path, LLAMESH_QUANT="true"))["quantiser"]
    assert finding.state == "ok"
    assert "LLAMA_IMATRIX_BIN is not set" in finding.found
    assert "LLAMA_QUANTIZE_BIN is" not in finding.found


def test_the_llama_server_of_the_settings_is_asked(tmp_path: Path) -> None:
    (tmp_path / "config.env").write_text("LLAMA_SERVER_BIN=/nothing/llama-server\n")
    engine = found(environment(tmp_path))["engine"][0]
    assert (engine.state, "/nothing/llama-server" in engine.found) == ("problem", True)
    assert "LLAMA_SERVER_BIN" in engine.fix


def test_a_taken_port_is_named_with_the_process_that_has_it(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ports = found(environment(tmp_path, LLAMESH_GATEWAY_PORT=port))["ports"][0]
    assert ports.state == "problem"
    assert f"port {port} is taken by process {os.getpid()}" in ports.found


def test_devices_are_read_as_llama_server_lists_them() -> None:
    text = (
        "ggml_cuda_init: found 1 CUDA devices\nAvailable devices:\n"
        "  CUDA0: NVIDIA RTX 4090 (24080 MiB, 23600 MiB free)\n  Vulkan0: Radeon (RADV) (16368 MiB, 16000 MiB free)\n"
    )
    assert listed(text) == [
        "CUDA0 NVIDIA RTX 4090 (23.0 of 23.5 GiB free)",
        "Vulkan0 Radeon (RADV) (15.6 of 16.0 GiB free)",
    ]
    assert listed("Available devices:\n") == []


FINDING = Finding(
    "database",
    "problem",
    "PostgreSQL at db.example:5432 does not answer: no answer within 5 s",
    "start it, or correct DATABASE_URL; unset it for SQLite files below LLAMESH_HOME",
)
GOLDEN = {
    60: """\
PROBLEM  database     PostgreSQL at db.example:5432 does not
                      answer: no answer within 5 s
                      -> start it, or correct DATABASE_URL;
                         unset it for SQLite files below
                         LLAMESH_HOME""",
    80: """\
PROBLEM  database     PostgreSQL at db.example:5432 does not answer: no answer
                      within 5 s
                      -> start it, or correct DATABASE_URL; unset it for SQLite
                         files below LLAMESH_HOME""",
    120: """\
PROBLEM  database     PostgreSQL at db.example:5432 does not answer: no answer within 5 s
                      -> start it, or correct DATABASE_URL; unset it for SQLite files below LLAMESH_HOME""",
}


@pytest.mark.parametrize("width", GOLDEN)
def test_a_finding_fits_the_terminal(width: int) -> None:
    assert "\n".join(lines(FINDING, width)) == GOLDEN[width]


IN_A_TERMINAL = {
    60: """\
PROBLEM  settings     setting MAX_REPLICAS: 'many' is not a
                      whole number from 1 to 1000
                      -> correct it; the checks below use
                         its default""",
    80: """\
PROBLEM  settings     setting MAX_REPLICAS: 'many' is not a whole number from 1
                      to 1000
                      -> correct it; the checks below use its default""",
    120: """\
PROBLEM  settings     setting MAX_REPLICAS: 'many' is not a whole number from 1 to 1000
                      -> correct it; the checks below use its default""",
}


@pytest.mark.parametrize("columns", IN_A_TERMINAL)
def test_in_a_terminal_findings_fit_its_width(columns: int, tmp_path: Path) -> None:
    with terminal(["doctor"], columns, environment(tmp_path, MAX_REPLICAS="many")) as shown:
        assert shown.end() == 1
    screen = "\n".join(shown.lines)
    assert IN_A_TERMINAL[columns] in screen
    assert "\nok       mesh         not running: `llamesh up` starts it\n" in screen
    assert screen.endswith("1 to mend")
    # Only a word that has no room, such as a path, is broken by the terminal.
    assert all(" " not in line[22:].strip() for line in shown.raw.decode().splitlines() if len(line) > columns)


def test_on_a_pipe_a_finding_is_one_line_and_a_problem_is_exit_code_1(tmp_path: Path) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "llamesh.cli.main", "doctor"],
        env=environment(tmp_path, MAX_REPLICAS="many", COLUMNS="40"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.returncode == 1
    heads = {line[:9] for line in asked.stdout.splitlines()}
    assert heads <= {"ok       ", "warning  ", "PROBLEM  ", " " * 9}
