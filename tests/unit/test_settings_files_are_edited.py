"""`config.env` is edited line by line: what a restore or `llamesh tls init` changes is read back, and all else stays."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from dotenv import dotenv_values

from llamesh.cli.mesh.settings_file import moved, with_values

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
        ("A=/mnt/a, /srv/old mesh/b,/srv/old mesh/c # both", "/mnt/a, /srv/new/b,/srv/new/c"),
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
    assert names == (["A"] if "new" in value else [])
    assert found.startswith("# /srv/old mesh/x\n\n")
    assert found.endswith("\nB=1\n")


def test_a_path_below_the_home_of_the_user_is_found_in_its_short_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    found, names = moved("A=~/.llamesh/x\nB=~/.llamesh2/x\n", Path("/home/ada/.llamesh"), NEW)
    assert (found, names) == ("A=/srv/new/x\nB=~/.llamesh2/x\n", ["A"])


@pytest.mark.parametrize("name", ['/srv/a "quoted" one', "/srv/it's", "/srv/back\\slash", "/srv/sp ace # hash"])
def test_a_home_with_marks_in_its_name_is_read_back(name: str) -> None:
    written = with_values("", {"A": f"{name}/x"})
    assert values(written) == {"A": f"{name}/x"}
    assert values(moved('A="/srv/old mesh/x"\n', OLD, Path(name))[0]) == {"A": f"{name}/x"}
    assert values(moved("A='/srv/old mesh/x'\n", OLD, Path(name))[0]) == {"A": f"{name}/x"}
    assert values(moved(written, Path(name), NEW)[0]) == {"A": "/srv/new/x"}


def test_new_values_replace_those_of_the_same_names() -> None:
    content = "# words\nexport a = 1\nB=2"
    assert with_values(content, {"A": "3", "C": "4"}) == '# words\nB=2\nA="3"\nC="4"\n'
