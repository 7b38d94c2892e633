"""Texts that leave the mesh say LLAMESH_HOME for its path, and change nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.runtimes.process import ProcessRuntime
from llamesh.kit.config import Settings
from llamesh.kit.redaction import redactor


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("failed to open {home}/objects/models/ab.gguf", "failed to open LLAMESH_HOME/objects/models/ab.gguf"),
        ("'{home}/a' and '{home}/b'", "'LLAMESH_HOME/a' and 'LLAMESH_HOME/b'"),
        ("{home}", "LLAMESH_HOME"),
        ("{home}2/a {home}-old/a {home}.gguf", "{home}2/a {home}-old/a {home}.gguf"),
        ("nothing of it", "nothing of it"),
        ("{run}/engines/x.sock", "LLAMESH_HOME/run/engines/x.sock"),
    ],
)
def test_the_path_of_the_home_is_said_by_its_name(tmp_path: Path, text: str, shown: str) -> None:
    settings = Settings(home=tmp_path / "h(ome")
    values = {"home": settings.home, "run": settings.run_dir}
    assert redactor(settings)(text.format(**values)) == shown.format(**values)


def test_a_link_to_the_home_and_its_target_are_both_hidden(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    hide = redactor(Settings(home=tmp_path / "link"))
    assert hide(f"{tmp_path}/link/a {tmp_path}/real/a") == "LLAMESH_HOME/a LLAMESH_HOME/a"


async def test_an_engines_log_names_no_path_of_the_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "h")
    logs = settings.home / "logs" / "engines"
    logs.mkdir(parents=True)
    (logs / "s1-0.log").write_text(f"loading model '{settings.home}/objects/models/ab.gguf'\nready\n")
    read = [list(lines) async for lines in ProcessRuntime(settings, {}).read_log("s1", 0, 10, follow=False)]
    assert read == [["loading model 'LLAMESH_HOME/objects/models/ab.gguf'", "ready"]]
