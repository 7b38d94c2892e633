"""`llamesh doctor` warns of private keys that other users can read, with the command that closes them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from llamesh.cli.mesh.authority import Files, issue
from llamesh.cli.mesh.checks import examine
from llamesh.cli.mesh.findings import Finding


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "my home"
    issue(Files(made), ["localhost"], datetime.now(UTC))
    return made


def found(home: Path, key: Path | None = None) -> list[Finding]:
    tls = {"LLAMESH_TLS_CERTIFICATE": str(Files(home).certificate), "LLAMESH_TLS_KEY": str(key)} if key else {}
    # Programs that do not start are not asked for long.
    environment = {"LLAMESH_HOME": str(home), "LLAMA_SERVER_BIN": "/nothing", "ENVOY_BIN": "/nothing", **tls}
    return [finding for finding in examine(environment) if finding.check == "key"]


def test_keys_of_this_user_only_are_no_finding(home: Path) -> None:
    assert found(home, Files(home).key) == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
@pytest.mark.parametrize("used", [True, False], ids=["used", "not used"])
def test_a_key_of_tls_init_that_others_can_read_is_a_warning(home: Path, mode: int, used: bool) -> None:
    files = Files(home)
    for path in (files.key, files.authority_key):
        path.chmod(mode)
    warnings = found(home, files.key if used else None)
    assert [finding.state for finding in warnings] == ["warning", "warning"]
    assert [finding.fix for finding in warnings] == [
        f"chmod go-rwx '{files.key}'",
        f"chmod go-rwx '{files.authority_key}'",
    ]
    assert f"{mode:04o}" in warnings[0].found


@pytest.mark.parametrize(("mode", "warned"), [(0o640, False), (0o644, True)])
def test_a_key_of_another_program_may_be_read_by_a_group(home: Path, tmp_path: Path, mode: int, warned: bool) -> None:
    key = tmp_path / "privkey.pem"
    key.write_bytes(Files(home).key.read_bytes())
    key.chmod(mode)
    assert [finding.fix for finding in found(home, key)] == [f"chmod o-rwx {key}"] * warned
