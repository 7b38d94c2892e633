"""`config.env` is edited line by line: what a restore or `llamesh tls init` changes is read back, and all else stays."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from dotenv import dotenv_values

from llamesh.cli.mesh.settings_file import LISTS, Moved, can_hold, moved, with_values
from llamesh.kit.config import Settings

OLD = Path("/srv/old mesh")
NEW = Path("/srv/new")


def values(content: str) -> dict[str, str | None]:
    return dotenv_values(stream=io.StringIO(content))


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('A="/srv/old mesh/tls/server.pem"', "/srv/new/tls/server.pem"),
        ("A='/srv/old mesh/tls/server.pem'", "/srv/new/tls/server.pem"),
        ("A=/srv/old mesh/bin/llama-server", "/srv/new/bin/llama-server"),
        ("export A = /srv/old mesh/x", "/srv/new/x"),
        ("A=/srv/old mesh", "/srv/new"),
        ("A=/srv/old mesh:2/x", "/srv/old mesh:2/x"),
        ("A=/srv/old mesh,2/x", "/srv/old mesh,2/x"),
        ("A=/srv/old mesh/a\x85b", "/srv/new/a\x85b"),
        ("A=file:/srv/old mesh/b", "file:/srv/new/b"),
        ("A=/srv/old mesh 2/x", "/srv/old mesh 2/x"),
        ("A=/srv/old mesh.bak/x", "/srv/old mesh.bak/x"),
        ("A=/mnt/srv/old mesh/x", "/mnt/srv/old mesh/x"),
        ("A=https://host/srv/old mesh/x", "https://host/srv/old mesh/x"),
    ],
)
def test_paths_below_the_old_home_lie_below_the_new_one(line: str, value: str) -> None:
    content = f"# /srv/old mesh/x\n\n{line}\nB=1\n"
    found, names = moved(content, OLD, NEW)
    assert values(found) == {"A": value, "B": "1"}
    assert names == Moved(("A",) if "new" in value else ())
    assert found.startswith("# /srv/old mesh/x\n\n")
    assert found.endswith("\nB=1\n")


def test_a_path_below_the_home_of_the_user_is_found_in_its_short_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    found, names = moved("A=~/.llamesh/x\nB=~/.llamesh2/x\n", Path("/home/ada/.llamesh"), NEW)
    assert (found, names) == ("A=/srv/new/x\nB=~/.llamesh2/x\n", Moved(("A",)))


def test_each_path_of_a_list_is_changed() -> None:
    line = "LLAMESH_IMPORT_DIRS=/mnt/a, /srv/old mesh/b,/srv/old mesh, /srv/old mesh/c # all"
    assert values(moved(line, OLD, NEW)[0]) == {"LLAMESH_IMPORT_DIRS": "/mnt/a, /srv/new/b,/srv/new, /srv/new/c"}


def test_every_setting_with_several_paths_is_known_as_a_list() -> None:
    tuples = {name.upper() for name, field in Settings.model_fields.items() if field.default == ()}
    without_paths = {
        *("SOURCE_HOSTS", "HTTP_SOURCE_HOSTS", "ALLOWED_HOSTS", "ALLOWED_ORIGINS"),
        *("ENGINE_IMAGES", "PRIORITY_CLASSES"),
    }
    assert {f"LLAMESH_{name}" for name in tuples - without_paths} == LISTS


@pytest.mark.parametrize(
    "name",
    [
        '/srv/a "quoted" one',
        "/srv/it's",
        "/srv/back\\slash",
        "/srv/sp ace # hash",
        "/srv/new ",
        "/srv/a, b:c",
        "/srv/$HOME",
    ],
)
def test_a_home_with_marks_in_its_name_is_read_back(name: str) -> None:
    written = with_values("", {"A": f"{name}/x"})
    assert values(written) == {"A": f"{name}/x"}
    assert values(moved('A="/srv/old mesh/x"\n', OLD, Path(name))[0]) == {"A": f"{name}/x"}
    assert values(moved("A='/srv/old mesh/x'\n", OLD, Path(name))[0]) == {"A": f"{name}/x"}
    unquoted = "A=/srv/old mesh/x # words\nB=/srv/old mesh\n"
    assert values(moved(unquoted, OLD, Path(name))[0]) == {"A": f"{name}/x", "B": name}
    assert values(moved(written, Path(name), NEW)[0]) == {"A": "/srv/new/x"}


def test_new_values_replace_those_of_the_same_names() -> None:
    content = "# words\nexport a = 1\nB=2"
    assert with_values(content, {"A": "3", "C": "4"}) == '# words\nB=2\nA="3"\nC="4"\n'


@pytest.mark.parametrize(
    ("line", "new"),
    [
        ("A=/srv/old mesh/x\n", "/srv/${HOME}"),
        ("A='/srv/old mesh/x'\n", "/srv/a\nB=1"),
        ('A="/srv/old mesh/x"\n', "/srv/\udcff"),
        ("LLAMESH_IMPORT_DIRS=/srv/old mesh/x\n", "/srv/a,b"),
        ("DATABASE_URL=postgresql:///mesh?host=/srv/old mesh/pg\n", "/srv/a&b"),
    ],
)
def test_a_value_that_cannot_hold_the_new_path_is_left_and_named(line: str, new: str) -> None:
    assert moved(line, OLD, Path(new)) == (line, Moved(left=(line.partition("=")[0],)))


def test_what_the_reader_would_replace_or_cut_off_cannot_be_held() -> None:
    assert can_hold('/srv/$HOME # it\'s "a" \\ path, too')
    assert not any(can_hold(f"/srv/{part}") for part in ("${HOME}", "\n", "\0", "\udcff"))


def test_a_place_with_several_paths_is_moved_once() -> None:
    found, _ = moved("A=/link/x\nB=/srv/old mesh/x\n", OLD, Path("/link/new"), ["/link", "/link/new/old"])
    assert values(found) == {"A": "/link/new/x", "B": "/link/new/x"}


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_of_places_below_each_other_the_longest_is_moved(quote: str) -> None:
    content = f"A={quote}/srv/a/b/x{quote}\nB={quote}/srv/a/c{quote}\n"
    for old, other in (("/srv/a", "/srv/a/b"), ("/srv/a/b", "/srv/a")):
        assert values(moved(content, Path(old), NEW, [other])[0]) == {"A": "/srv/new/x", "B": "/srv/new/c"}


@pytest.mark.parametrize("ends", ["#", "x", '"'])
@pytest.mark.parametrize("begins", ["A=", "A=/srv/old mesh", 'A="/srv/old mesh', "A", ""])
def test_long_blanks_of_a_hostile_backup_take_no_quadratic_time(begins: str, ends: str) -> None:
    """In quadratic time, a line takes hours."""
    content = f"{begins}{' ' * 2_000_000}{ends}\n"
    changed, _ = moved(content, OLD, NEW)
    assert len(changed) >= 2_000_000


@pytest.mark.parametrize("line", ["A=/srv/old mesh \t# /srv/old mesh\n", "A=/srv/old mesh  \n", "A=/srv/old mesh\r\n"])
def test_a_comment_and_the_end_of_a_line_stay(line: str) -> None:
    assert moved(line, OLD, NEW)[0] == line.replace("/srv/old mesh", "/srv/new", 1)


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("end", ["\n", " # was /srv/old mesh/x\n", " \t# 'a' \"/srv/old mesh\" http://host\r\n"])
def test_a_comment_behind_a_value_with_quotation_marks_stays(quote: str, end: str) -> None:
    other = f"A={quote}/mnt/else \\{quote} # /mnt{quote}{end}"
    assert moved(other, OLD, NEW) == (other, Moved())
    own = f"A={quote}/srv/old mesh/a \\{quote} # /srv/old mesh/b{quote}"
    changed, names = moved(own + end, OLD, Path("/srv/a new one"))
    assert changed == own.replace("/srv/old mesh", "/srv/a new one") + end
    assert names == Moved(("A",))
    assert values(changed) == {"A": f"/srv/a new one/a {quote} # /srv/a new one/b"}
