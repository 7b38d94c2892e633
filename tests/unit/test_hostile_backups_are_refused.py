"""A backup that somebody has made to harm restores nothing, occupies little memory, and is refused with a sentence."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from llamesh import __version__
from llamesh.cli.main import run
from llamesh.cli.mesh import archive, restoration
from llamesh.cli.mesh.archive import ArchiveError

MEBIBYTE = 1 << 20
DESCRIPTION = {"format": 1, "version": __version__, "made": "", "home": "", "models": False}
NESTED = b"[" * 50_000


def entry(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    size: int | None = None,
    pax: Mapping[str, str] | None = None,
) -> bytes:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.pax_headers = kind, len(content) if size is None else size, dict(pax or {})
    header = made.tobuf(tarfile.GNU_FORMAT if made.size < 0 else tarfile.PAX_FORMAT)
    return header + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def described(name: str, content: bytes) -> bytes:
    """The first or the last entry, with its digest."""
    return entry(name, content, pax={archive.DIGEST: hashlib.sha256(content).hexdigest()})


MANIFEST = described(archive.MANIFEST, json.dumps(DESCRIPTION).encode())


def end(files: Sequence[str]) -> bytes:
    """The last entry for empty files."""
    return described(archive.END, json.dumps(dict.fromkeys(files, hashlib.sha256().hexdigest())).encode())


def refusal(content: bytes, folder: Path) -> ArchiveError:
    """The refusal of an archive, which leaves nothing."""
    (folder / "evil").write_bytes(content)
    with pytest.raises(ArchiveError) as raised:
        restored(folder)
    assert [path.name for path in folder.iterdir()] == ["evil"]
    assert raised.value.remedy
    return raised.value


def restored(folder: Path) -> None:
    def no_tables(_: Path, __: Path) -> None:
        raise AssertionError("there are no tables of PostgreSQL")

    restoration.restore(folder / "evil", folder / "home", __version__, no_tables)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("before", [b"", MANIFEST], ids=["first", "later"])
def test_a_large_extended_header_is_refused_before_it_is_read(tmp_path: Path, kind: bytes, before: bytes) -> None:
    content = gzip.compress(before + entry("x", size=16 * MEBIBYTE, kind=kind) + bytes(16 * MEBIBYTE), 1)
    tracemalloc.start()
    try:
        error = refusal(content, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "has a header that no backup of llamesh has" in str(error)
    assert peak < 4 * MEBIBYTE


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "secrets/x"}
HEADERS = {
    "a map of holes without an end": entry("secrets/x", b"9" * MEBIBYTE, pax=SPARSE),
    "an old map of holes": entry("secrets/x", kind=tarfile.GNUTYPE_SPARSE),
    "headers of headers": entry("x", b"9 a=bcde\n", kind=tarfile.XHDTYPE) * 2000,
    "a negative size": entry("secrets/x", size=-1024),
    "a negative size of an extended header": entry("x", size=-1024, kind=tarfile.XHDTYPE),
    "a negative size in an extended header": entry("secrets/x", pax={"size": "-1024"}),
    "a length of too many digits": entry("x", b"9" * 5000 + b" a=b\n", kind=tarfile.XHDTYPE),
    "a name of which no file can be": entry("x", b"18 path=secrets/\0\n", kind=tarfile.XHDTYPE) + entry("secrets/x"),
    "another kind of file": entry("secrets/x", kind=tarfile.CONTTYPE),
}


@pytest.mark.parametrize("harm", HEADERS)
def test_a_hostile_header_is_refused(tmp_path: Path, harm: str) -> None:
    words = str(refusal(MANIFEST + HEADERS[harm] + bytes(tarfile.RECORDSIZE), tmp_path))
    assert str(tmp_path / "evil") in words


NAMES = {
    "a file in place of a folder": ["secrets"],
    "a file and a folder of one name": ["secrets/x", "secrets/x/y"],
    "two files of one name": ["secrets/x", "secrets/x"],
    "a name that is too long": ["secrets/" + "x" * 300],
    "settings that are a folder": ["config.env/x"],
    "tables that are a folder": ["postgres.dump/x"],
    "a file among the databases": ["data/gateway.db-wal"],
    "a folder among the databases": ["data/x/gateway.db"],
    "a path that is not the shortest": ["secrets/./x"],
    "many folders": ["secrets/" + "x/" * 1500 + "x"],
}


@pytest.mark.parametrize("harm", NAMES)
def test_a_name_that_no_backup_holds_is_named(tmp_path: Path, harm: str) -> None:
    names = NAMES[harm]
    error = refusal(MANIFEST + b"".join(map(entry, names)) + end(names), tmp_path)
    assert f"{tmp_path / 'evil'} holds '{names[-1][:80]}" in str(error)
    assert str(error).endswith("which no backup of llamesh does")


@pytest.mark.parametrize("nested", [described(archive.MANIFEST, NESTED), MANIFEST + described(archive.END, NESTED)])
def test_a_description_that_is_nested_without_end_is_a_damaged_copy(tmp_path: Path, nested: bytes) -> None:
    error = refusal(nested, tmp_path)
    assert ("is damaged" in str(error), error.remedy) == (True, "use another copy of the backup")


@pytest.mark.parametrize("field", ["version", "made"])
def test_no_words_of_a_manifest_reach_a_command(tmp_path: Path, field: str) -> None:
    text = json.dumps({**DESCRIPTION, field: "99.9'; rm -r ~; '"}).encode()
    error = refusal(described(archive.MANIFEST, text) + end([]), tmp_path)
    assert "rm -r" not in f"{error} {error.remedy}"


def test_a_backup_of_a_newer_version_names_it(tmp_path: Path) -> None:
    text = json.dumps({**DESCRIPTION, "version": "99.0.0rc1+cpu"}).encode()
    error = refusal(described(archive.MANIFEST, text), tmp_path)
    assert error.remedy == "install llamesh 99.0.0rc1+cpu or later, then restore again"


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoration, "MAX_FILES", 3)
    names = [f"secrets/{number}" for number in range(5)]
    error = refusal(MANIFEST + b"".join(map(entry, names)) + end(names), tmp_path)
    assert "holds more than 3 files" in str(error)


def test_the_names_of_files_occupy_no_memory(tmp_path: Path) -> None:
    folder = "/".join(["import", *["d" * 250] * 12])
    few, many = ([f"{folder}/{number}" for number in range(count)] for count in (10, 410))
    peaks = []
    for names in (few, many):
        content = MANIFEST + b"".join(map(entry, names)) + described(archive.END, b"{}")
        tracemalloc.start()
        error = refusal(content, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert "does not hold what was backed up" in str(error)
        (tmp_path / "evil").unlink()
    assert peaks[1] - peaks[0] < sum(map(len, many)) / 2


def test_what_follows_the_end_is_refused(tmp_path: Path) -> None:
    error = refusal(MANIFEST + entry("secrets/x") + end(["secrets/x"]) + entry("secrets/y"), tmp_path)
    assert "does not hold what was backed up" in str(error)


def test_the_command_names_the_archive_and_not_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    (tmp_path / "evil").write_bytes(MANIFEST + entry("secrets/x") * 2)
    assert run(["restore", str(tmp_path / "evil")]) == 2
    said = capsys.readouterr().err.splitlines()[0]
    assert said == f"error: {tmp_path / 'evil'} holds 'secrets/x', which no backup of llamesh does"


def folder_of(home: Path, parts: int) -> Path:
    made = home.joinpath("import", *["ä"] * (parts - 2))
    made.mkdir(parents=True)
    (home / "secrets").mkdir()
    return made


def test_the_deepest_and_longest_names_that_are_backed_up_are_restored(tmp_path: Path) -> None:
    file = folder_of(tmp_path / "old", archive.MAX_DEPTH) / ("ü" * 127)
    file.write_text("x")
    archive.write(tmp_path / "old", tmp_path / "evil", __version__, tmp_path / "config.env", models=True)
    restored(tmp_path)
    assert (tmp_path / "home" / file.relative_to(tmp_path / "old")).read_text() == "x"


def test_nothing_is_backed_up_that_would_not_be_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "old"
    deep = folder_of(home, archive.MAX_DEPTH + 1) / "x"
    deep.touch()
    with pytest.raises(ArchiveError, match="folders deep"):
        archive.write(home, tmp_path / "b", __version__, home / "config.env", models=True)
    deep.unlink()
    (home / "secrets" / "x").touch()
    (home / "secrets" / "y").touch()
    monkeypatch.setattr(archive, "MAX_FILES", 1)
    with pytest.raises(ArchiveError, match="more than 1 files"):
        archive.write(home, tmp_path / "b", __version__, home / "config.env", models=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
