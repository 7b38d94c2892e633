"""`llamesh run` and `pull` on a whole mesh: a model of several files of this disk becomes an answer in one command."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from llamesh.cli.failure import Exit
from llamesh.locations import handed_over_directory, parts_directory
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh
from tests.split_models import split, write_adapter, write_projector


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """A mesh of its own: the commands change it."""
    with running_mesh() as running:
        yield running


class Person:
    """A person on this machine who is logged in, in a folder of models."""

    def __init__(self, mesh: RunningMesh, folder: Path) -> None:
        kept = {name: value for name, value in mesh.environment.items() if not name.startswith("LLAMESH_")}
        home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
        self._environment = {**kept, **home, "LLAMESH_HOME": str(mesh.home), "LLAMESH_TOKEN": mesh.token}
        self._folder = folder

    def llamesh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What a command says on pipes."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "llamesh.cli.main", *arguments],
            env=self._environment,
            cwd=self._folder,
            input="",
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )


@pytest.fixture
def person(mesh: RunningMesh, tmp_path: Path) -> Person:
    return Person(mesh, tmp_path)


def test_a_model_in_parts_is_served_from_any_of_them(mesh: RunningMesh, person: Person, tmp_path: Path) -> None:
    whole = sentence.write(tmp_path / "whole.gguf")
    parts = split(whole, tmp_path / "blobs", "words", 3)
    # As in the cache of a tool that keeps files by digest: the parts are links.
    for number, part in enumerate(parts):
        part.rename(tmp_path / "blobs" / f"{number}")
        (tmp_path / part.name).symlink_to(tmp_path / "blobs" / f"{number}")
    answered = person.llamesh("run", f"./{parts[1].name}", "Hello!")
    assert answered.stdout == f"{SENTENCE}\n", answered.stderr
    assert "serving words.gguf" in answered.stderr
    (model,) = json.loads(person.llamesh("models", "words", "-o", "json").stdout)
    assert [file["name"] for file in model["files"]] == [part.name for part in parts]
    assert not handed_over_directory(mesh.home).exists()
    (server,) = mesh.call("GET", "/status").json()["servers"]
    assert person.llamesh("rm", "words.gguf").returncode != Exit.OK, "a server uses it"
    mesh.call("DELETE", f"/stop/{server['server_uuid']}")
    mesh.call("DELETE", f"/models/{model['model_uuid']}")
    assert not [path for path in (mesh.home / "objects" / "models").iterdir() if path.is_file()]
    assert parts_directory(mesh.home).is_dir()


def mapped_models(folder: Path) -> set[Path]:
    """The GGUF files below a folder that processes of this machine have mapped."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            found.update(
                Path(line.split(maxsplit=5)[5]) for line in maps.read_text().splitlines() if line.endswith(".gguf")
            )
    return {path for path in found if path.is_relative_to(folder)}


@pytest.mark.parametrize("parts", [1, 3])
def test_an_engine_maps_the_objects_of_the_store_and_no_copy(
    mesh: RunningMesh, person: Person, tmp_path: Path, parts: int
) -> None:
    whole = sentence.write(tmp_path / f"mapped{parts}.gguf")
    given = split(whole, tmp_path, f"split{parts}", parts) if parts > 1 else [whole]
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in given}
    answered = person.llamesh("run", f"./{given[0].name}", "Hello!")
    assert answered.stdout == f"{SENTENCE}\n", answered.stderr
    mapped = mapped_models(mesh.home)
    assert digests <= {path.name.partition("-")[0] for path in mapped}
    assert {path.parent for path in mapped} == {mesh.home / "objects" / "models"}
    (server,) = mesh.call("GET", "/status").json()["servers"]
    mesh.call("DELETE", f"/stop/{server['server_uuid']}")


def test_a_missing_part_is_named_before_anything_is_handed_over(
    mesh: RunningMesh, person: Person, tmp_path: Path
) -> None:
    parts = split(sentence.write(tmp_path / "whole.gguf"), tmp_path, "half", 3)
    parts[2].unlink()
    refused = person.llamesh("pull", f"./{parts[0].name}")
    assert refused.returncode == Exit.NOT_FOUND
    assert refused.stderr.splitlines()[:2] == [
        f"error: 1 of 3 parts of the model are missing beside {parts[0].name}",
        f"  {parts[2].name}",
    ]
    assert not handed_over_directory(mesh.home).exists()


