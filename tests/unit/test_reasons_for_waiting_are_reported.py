"""What a member waits for reaches the person at the terminal: who waits, for what, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh import certificates, private_files, waiting
from llamesh.cli.mesh import leftovers
from llamesh.cli.mesh.progress import WAITING_SECONDS, Waits
from llamesh.kit.config import Settings
from llamesh.kit.serving import Member
from llamesh.waiting import Wait

DATABASE = Wait("the database at db:5432: it does not answer", "start it")


def test_members_that_wait_for_the_same_are_one_sentence(tmp_path: Path) -> None:
    for member in ("gateway", "contract"):
        waiting.say(tmp_path, member, DATABASE)
    waiting.say(tmp_path, "controller", Wait("another mesh", "end it"))
    found = waiting.waits(tmp_path)
    assert [waiting.sentence(wait, members) for wait, members in found.items()] == [
        "contract, gateway wait for the database at db:5432: it does not answer",
        "controller waits for another mesh",
    ]
    waiting.clear(tmp_path, "controller")
    assert list(waiting.waits(tmp_path)) == [DATABASE]


@pytest.mark.parametrize(
    "content", ["", "no json", "[]", "{}", '{"pid": 1, "started": "", "words": "x", "remedy": "y"}']
)
def test_words_of_a_process_that_is_gone_and_garbage_say_nothing(tmp_path: Path, content: str) -> None:
    assert waiting.waits(tmp_path / "missing") == {}
    (tmp_path / "gateway.waits").write_text(content)
    assert waiting.waits(tmp_path) == {}


def test_nothing_of_it_is_left_after_the_end(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    waiting.say(run_dir, "gateway", DATABASE)
    # Of a process that was killed while it wrote.
    (run_dir / f".contract.waits.0{private_files.SUFFIX}").touch()
    certificates.secret_file(run_dir).touch()
    leftovers.clear(tmp_path, run_dir)
    assert not run_dir.exists()


def test_a_start_says_it_once_until_it_is_over(tmp_path: Path) -> None:
    now = 100.0
    said: list[str] = []
    waits = Waits(tmp_path, now, said.append, lambda: now)
    waiting.say(tmp_path, "gateway", DATABASE)
    waits.look()
    assert said == []  # it may be over in a moment
    for members in (["gateway"], ["gateway", "contract"]):
        for member in members:
            waiting.say(tmp_path, member, DATABASE)
        now += WAITING_SECONDS
        waits.look()
    assert said == ["gateway waits for the database at db:5432: it does not answer\n    -> start it"]
    for member in ("gateway", "contract"):
        waiting.clear(tmp_path, member)
    now += WAITING_SECONDS
    waits.look()
    waiting.say(tmp_path, "gateway", DATABASE)
    now += WAITING_SECONDS
    waits.look()
    assert len(said) == 2


async def test_a_member_says_it_and_takes_it_back(tmp_path: Path) -> None:
    member = Member("gateway", Settings(home=tmp_path))
    member.wait_for(DATABASE)
    assert waiting.waits(tmp_path / "run") == {DATABASE: ["gateway"]}
    member.wait_for(None)
    assert not list((tmp_path / "run").iterdir())
    # What cannot be written costs the words only.
    (tmp_path / "run").rmdir()
    (tmp_path / "run").write_text("")
    member.wait_for(DATABASE)
