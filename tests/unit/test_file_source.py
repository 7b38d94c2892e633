"""Files come out of the named folders and from nowhere else, whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from pathlib import Path

import pytest

from services.download.sources import FileSource, SourceChangedError, SourceError, SourceRefusedError, Sources, file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "import"
    made.mkdir()
    (tmp_path / "secret.gguf").write_bytes(b"secret")
    return made


async def read(source: FileSource | Sources, text: str) -> bytes:
    async with source.open(text) as found:
        return b"".join([chunk async for chunk in found.chunks])


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
async def test_a_file_in_the_folder_by_path_or_url(folder: Path, form: str) -> None:
    path = folder / "a model.gguf"
    path.write_bytes(os.urandom(3_000_000))
    text = form.format(path=path)
    source = FileSource([folder])
    assert await read(source, text) == path.read_bytes()
    checked = source.check(text)
    assert (checked.address, checked.shown, checked.name) == (text, "a model.gguf", "a model.gguf")
    async with source.open(text) as found:
        assert (found.size, found.name) == (3_000_000, "a model.gguf")
        assert found.read is not None
        assert (
            b"".join([chunk async for chunk in found.read(1_000_000, 1_500_000)])
            == path.read_bytes()[10**6 : 2_500_000]
        )


async def test_percent_signs_in_a_url_are_decoded(folder: Path) -> None:
    (folder / "a b.gguf").write_bytes(b"x")
    assert await read(FileSource([folder]), f"file://{folder}/a%20b.gguf") == b"x"


@pytest.mark.parametrize(
    "text",
    [
        "{tmp}/secret.gguf",
        "{folder}/../secret.gguf",
        "file://{folder}/../secret.gguf",
        "file://{folder}/%2e%2e/secret.gguf",
        "/etc/passwd",
        "/proc/self/environ",
        "{folder}-other/x.gguf",
        "{folder}/link.gguf",
        "{folder}/sub/secret.gguf",
    ],
)
async def test_nothing_outside_the_folder(folder: Path, text: str) -> None:
    (folder / "link.gguf").symlink_to(folder.parent / "secret.gguf")
    (folder / "sub").symlink_to(folder.parent)
    text = text.format(tmp=folder.parent, folder=folder)
    with pytest.raises(SourceRefusedError) as checked:
        FileSource([folder]).check(text)
    with pytest.raises(SourceRefusedError) as opened:
        await read(FileSource([folder]), text)
    assert (checked.value.rule, opened.value.rule) == ("folder", "folder")


async def test_a_link_that_stays_inside_is_followed(folder: Path) -> None:
    (folder / "v1.gguf").write_bytes(b"one")
    (folder / "latest.gguf").symlink_to("v1.gguf")
    assert await read(FileSource([folder]), str(folder / "latest.gguf")) == b"one"


async def test_a_linked_folder_may_be_named(folder: Path, tmp_path: Path) -> None:
    (folder / "a.gguf").write_bytes(b"a")
    (tmp_path / "models").symlink_to(folder)
    assert await read(FileSource([tmp_path / "models"]), str(tmp_path / "models" / "a.gguf")) == b"a"


async def test_only_regular_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe.gguf")
    (folder / "dir.gguf").mkdir()
    for name in ("pipe.gguf", "dir.gguf"):
        with pytest.raises(SourceRefusedError) as caught:
            await read(FileSource([folder]), str(folder / name))
        assert caught.value.rule == "regular file"


async def test_a_missing_file_is_an_error_and_not_a_refusal(folder: Path) -> None:
    with pytest.raises(SourceError, match="No such file") as caught:
        await read(FileSource([folder]), str(folder / "none.gguf"))
    assert not isinstance(caught.value, SourceRefusedError)


def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """Let a call of the operating system fail."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(file.os, call, fail)


FOR_GOOD = [errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENOTDIR, errno.EPERM]
FOR_A_MOMENT = [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT]


@pytest.mark.parametrize(("number", "transient"), [*((n, False) for n in FOR_GOOD), *((n, True) for n in FOR_A_MOMENT)])
@pytest.mark.parametrize("call", ["open", "scandir", "pread"])
async def test_a_file_that_is_missing_or_forbidden_is_told_from_an_outage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, transient: bool
) -> None:
    (folder / "a.gguf").write_bytes(b"a")
    source = FileSource([folder])
    failing(monkeypatch, call, number)
    with pytest.raises(SourceError, match=re.escape(os.strerror(number))) as caught:
        await (
            read(source, str(folder / "a.gguf")) if call != "scandir" else asyncio.to_thread(source.names, str(folder))
        )
    assert (caught.value.transient, caught.value.status) == (transient, 0 if transient else 404)


async def test_a_socket_is_no_file_for_good(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s.gguf"))
        with pytest.raises(SourceError, match=r"s\.gguf") as caught:
            await read(FileSource([folder]), str(folder / "s.gguf"))
    assert not caught.value.transient


async def test_a_file_that_shrinks_while_it_is_read_is_noticed(folder: Path) -> None:
    path = folder / "a.gguf"
    path.write_bytes(bytes(3 << 20))
    with pytest.raises(SourceChangedError) as caught:
        async with FileSource([folder]).open(str(path)) as found:
            async for _ in found.chunks:
                os.truncate(path, 1 << 20)
    assert (caught.value.opened, caught.value.found) == (f"{3 << 20} bytes", f"{1 << 20} bytes")


async def test_a_file_that_is_rewritten_while_it_is_read_is_noticed(folder: Path) -> None:
    path = folder / "a.gguf"
    path.write_bytes(bytes(2 << 20))
    with pytest.raises(SourceChangedError, match="changed while"):
        async with FileSource([folder]).open(str(path)) as found:
            async for _ in found.chunks:
                path.write_bytes(b"\1" * (2 << 20))
                os.utime(path, ns=(1, 1))


async def test_without_folders_nothing_is_read(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(b"a")
    with pytest.raises(SourceRefusedError):
        await read(FileSource([]), str(folder / "a.gguf"))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a.gguf", "form"),
        ("", "form"),
        ("ftp://models.example/a.gguf", "form"),
        ("gopher://models.example/", "form"),
        ("data:application/octet-stream;base64,R0dVRg==", "form"),
        ("file:a.gguf", "absolute path"),
        ("file://models.example/a.gguf", "file URL"),
        ("file:///a.gguf?x=1", "file URL"),
        ("/a\0b.gguf", "absolute path"),
    ],
)
def test_other_texts_are_no_sources(text: str, rule: str) -> None:
    with pytest.raises(SourceRefusedError) as caught:
        Sources({"file": FileSource([])}).check(text)
    assert caught.value.rule == rule


def test_a_refusal_names_the_remedy_and_no_folder_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(SourceRefusedError) as refused:
        FileSource([tmp_path / "import"]).check(f"{tmp_path}/other/words.gguf")
    assert "LLAMESH_HOME/import" in str(refused.value)
    assert "LLAMESH_IMPORT_DIRS" in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


async def test_no_error_names_a_folder_of_the_machine(folder: Path) -> None:
    (folder / "dir.gguf").mkdir()
    (folder / "closed.gguf").symlink_to(folder / "gone" / "x.gguf")
    for name in ("none.gguf", "dir.gguf", "closed.gguf"):
        with pytest.raises((SourceError, SourceRefusedError)) as caught:
            await read(FileSource([folder]), str(folder / name))
        assert str(folder) not in str(caught.value)
