"""llama.cpp's flags in one string, read strictly into typed parameters; `llamesh.parameters` writes them back.

A parameter is a way into the engine's process: what is not on the allow-list (the fields of `RuntimeParameters`, their spellings
read from the contract's options) is refused, and so is what llama.cpp itself would read in a lax way: `2K` as 2, `5;` as 5, the
last of duplicates.

Invariant: whatever the text, `parse` returns parameters within all bounds or raises MeshError; `parse(flags(p)) == p`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import protovalidate
from google.protobuf.descriptor import FieldDescriptor

from buf.validate import validate_pb2
from llamesh.kit.errors import FieldViolation, MeshError, Reason
from llamesh.parameters import DEFAULT_PARALLEL, Parameter, all_parameters, batch_size
from llamesh.v1.server_pb2 import CacheType, RuntimeParameters, Switch

MAX_LENGTH = 4096
"""Longest text, in characters; the contract has the same bound."""

SHOWN_NAMES = 8
"""Names that a message lists of those that a text must be one of; the contract has them all."""
MIN_SLOT_CONTEXT = 64
"""Fewest tokens of context that a slot can work with."""

FULL_CACHE_TYPES = frozenset({CacheType.CACHE_TYPE_F32, CacheType.CACHE_TYPE_F16, CacheType.CACHE_TYPE_BF16})
"""Cache types that are not quantised: only these can hold values without flash attention."""

_TOKEN = re.compile(r"""(?P<flag>-[^ '"=]*=)?(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^ '"]*))(?= |\Z)""")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,24})?|\.[0-9]{1,24})(?:[eE][+-]?[0-9]{1,3})?")
_TYPE_RANGE = {FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1), FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1)}


@dataclass(frozen=True, slots=True)
class Spelling:
    """One way to write a parameter."""

    parameter: Parameter
    stands_for: bool | str | None
    """What a flag without a value means; None where a value follows."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    flag: str
    """The part before `=`; empty where there is none."""
    quoted: bool

    @property
    def may_be_flag(self) -> bool:
        return not self.quoted and self.text.startswith("-") and not _NUMBER.fullmatch(self.text)


@cache
def spellings() -> Mapping[str, Spelling]:
    """Every flag on the allow-list, aliases and implied ones included."""
    table: dict[str, Spelling] = {}
    for parameter in all_parameters().values():
        plain = Spelling(parameter, True if parameter.switch else None)
        table |= dict.fromkeys((parameter.flag, *parameter.aliases), plain)
        table |= {flag: Spelling(parameter, value) for flag, value in parameter.implied.items()}
        if parameter.negative:
            table[parameter.negative] = Spelling(parameter, False)
    return table


def parse(text: str) -> RuntimeParameters:
    """Read flags such as `--ctx-size 2048 -fa on --no-jinja --temp=0.7`.

    Raises MeshError: PARAMETER_UNKNOWN for a flag that is not on the allow-list, PARAMETER_INVALID for a value that is malformed,
    out of bounds, missing or given twice, and for parameters that contradict each other.
    """
    parameters = RuntimeParameters()
    spelt: dict[str, str] = {}
    tokens = _tokens(text)
    for token in tokens:
        flag = token.flag or token.text
        if (token.quoted and not token.flag) or not flag.startswith("-"):
            raise _invalid(token.text, "", "stands where a flag is expected, and flags begin with '-'")
        spelling = spellings().get(flag)
        if spelling is None:
            raise _unknown(flag)
        name = spelling.parameter.name
        if name in spelt:
            raise _invalid(flag, "", f"is given twice: {_shown(spelt[name])} sets the same parameter")
        spelt[name] = flag
        if spelling.stands_for is None:
            value: bool | str = token.text if token.flag else _following(flag, tokens)
        elif token.flag:
            raise _invalid(flag, token.text, "takes no value")
        else:
            value = spelling.stands_for
        setattr(parameters, name, _typed(spelling.parameter, flag, value))
    check(parameters, spelt)
    return parameters


def check(parameters: RuntimeParameters, spelt: Mapping[str, str] | None = None) -> None:
    """Raise PARAMETER_INVALID where a value is out of bounds or contradicts another.

    `spelt` says how the caller wrote a field's flag; without it the canonical flag is named.
    """
    names = {name: parameter.flag for name, parameter in all_parameters().items()} | dict(spelt or {})
    try:
        protovalidate.validate(parameters)
    except protovalidate.ValidationError as error:
        name = _field_at_fault(error)
        value = all_parameters()[name].value(getattr(parameters, name))
        raise _invalid(names[name], str(value), bounds(all_parameters()[name])) from error
    _check_together(parameters, names)


def bounds(parameter: Parameter) -> str:
    """What a parameter's value must be, for people: "must be 64 to 1048576"."""
    if parameter.words:
        return "must be one of " + ", ".join(parameter.words)
    rules = parameter.field.GetOptions().Extensions[validate_pb2.field]
    kind = rules.WhichOneof("type")
    if kind == "string":
        names = getattr(rules.string, "in")
        return f"must be one of {', '.join(names[:SHOWN_NAMES])} and {len(names) - SHOWN_NAMES} more"
    rule = getattr(rules, kind) if kind else None
    low, high = _TYPE_RANGE.get(parameter.field.type, (0, 0))
    if rule is None:
        return f"must be {low} to {high}"
    if rule.HasField("gt"):
        return f"must be above {_number(rule.gt)}, at most {_number(rule.lte)}"
    return f"must be {_number(rule.gte if rule.HasField('gte') else low)} to {_number(rule.lte)}"


