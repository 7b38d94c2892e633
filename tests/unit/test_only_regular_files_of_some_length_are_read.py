"""A device, a pipe and a file that is too long are refused where a command reads a file: none is read to its end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from llamesh.cli.bounded_file import read_bounded
from llamesh.cli.conversation import Conversation, content
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.manifest import reader
from llamesh.cli.manifest.references import password_of


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe, listening = tmp_path / "pipe", tmp_path / "socket"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(listening))
    kinds = {Path("/dev/zero"): "a device", pipe: "a pipe", listening: "a socket", tmp_path: "a folder"}
    for path, kind in kinds.items():
        with pytest.raises(CommandError, match=f"^{path} is no regular file but {kind}$"):
            read_bounded(path, 10)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_bounded(tmp_path / "file", 10) == b"0123456789"
    with pytest.raises(CommandError, match="at most 9 bytes"):
        read_bounded(tmp_path / "file", 9)


def test_a_conversation_and_an_image_are_regular_files(tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    image.symlink_to("/dev/zero")
    with pytest.raises(CommandError, match="is no regular file"):
        Conversation.load(Path("/dev/zero"))
    with pytest.raises(CommandError, match="is no regular file"):
        content("What?", [image])


def test_a_password_file_is_a_short_regular_file(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"a" * 4097)
    (tmp_path / "short").write_bytes(b"correct horse\n")
    manifest = tmp_path / "mesh.yaml"
    for name, words in (("/dev/zero", "is no regular file"), ("long", "at most 4096 bytes"), ("short", "")):
        manifest.write_text(
            "apiVersion: llamesh.dev/v1alpha1\nkind: User\nmetadata: {name: ada}\n"
            f"spec: {{role: inference, passwordFrom: {{file: {name}}}}}\n"
        )
        (document,) = reader.read([str(manifest)])
        if not words:
            assert password_of(document) == "correct horse"
            continue
        with pytest.raises(CommandError, match=words) as raised:
            password_of(document)
        assert raised.value.code == Exit.USAGE
        assert raised.value.hint
