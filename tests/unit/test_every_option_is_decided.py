"""Each option of llama-server is a parameter, or decided against with a reason: as the installed llama.cpp's own parser has them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from buf.validate import validate_pb2
from llamesh.runtime_parameters import all_parameters, refused_options
from services.contract import llama_options
from services.contract.flag_parser import spellings
from tests.unit.llama_parser import builtin_chat_templates, command_line_options, library_build
from tools.options import refusals

GIVEN_UP = {flag for parameter in all_parameters().values() for flag in parameter.implied}
"""Flags that llama.cpp replaced by values of another, and that people still write."""


@pytest.fixture(scope="module")
def offered() -> list[tuple[str, ...]]:
    """What the installed llama.cpp offers."""
    return command_line_options()


def test_the_table_is_of_the_llama_cpp_that_is_installed() -> None:
    assert llama_options.build() == library_build(), (
        "compare the options of the two, decide the new ones, then set `build`"
    )


def test_every_option_of_llama_server_is_decided_once(offered: list[tuple[str, ...]]) -> None:
    decided = [*spellings(), *(flag for option in llama_options.table() for flag in option.flags)]
    assert [flag for flag, times in Counter(decided).items() if times > 1] == []
    names = {flag for option in offered for flag in option}
    assert sorted(names - set(decided)) == [], "not decided"
    assert sorted(set(decided) - names - GIVEN_UP) == [], "decided, but llama-server has no such option"


def test_the_command_knows_why_each_is_refused() -> None:
    assert refused_options() == json.loads(refusals()), "run `make gen`"
    assert refused_options().keys() == llama_options.options().keys()


def test_all_spellings_of_an_option_are_decided_alike(offered: list[tuple[str, ...]]) -> None:
    for flags in offered:
        parameters = {spellings()[flag].parameter.name for flag in flags if flag in spellings()}
        decisions = {llama_options.options()[flag] for flag in flags if flag in llama_options.options()}
        assert len(parameters) + len(decisions) == 1, flags


def test_each_decision_has_a_reason_and_names_only_known_parameters() -> None:
    for option in llama_options.table():
        assert option.reason
        assert option.reason[-1] not in ".;"
        assert option.instead in ("", *(parameter.flag for parameter in all_parameters().values())), option


def test_the_chat_templates_are_those_of_llama_cpp() -> None:
    rules = all_parameters()["chat_template"].field.GetOptions().Extensions[validate_pb2.field]
    offered = builtin_chat_templates()
    assert len(offered) > 40
    assert list(getattr(rules.string, "in")) == offered