def image() -> str:
    """A red square as a data URL."""
    rows = b"".join(b"\0" + b"\xff\0\0" * 8 for _ in range(8))
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(packed)).decode()


def test_a_model_sees_by_its_projector_unless_the_server_leaves_it_out(
    mesh: RunningMesh, person: Person, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    whole = sentence.write(tmp_path / "sees.gguf")
    width = int(GGUFReader(whole).fields["llama.embedding_length"].contents())
    write_projector(tmp_path / "eye.gguf", width)
    pulled = person.llamesh("pull", "./sees.gguf", "--mmproj", "./eye.gguf", "-o", "json")
    assert pulled.returncode == Exit.OK, pulled.stderr
    model = json.loads(pulled.stdout)
    assert [file["name"] for file in model["files"]] == ["sees.gguf", "eye.gguf"]
    assert not handed_over_directory(mesh.home).exists()
    question = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": image()}},
    ]
    for name, flags, status in (("sees", (), 200), ("blind", ("--no-mmproj",), 400)):
        served = person.llamesh("serve", "sees.gguf", "--alias", name, *flags, "--wait")
        assert served.returncode == Exit.OK, served.stderr
        answer = mesh.call(
            "POST",
            "/v1/chat/completions",
            "inference",
            json={"model": name, "messages": [{"role": "user", "content": question}]},
        )
        assert answer.status_code == status, answer.text
        if status == 200:
            assert answer.json()["choices"][0]["message"]["content"] == SENTENCE
            assert answer.json()["usage"]["prompt_tokens"] > 30, "the image has tokens too"
        person.llamesh("stop", name)


def test_a_projector_of_another_model_is_refused_before_anything_is_served(person: Person, tmp_path: Path) -> None:
    sentence.write(tmp_path / "other.gguf")
    write_projector(tmp_path / "wide.gguf", 4096)
    refused = person.llamesh("pull", "./other.gguf", "--mmproj", "./wide.gguf")
    assert refused.returncode != Exit.OK
    assert "the projector makes embeddings of 4096 numbers" in refused.stderr


def test_a_server_that_needs_a_projector_is_refused_without_one(person: Person, tmp_path: Path) -> None:
    sentence.write(tmp_path / "plain.gguf")
    assert person.llamesh("pull", "./plain.gguf").returncode == Exit.OK
    refused = person.llamesh("serve", "plain.gguf", "--mmproj-auto")
    assert refused.returncode != Exit.OK
    assert "the model has no projector" in refused.stderr


def test_a_server_answers_as_its_adapter_says(mesh: RunningMesh, person: Person, tmp_path: Path) -> None:
    from gguf import GGUFReader

    whole = sentence.write(tmp_path / "styled.gguf")
    tokens = GGUFReader(whole).fields["tokenizer.ggml.tokens"].contents()
    first, second, *_ = SENTENCE.split()
    word = next(number for number, token in enumerate(tokens) if token.strip("\u2581 ") == second)
    write_adapter(tmp_path / "short.gguf", whole, word, tokens.index("</s>"))
    pulled = person.llamesh("pull", "./styled.gguf", "--lora", "short=./short.gguf", "-o", "json")
    assert pulled.returncode == Exit.OK, pulled.stderr
    assert [file["name"] for file in json.loads(pulled.stdout)["files"]] == ["styled.gguf", "short"]
    for name, flags, wanted in (("long", (), SENTENCE), ("short", ("--lora", "short"), f"{first} {second}")):
        served = person.llamesh("serve", "styled.gguf", "--alias", name, *flags, "--wait")
        assert served.returncode == Exit.OK, served.stderr
        assert person.llamesh("chat", name, "Hello!").stdout.strip() == wanted
        person.llamesh("stop", name)
    refused = person.llamesh("serve", "styled.gguf", "--lora", "other")
    assert "the model has no adapter other (it has short)" in refused.stderr
