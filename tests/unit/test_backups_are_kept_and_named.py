"""`llamesh backup` overwrites nothing unless told to, no temporary name reaches a person, and `restore` says how models come back."""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.mesh import archive
from llamesh.cli.mesh.catalogue import pulls

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "home"
    (made / "data").mkdir(parents=True)
    with closing(sqlite3.connect(made / "data" / "download.db")) as database:
        database.execute("create table model (model_uuid, name, source)")
        rows = [
            ("words.gguf", "words.gguf", "words.gguf"),
            ("chosen", "my model", "hf:org/repo:Q4_K_M"),
            ("phi", "phi", "https://models.example/phi.gguf"),
        ]
        database.executemany("insert into model values (?, ?, ?)", rows)
        database.commit()
    monkeypatch.setenv("LLAMESH_HOME", str(made))
    monkeypatch.setattr("llamesh.cli.mesh.tables.dump", lambda _: False)
    return made


def test_a_file_that_is_there_is_kept_unless_forced(home: Path, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "my backup"
    target.write_text("precious")
    assert run(["backup", str(target), "--models"]) == Exit.USAGE
    assert target.read_text() == "precious"
    said = capsys.readouterr().err
    assert (
        said == f"error: {target} is there already\nhint: `llamesh backup '{target}' --models --force` overwrites it\n"
    )
    assert run(["backup", str(target), "--force"]) == Exit.OK
    assert target.read_bytes() != b"precious"


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["usual", "forced"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link", "dangling link", "socket", "standard output"])
def test_only_a_regular_file_is_ever_replaced(
    home: Path, tmp_path: Path, capsys: Capture, kind: str, force: list[str]
) -> None:
    target, other = tmp_path / "b", tmp_path / "other"
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "device":
        target.symlink_to("/dev/null")
    elif kind == "folder":
        target.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(target))
    elif kind == "standard output":
        target.symlink_to("/dev/stdout")
    else:
        target.symlink_to(other)
        if kind == "link":
            other.write_text("precious")
    before = target.lstat()
    assert run(["backup", str(target), *force]) == Exit.USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"error: {target} is ")
    assert "hint: name a" in said or f"hint: name the file itself: {other}\n" in said
    assert os.path.samestat(target.lstat(), before)
    assert not other.exists() or other.read_text() == "precious"


