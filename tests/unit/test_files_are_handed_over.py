"""A model file of this machine is linked where the mesh may read it, and the link goes away after the fetch."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.local_files import HandedOver, handed_over, handed_over_folder, is_path, model_file
from llamesh.cli.sources import no_source
from llamesh.client import errors
from llamesh.client.profile import Profile
from llamesh.client.silence import Silence
from llamesh.disk_space import RESERVE_BYTES, DiskSpace
from llamesh.local_mesh import Addresses
from llamesh.locations import handed_over_directory
from services.download.handed_over import GRACE_SECONDS, remove_unused

LOCAL = Profile("http://localhost:8200")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("LLAMESH_HOME", str(home))
    monkeypatch.setattr(
        "llamesh.client.own_files.running_here", lambda _: Addresses("http://localhost:8200", "http://localhost:8080")
    )
    return home


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a folder" / "My Model.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF and more")
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def handed_folders(home: Path) -> list[Path]:
    directory = handed_over_directory(home)
    return list(directory.iterdir()) if directory.exists() else []


def path_of(handed: HandedOver) -> Path:
    return Path(unquote(urlsplit(handed.url).path))


def other_disk(*_: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_linked_for_the_fetch_and_not_left_behind(home: Path, model: Path) -> None:
    with handed_over(model, LOCAL, purpose="") as file:
        (folder,) = handed_folders(home)
        assert file.url == (folder / "My Model.gguf").as_uri()
        assert (folder / "My Model.gguf").samefile(model)
    assert handed_folders(home) == []
    assert model.read_bytes() == b"GGUF and more"


def test_a_file_is_not_left_behind_after_a_failure(home: Path, model: Path) -> None:
    with pytest.raises(RuntimeError), handed_over(model, LOCAL, purpose=""):
        raise RuntimeError
    assert handed_folders(home) == []


@pytest.mark.parametrize("error", [errors.Unavailable("gone"), errors.DeadlineExceeded("late"), KeyboardInterrupt()])
def test_a_file_stays_if_the_mesh_may_have_accepted_the_fetch(home: Path, model: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), handed_over(model, LOCAL, purpose=""):
        raise error
    assert len(handed_folders(home)) == 1


@pytest.mark.parametrize("error", [errors.Internal("Stream removed"), KeyboardInterrupt()])
def test_a_file_stays_while_the_mesh_fetches_it(
    home: Path, model: Path, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    pull = SimpleNamespace(model_uuid="m", silence=Silence(), ended=False, paused=False)
    with (
        pytest.raises(type(error)),
        handed_over(model, LOCAL, purpose="") as file,
        file.fetched_by(pull),  # type: ignore[arg-type]
    ):
        raise error
    assert len(handed_folders(home)) == 1
    assert "the mesh goes on fetching m: `llamesh pull --uuid m` waits" in capsys.readouterr().err


def test_a_fetch_that_is_paused_is_not_said_to_go_on(
    home: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pull = SimpleNamespace(model_uuid="m", silence=Silence(), ended=False, paused=True)
    with (
        pytest.raises(KeyboardInterrupt),
        handed_over(model, LOCAL, purpose="") as file,
        file.fetched_by(pull),  # type: ignore[arg-type]
    ):
        raise KeyboardInterrupt
    said = capsys.readouterr().err
    assert "the download of m stays paused: `llamesh downloads resume m`" in said
    assert "goes on fetching" not in said


@pytest.mark.parametrize(
    ("ended", "error", "folders"),
    [
        (True, errors.ContentMismatch("other bytes"), 0),
        (True, errors.of_reason("SOURCE_UNAVAILABLE", "no answer"), 0),
        (False, errors.of_reason("DOWNLOAD_NOT_FOUND", "removed"), 1),
    ],
)
def test_a_fetch_that_has_ended_is_not_said_to_go_on(
    home: Path, model: Path, ended: bool, error: Exception, folders: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pull = SimpleNamespace(model_uuid="m", silence=Silence(), ended=ended, paused=False)
    with (
        pytest.raises(type(error)),
        handed_over(model, LOCAL, purpose="") as file,
        file.fetched_by(pull),  # type: ignore[arg-type]
    ):
        raise error
    assert len(handed_folders(home)) == folders
    assert capsys.readouterr().err == ""


def test_a_file_of_another_disk_is_copied(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", other_disk)
    with handed_over(model, LOCAL, purpose=""):
        (copy,) = handed_folders(home)[0].iterdir()
        assert copy.read_bytes() == model.read_bytes()
        assert not copy.samefile(model)
    assert handed_folders(home) == []


def test_a_full_disk_is_said_and_leaves_nothing(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(CommandError, match="No space left") as refused, handed_over(model, LOCAL, purpose=""):
        pass
    assert "free some space" in refused.value.hint
    assert handed_folders(home) == []


def test_copies_for_which_there_is_no_room_are_refused_before_the_first_one(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[Path] = []
    length = sum(file.stat().st_size for file in checkpoint.iterdir())
    monkeypatch.setattr(Path, "hardlink_to", other_disk)
    monkeypatch.setattr("llamesh.client.handed_folder._copy", lambda path, _: copied.append(path))
    monkeypatch.setattr(
        "llamesh.client.handed_folder.disk_space", lambda _: DiskSpace(RESERVE_BYTES + length - 1, 1 << 40)
    )
    with (
        pytest.raises(CommandError, match="copies take 0 MiB, and its disk has 0 MiB free") as refused,
        handed_over_folder(checkpoint, LOCAL),
    ):
        pass
    assert "free some space" in refused.value.hint
    assert copied == []
    assert handed_folders(home) == []


def test_links_need_no_room(home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamesh.client.handed_folder.disk_space", lambda _: DiskSpace(0, 1 << 40))
    with handed_over_folder(checkpoint, LOCAL) as handed:
        assert path_of(handed).is_dir()


def test_the_same_file_is_the_same_source_and_a_changed_one_another(home: Path, model: Path) -> None:
    def url(purpose: str = "") -> str:
        with handed_over(model, LOCAL, purpose=purpose) as file:
            return file.url

    before = url()
    assert url() == before
    assert url("other name") != before
    model.write_bytes(b"GGUF and something else")
    assert url() != before


def test_a_file_below_the_import_folder_is_used_in_place(home: Path) -> None:
    path = home / "import" / "x.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    with handed_over(path.resolve(), LOCAL, purpose="") as file:
        assert file.url == path.resolve().as_uri()
    assert path.exists()


@pytest.mark.parametrize(
    ("url", "words", "remedy"),
    [
        ("http://mesh.example:8200", "is on another machine", "https address"),
        ("http://localhost:9999", "the home of the mesh", "LLAMESH_HOME"),
    ],
)
def test_a_mesh_that_cannot_read_the_file_is_told_apart(
    home: Path, model: Path, url: str, words: str, remedy: str
) -> None:
    with pytest.raises(CommandError, match=words) as refused, handed_over(model, Profile(url), purpose=""):
        pass
    assert remedy in refused.value.hint
    assert not home.exists()


@pytest.mark.parametrize(
    ("word", "words", "hint", "code"),
    [
        ("nowhere/x.gguf", "there is no file", "", Exit.NOT_FOUND),
        ("a folder/My Modal.gguf", "there is no file", "did you mean 'a folder/My Model.gguf'?", Exit.NOT_FOUND),
        ("a folder", "is a directory", "name a file of it: 'a folder/My Model.gguf'", Exit.USAGE),
        ("empty", "is empty", "`llamesh quantize ./FOLDER --types Q4_K_M`", Exit.USAGE),
        ("text.txt", "is no GGUF file", "convert_hf_to_gguf", Exit.USAGE),
        ("pipe", "is no regular file but a pipe", "name a GGUF file", Exit.USAGE),
        ("loop", "loop", "", Exit.USAGE),
        ("nul\0", "null", "", Exit.USAGE),
    ],
)
def test_a_path_that_is_not_a_model_file_is_refused_with_the_reason(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, word: str, words: str, hint: str, code: Exit
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CommandError) as refused:
        model_file(word)
    assert words in refused.value.cause
    assert hint in refused.value.hint
    assert refused.value.code is code


def test_words_that_begin_like_a_path_and_files_that_exist_are_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.gguf").touch()
    assert all(map(is_path, ["./x", "../x", "/x", "~/x", "here.gguf", "."]))
    assert not any(map(is_path, ["x", "there.gguf", "https://host/x.gguf", "file:///x.gguf", "x" * 5000, "nul\0"]))


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("smoll", "did you mean smol?"),
        ("QWEN", "did you mean Qwen3-0.6B.gguf?"),
        ("models.example/x.gguf", "did you mean https://models.example/x.gguf?"),
        ("ada/tiny-GGUF:Q8_0", "did you mean hf:ada/tiny-GGUF:Q8_0?"),
        ("llama3:8b", "did you mean ollama:llama3:8b?"),
        ("zzz", "ollama:zzz is"),
    ],
)
def test_a_word_that_names_nothing_gets_the_nearest_right_form(word: str, hint: str) -> None:
    refusal = no_source(word, ["smol", "Qwen3-0.6B.gguf"])
    assert refusal.hint.startswith(hint)
    assert refusal.code is Exit.NOT_FOUND


def test_an_unknown_name_lists_the_models_of_the_mesh_and_where_others_are_found() -> None:
    refusal = no_source("llama3.2", ["smol", "Qwen3-0.6B.gguf", "smol"])
    assert refusal.parts == ("the mesh has: smol, Qwen3-0.6B.gguf",)
    assert "hf:OWNER/REPO:Q4_K_M" in refusal.hint
    assert "`llamesh search llama3.2`" in refusal.hint
    assert "no model of the mesh" in no_source("llama3.2", []).cause
    assert "no model of the mesh" not in no_source("llama3.2").cause


def test_a_command_leaves_the_files_of_an_earlier_one(home: Path, model: Path) -> None:
    with handed_over(model, LOCAL, purpose="") as first:
        first.kept = True
    with handed_over(model, LOCAL, purpose="") as second:
        assert second.url == first.url
    assert path_of(first).samefile(model)


def test_a_command_leaves_the_files_that_a_later_one_uses(home: Path, model: Path) -> None:
    with handed_over(model, LOCAL, purpose=""), handed_over(model, LOCAL, purpose="") as later:
        later.kept = True
    assert path_of(later).samefile(model)


def test_a_refused_job_leaves_the_checkpoint_of_the_one_before(home: Path, checkpoint: Path) -> None:
    with handed_over_folder(checkpoint, LOCAL) as accepted:
        accepted.kept = True
    with pytest.raises(errors.MeshError), handed_over_folder(checkpoint, LOCAL):
        raise errors.of_reason("QUANT_MODEL_EXISTS", "the job makes this model already")
    assert (path_of(accepted) / "config.json").samefile(checkpoint / "config.json")


def test_a_copy_that_the_mesh_may_read_is_not_written_again(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", other_disk)
    with handed_over(model, LOCAL, purpose="") as first:
        first.kept = True
    before = path_of(first).stat()
    with handed_over(model, LOCAL, purpose=""):
        assert path_of(first).stat() == before


def test_a_copy_that_fails_leaves_the_files_of_an_earlier_command(
    home: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with handed_over_folder(checkpoint, LOCAL) as first:
        first.kept = True
    (path_of(first) / "config.json").unlink()
    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(CommandError, match="No space left"), handed_over_folder(checkpoint, LOCAL):
        pass
    assert [file.name for file in path_of(first).iterdir()] == ["model.safetensors"]


def test_renamed_files_of_a_checkpoint_are_another_source(home: Path, checkpoint: Path) -> None:
    with handed_over_folder(checkpoint, LOCAL) as first:
        first.kept = True
    (checkpoint / "model.safetensors").rename(checkpoint / "weights.safetensors")
    with handed_over_folder(checkpoint, LOCAL) as second:
        assert second.url != first.url


def test_the_download_service_removes_the_files_of_a_killed_command(tmp_path: Path) -> None:
    for name in ("read", "left"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x y.gguf").touch()
    active = [(tmp_path / "read" / "x y.gguf").as_uri(), "https://models.example/x.gguf"]
    now = (tmp_path / "left").stat().st_ctime
    assert remove_unused(tmp_path, active, now + 1) == []
    assert remove_unused(tmp_path, active, now + GRACE_SECONDS + 5) == [tmp_path / "left"]
    assert (tmp_path / "read" / "x y.gguf").exists()
    assert remove_unused(tmp_path / "nowhere", active) == []


def test_files_of_a_checkpoint_stay_if_one_of_them_was_written_a_moment_ago(tmp_path: Path) -> None:
    folder = tmp_path / "handed"
    copy = folder / "tiny" / "model.safetensors"
    copy.parent.mkdir(parents=True)
    copy.touch()
    earlier = max(folder.stat().st_ctime, copy.parent.stat().st_ctime)
    while copy.stat().st_ctime <= earlier:
        copy.write_bytes(b"more")
    assert remove_unused(tmp_path, [], (earlier + copy.stat().st_ctime) / 2 + GRACE_SECONDS) == []
    assert remove_unused(tmp_path, [], copy.stat().st_ctime + GRACE_SECONDS + 1) == [folder]


def test_a_new_link_to_the_file_keeps_no_folder(tmp_path: Path, model: Path) -> None:
    for name in ("left", "new"):
        (tmp_path / "handed" / name).mkdir(parents=True)
        (tmp_path / "handed" / name / "x.gguf").hardlink_to(model)
    os.utime(tmp_path / "handed" / "left")
    changed = (tmp_path / "handed" / "left").stat().st_ctime
    while model.stat().st_ctime <= changed:
        model.chmod(0o600)
    now = (changed + model.stat().st_ctime) / 2 + GRACE_SECONDS
    assert tmp_path / "handed" / "left" in remove_unused(tmp_path / "handed", [], now)


def test_a_folder_stays_while_a_command_brings_files_into_it(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []

    def link(target: Path, source: Path) -> None:
        removed.extend(remove_unused(handed_over_directory(home), [], time.time() + 2 * GRACE_SECONDS))
        os.link(source, target)

    monkeypatch.setattr(Path, "hardlink_to", link)
    with handed_over(model, LOCAL, purpose="") as file:
        assert path_of(file).samefile(model)
    assert removed == []
