"""Every command line that a message of the product names is one that the parser of the command accepts."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator

import pytest
from cyclopts import CycloptsError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

from llamesh.cli.main import ALIASES, COMMANDS, application
from llamesh.cli.refusals import translate
from llamesh.cli.remedies import REMEDIES
from llamesh.client.errors import of_reason
from llamesh.kit.errors import Reason, name_of, spec_of
from tests.unit.house import ROOT, product_files

_NAMED = re.compile(r"`(?:[A-Z_]+=\S* )?llamesh ([^`\n]+)`")
_NO_COMMAND_LINE = re.compile(r"[\[\]…]|\.\.\.|, ")
"""What only stands in a description of several command lines."""


def _hints() -> Iterator[tuple[str, str]]:
    """Yield the place and the words of each command line in a string of the product, docstrings included."""
    for path in product_files(".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            words = "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "{}"
                for part in parts
                if isinstance(node, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
            )
            for line in _NAMED.findall(words):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", line
    for reason in Reason.values():
        for line in _NAMED.findall(spec_of(reason).remedy):
            yield f"the remedy of {name_of(reason)}", line


def _why_refused(line: str) -> str:
    """Why the parser takes no such command line; empty if it takes it. Values and missing arguments are not looked at."""
    # What follows a letter in an f-string is most likely a further word or nothing, such as " NAME" after `llamesh logs`.
    words = shlex.split(re.sub(r"\{[^{}]*\}", "x", re.sub(r"(?<=[a-z])\{\}", "", line)))
    if words[0] in {"help", "x", "--complete"} or _NO_COMMAND_LINE.search(line):
        return ""
    words[0] = ALIASES.get(words[0], words[0])
    if words[0] not in {name for commands in COMMANDS.values() for name in commands}:
        return f"there is no command {words[0]}"
    try:
        application().parse_args(words)
    except (UnknownOptionError, UnknownCommandError, UnusedCliTokensError) as error:
        return str(error)
    except CycloptsError:
        return ""
    return ""


def test_every_command_line_of_a_message_is_accepted_by_the_parser() -> None:
    found = sorted(set(_hints()))
    assert len(found) > 50
    wrong = [f"{place}: llamesh {line}: {why}" for place, line in found if (why := _why_refused(line))]
    assert wrong == []


@pytest.mark.parametrize("line", ["contracts update x --models NAME", "serve x --kep", "nothing", "rm --x"])
def test_a_command_line_that_is_refused_is_found(line: str) -> None:
    assert _why_refused(line)


def test_an_alias_is_freed_by_its_own_spelling() -> None:
    """Names are compared without case, and `llamesh alias --remove` takes the alias as it is stored."""
    taken = of_reason("MODEL_NAME_TAKEN", "zeD is taken", metadata={"name": "zeD", "modelUuid": "m1", "alias": "zed"})
    failure = translate(taken)
    assert failure is not None
    assert failure.hint == "take another name; `llamesh alias m1 zed --remove` frees it"


def test_a_name_that_is_no_alias_is_not_freed_by_taking_an_alias_away() -> None:
    failure = translate(of_reason("MODEL_NAME_TAKEN", "m1 is taken", metadata={"name": "m1", "modelUuid": "m1"}))
    assert failure is not None
    assert failure.hint == "take another name"


def test_values_of_a_hint_are_one_word_each() -> None:
    failure = translate(of_reason("USER_EXISTS", "taken", metadata={"username": "ada b"}))
    assert failure is not None
    assert "`llamesh users update 'ada b'`" in failure.hint


def test_the_servers_that_use_a_model_are_stopped_by_one_command() -> None:
    failure = translate(of_reason("MODEL_IN_USE", "used", metadata={"modelUuid": "m1", "servers": "s1,s2"}))
    assert failure is not None
    assert failure.hint == "`llamesh stop s1 s2` stops what uses it"


def test_the_remedies_name_no_rest_call() -> None:
    assert [words for words in REMEDIES.values() if re.search(r"\b(GET|POST|PATCH|DELETE) /", words)] == []