def test_standard_output_is_refused_with_the_way_to_go(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["backup", "-"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "nor writes to standard output by the name -\nhint: llamesh backup FILE\n" in said
    assert not (tmp_path / "-").exists()
    assert run(["backup", "./-"]) == Exit.OK
    assert (tmp_path / "-").exists()


def test_a_failure_names_the_file_that_was_given(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(path: Path) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(archive, "new_private", full)
    assert run(["backup", str(tmp_path / "b")]) == Exit.FAILED
    assert capsys.readouterr().err == f"error: {tmp_path / 'b'}: {os.strerror(errno.ENOSPC)}\n"


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b broken"])
def test_a_damaged_archive_is_refused_without_details_of_tarfile(
    content: bytes, tmp_path: Path, home: Path, capsys: Capture
) -> None:
    other = tmp_path / "x"
    other.write_bytes(content)
    home.rename(tmp_path / "moved")
    assert run(["restore", str(other)]) == Exit.USAGE
    said = capsys.readouterr().err
    assert said.splitlines()[0].removesuffix(", or is damaged") == f"error: {other} is no backup of llamesh"


def test_a_restore_prints_how_each_model_is_fetched_again(home: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["backup", str(tmp_path / "b")]) == Exit.OK
    home.rename(tmp_path / "moved")
    assert run(["restore", str(tmp_path / "b")]) == Exit.OK
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("llamesh pull")] == [
        "llamesh pull hf:org/repo:Q4_K_M --name 'my model' --uuid chosen",
        "llamesh pull https://models.example/phi.gguf --name phi",
        "llamesh pull PATH/words.gguf --name words.gguf",
    ]


@pytest.mark.parametrize("kind", ["file", "link", "none"])
def test_a_backup_that_holds_the_key_of_the_authority_says_so(
    home: Path, tmp_path: Path, capsys: Capture, kind: str
) -> None:
    key = home / "tls" / "ca.key"
    key.parent.mkdir()
    if kind == "file":
        key.write_text("key")
    elif kind == "link":
        key.symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_text("key")
    assert run(["backup", str(tmp_path / "b")]) == Exit.OK
    last = capsys.readouterr().err.splitlines()[-1]
    with tarfile.open(tmp_path / "b") as written:
        held = "tls/ca.key" in written.getnames()
    assert (str(key) in last, held) == (kind == "file", kind == "file")
    assert not held or "can sign certificates for any host" in last


def catalogue(home: Path, *statements: str) -> None:
    (home / "data").mkdir()
    with closing(sqlite3.connect(home / "data" / "download.db")) as opened:
        opened.executescript(";".join(statements))


MODELS = {
    "a part of the web": (
        ("m", "https://host/a-00001-of-00002.gguf"),
        "a-00001-of-00002.gguf",
        ("", []),
        "https://host/a-00001-of-00002.gguf --name m",
    ),
    "a part of this machine": (
        ("m", "a-00001-of-00002.gguf"),
        "a-00001-of-00002.gguf",
        ("", []),
        "PATH/a-00001-of-00002.gguf --name m",
    ),
    "a file of this machine": (
        ("m.gguf", "file:///x/y.gguf"),
        "y.gguf",
        ("", []),
        "PATH/m.gguf --name m.gguf --uuid m",
    ),
    "a projector and adapters": (
        ("m", "hf:ada/sees-GGUF/s.gguf"),
        "s.gguf",
        (
            "https://host/p.gguf?signature=secret",
            [["style", "file:///x/my%20style.gguf"], ["law", "hf:ada/law/l.gguf"]],
        ),
        "hf:ada/sees-GGUF/s.gguf --name m --mmproj https://host/p.gguf --lora 'style=PATH/my style.gguf' --lora law=hf:ada/law/l.gguf",
    ),
    "no adapters": (
        ("m", "ollama:a"),
        "a.gguf",
        ("", [["none", "none"]]),
        "ollama:a --name m --lora none",
    ),
    "no projector": (
        ("m", "hf:ada/sees-GGUF/a.gguf"),
        "a.gguf",
        ("none", []),
        "hf:ada/sees-GGUF/a.gguf --name m --mmproj none",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_is_fetched_again_with_all_its_files(tmp_path: Path, case: str) -> None:
    (name, source), first, (projector, adapters), command = MODELS[case]
    catalogue(
        tmp_path,
        f"create table model as select 'm' as model_uuid, '{name}' as name, '{source}' as source",
        f"create table model_file as select 'm' as model_uuid, 1 as number, '{first}' as name",
        "create table transfer as select 'm' as model_uuid,"
        f" '{projector}' as projector, '{json.dumps(adapters)}' as adapters",
    )
    assert pulls(tmp_path) == [f"llamesh pull {command}"]


def test_the_catalogue_of_an_earlier_release_names_the_source(tmp_path: Path) -> None:
    catalogue(tmp_path, "create table model as select 'm' as model_uuid, 'm' as name, 'hf:ada/x/y.gguf' as source")
    assert pulls(tmp_path) == ["llamesh pull hf:ada/x/y.gguf --name m"]


def test_a_catalogue_that_cannot_be_read_gives_the_form_of_the_command(tmp_path: Path) -> None:
    assert pulls(tmp_path) == ["llamesh pull SOURCE --name NAME"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["pipe", "/dev/zero", "/dev/stdin"])
def test_only_a_regular_file_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, source: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "new"))
    monkeypatch.chdir(tmp_path)
    with open_pipe_as_input():
        assert run(["restore", source]) == Exit.USAGE
    said = capsys.readouterr().err
    assert f"{tmp_path / source} is no regular file but a " in said
    assert ": a backup can be read only from a file" in said
    assert "hint: write the backup to a file" in said
    assert not (tmp_path / "new").exists()


@contextmanager
def open_pipe_as_input() -> Iterator[None]:
    """Make standard input a pipe that nobody writes to and nobody closes."""
    before, (reads, writes) = os.dup(0), os.pipe()
    os.dup2(reads, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        for each in (before, reads, writes):
            os.close(each)


def test_no_bytes_of_unfinished_downloads_are_backed_up(home: Path, tmp_path: Path) -> None:
    kept = {"objects/gguf/a.gguf", "llm-models/b.gguf", "import/staging/c.gguf"}
    for name in (*kept, "objects/staging/d.parts", "llm-models/staging/e.part", "import/handed-over/f.gguf"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"x")
    assert run(["backup", str(tmp_path / "b"), "--models"]) == Exit.OK
    with tarfile.open(tmp_path / "b") as opened:
        assert {name for name in opened.getnames() if name.split("/")[0] in archive.MODELS} == kept