def _tokens(text: str) -> Iterator[_Token]:
    """Words separated by spaces; quotes stand around a whole value or nowhere. Nothing but printable ASCII."""
    if len(text) > MAX_LENGTH:
        raise _invalid(text, "", f"is part of {len(text)} characters; at most {MAX_LENGTH} are read")
    for word in text.split(" "):
        if not (word.isascii() and word.isprintable()):
            raise _invalid(word, "", "has a character that is not printable ASCII")
    at = 0
    while at < len(text):
        if text[at] == " ":
            at += 1
            continue
        found = _TOKEN.match(text, at)
        if found is None:
            raise _invalid(text[at:].split(" ")[0], "", "has a quote that does not stand around a whole value")
        bare = found["bare"]
        value = bare if bare is not None else found["double"] if found["single"] is None else found["single"]
        yield _Token(value, (found["flag"] or "").removesuffix("="), bare is None)
        at = found.end()


def _following(flag: str, tokens: Iterator[_Token]) -> str:
    token = next(tokens, None)
    if token is None:
        raise _invalid(flag, "", "needs a value")
    if token.flag or token.may_be_flag:
        raise _invalid(flag, token.flag or token.text, "needs a value, and a flag follows")
    return token.text


def _typed(parameter: Parameter, flag: str, value: bool | str) -> bool | int | float | str:
    if isinstance(value, bool):
        return value
    kind = parameter.field.type
    if kind == FieldDescriptor.TYPE_ENUM:
        if value not in parameter.words:
            raise _invalid(flag, value, bounds(parameter))
        return parameter.words[value]
    if kind == FieldDescriptor.TYPE_STRING:
        return value
    if kind == FieldDescriptor.TYPE_DOUBLE:
        if not _NUMBER.fullmatch(value):
            raise _invalid(flag, value, f"is not a decimal number; it {bounds(parameter)}")
        return float(value) + 0.0  # -0.0 is 0.0
    if not _INTEGER.fullmatch(value):
        raise _invalid(flag, value, f"is not a whole decimal number; it {bounds(parameter)}")
    low, high = _TYPE_RANGE[kind]
    if not low <= int(value) <= high:
        raise _invalid(flag, value, bounds(parameter))
    return int(value)


def _check_together(parameters: RuntimeParameters, names: Mapping[str, str]) -> None:
    value_type = parameters.cache_type_v
    if (
        parameters.HasField("cache_type_v")
        and value_type not in FULL_CACHE_TYPES
        and parameters.flash_attn == Switch.SWITCH_OFF
    ):
        value = all_parameters()["cache_type_v"].value(value_type)
        raise _invalid(names["cache_type_v"], str(value), f"needs flash attention, and {names['flash_attn']} is off")
    batch = batch_size(parameters)
    if parameters.ubatch_size > batch:
        raise _invalid(
            names["ubatch_size"],
            str(parameters.ubatch_size),
            f"must not be above {names['batch_size']}, which is {batch}",
        )
    parallel = parameters.parallel or DEFAULT_PARALLEL
    if (
        parameters.HasField("ctx_size")
        and not parameters.kv_unified
        and parameters.ctx_size // parallel < MIN_SLOT_CONTEXT
    ):
        raise _invalid(
            names["ctx_size"],
            str(parameters.ctx_size),
            f"is shared by {parallel} slots ({names['parallel']}); each needs at least {MIN_SLOT_CONTEXT} tokens",
        )


def _field_at_fault(error: protovalidate.ValidationError) -> str:
    """Name of the first field that breaks a rule. All rules of these parameters stand on fields."""
    path = error.violations[0].proto.field
    assert path is not None
    return path.elements[0].field_name


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _shown(text: str) -> str:
    """Foreign text for a message: short, and nothing in it that a terminal or a log would act on."""
    return (text if len(text) <= 64 else text[:61] + "...").encode("unicode_escape").decode()


def _unknown(flag: str) -> MeshError:
    close = difflib.get_close_matches(flag[:64].replace("_", "-"), spellings(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    message = f"{_shown(flag)} is not a parameter that a server may be given{hint}"
    return MeshError(
        Reason.ERROR_REASON_PARAMETER_UNKNOWN,
        message,
        {"parameter": _shown(flag), **({"suggestion": close[0]} if close else {})},
        (FieldViolation("runtime_params", message),),
    )


def _invalid(flag: str, value: str, problem: str) -> MeshError:
    shown = f"{_shown(flag)} {_shown(value)}".rstrip()
    message = f"{shown}: {problem}"
    return MeshError(
        Reason.ERROR_REASON_PARAMETER_INVALID,
        message,
        {"parameter": _shown(flag), "value": _shown(value), "problem": problem},
        (FieldViolation("runtime_params", message),),
    )
