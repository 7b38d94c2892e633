"""Parser for llama.cpp's flags in one string: returns typed parameters. `llamesh.runtime_parameters` writes them back as flags.

A flag could open a way into the engine's process, so the parser accepts only the flags of an allow-list: the fields of `RuntimeParameters`
with the spellings in their proto options. It also refuses values that llama.cpp reads laxly: `2K` as 2, `5;` as 5, the last of duplicates.

Invariant: for any text, `parse` returns parameters within all bounds or raises MeshError; `parse(flags(p)) == p`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import protovalidate
from google.protobuf.descriptor import FieldDescriptor

from buf.validate import validate_pb2
from llamesh.kit.errors import FieldViolation, MeshError, Reason
from llamesh.nearest import nearest
from llamesh.runtime_parameters import Parameter, all_parameters
from llamesh.v1.server_pb2 import RuntimeParameters
from services.contract.contradictions import contradictions
from services.contract.flag_lexer import NUMBER, Word, WordError, words
from services.contract.llama_options import Option, Treatment, options

MAX_LENGTH = 4096
"""Longest text, in characters; contract.proto has the same bound."""

MAX_SHOWN_NAMES = 8
"""Maximum number of allowed names in an error message; server.proto has all of them."""

_TEXTS = {
    "alias": "must be one name of 1 to 128 characters of A-Z, a-z, 0-9 and ._:/@+-, the first a letter or digit",
    "chat_template_kwargs": "must be a JSON object of at most 2048 characters",
    "lora": "must be 1 to 8 names of adapters of the model, each with a scale if it is not 1 (style:0.5,law); a path is not accepted",
    "model_draft": "must be the model_uuid of a model in the catalogue; a path, an address or a repository is not accepted",
    "reasoning_budget_message": "must be 1 to 512 characters, none of them a control character",
}
"""The rule for each text parameter that has no list of allowed names, in words."""

_ZERO_CONTEXT = (
    "; for llama.cpp 0 means the model's own context, whose memory must be stated here: give the number that `llamesh models` shows, "
    "times the slots"
)
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_TYPE_RANGE = {FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1), FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1)}


@dataclass(frozen=True, slots=True)
class Spelling:
    """One way to write a parameter."""

    parameter: Parameter
    stands_for: bool | str | None
    """The value of a flag that takes none; None if a value follows."""


@cache
def spellings() -> Mapping[str, Spelling]:
    """Return all flags of the allow-list, with aliases and implied values."""
    table: dict[str, Spelling] = {}
    for parameter in all_parameters().values():
        plain = Spelling(parameter, True if parameter.switch else None)
        table |= dict.fromkeys((parameter.flag, *parameter.aliases), plain)
        table |= {flag: Spelling(parameter, value) for flag, value in parameter.implied.items()}
        table |= dict.fromkeys(parameter.negatives, Spelling(parameter, False))
    return table


def parse(text: str) -> RuntimeParameters:
    """Parse flags such as `--ctx-size 2048 -fa on --no-jinja --temp=0.7`.

    Raises PARAMETER_UNKNOWN for a flag that is not on the allow-list, and PARAMETER_INVALID for a value that is malformed, out of bounds,
    missing or given twice, or for parameters that contradict each other.
    """
    parameters = RuntimeParameters()
    spelt: dict[str, str] = {}
    found = _words(text)
    for word in found:
        flag = word.flag or word.text
        if (word.quoted and not word.flag) or not flag.startswith("-"):
            raise invalid(word.text, "", "is not a flag, and a flag is expected here; flags begin with '-'")
        spelling = spellings().get(flag)
        if spelling is None:
            raise unknown(flag)
        name = spelling.parameter.name
        if name in spelt:
            raise invalid(flag, "", f"is given twice: {_shown(spelt[name])} sets the same parameter")
        spelt[name] = flag
        if spelling.stands_for is None:
            value: bool | str = word.text if word.flag else _following(flag, found)
        elif word.flag:
            raise invalid(flag, word.text, "takes no value")
        else:
            value = spelling.stands_for
        if value not in spelling.parameter.absent:
            setattr(parameters, name, _typed(spelling.parameter, flag, value))
    check(parameters, spelt)
    return parameters


def check(parameters: RuntimeParameters, spelt: Mapping[str, str] | None = None) -> None:
    """Raise PARAMETER_INVALID if a value is out of bounds or contradicts another.

    `spelt` has the flag of each field as the caller spelt it; the error names the canonical flag of other fields.
    """
    names = {name: parameter.flag for name, parameter in all_parameters().items()} | dict(spelt or {})
    try:
        protovalidate.validate(parameters)
    except protovalidate.ValidationError as error:
        name = _field_at_fault(error)
        value = all_parameters()[name].value(getattr(parameters, name))
        more = _ZERO_CONTEXT if (name, value) == ("ctx_size", 0) else ""
        raise invalid(names[name], str(value), bounds(all_parameters()[name]) + more) from error
    for found in contradictions(parameters, names):
        raise invalid(names[found.name], found.value, found.problem)


def bounds(parameter: Parameter) -> str:
    """Return the bounds of a parameter's value for an error message: "must be 64 to 1048576"."""
    others = [*parameter.named, *sorted(parameter.absent)]
    return _bounds(parameter) + (f", or {' or '.join(others)}" if others else "")


def _bounds(parameter: Parameter) -> str:
    if parameter.words:
        return "must be one of " + ", ".join(parameter.words)
    if parameter.name in _TEXTS:
        return _TEXTS[parameter.name]
    rules = parameter.field.GetOptions().Extensions[validate_pb2.field]
    kind = rules.WhichOneof("type")
    if kind == "string":
        names = getattr(rules.string, "in")
        more = f" and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else ""
        return f"must be one of {', '.join(names[:MAX_SHOWN_NAMES])}{more}"
    rule = getattr(rules, kind) if kind else None
    low, high = _TYPE_RANGE.get(parameter.field.type, (0, 0))
    if rule is None:
        return f"must be {low} to {high}"
    if rule.HasField("gt"):
        return f"must be above {_number(rule.gt)}, at most {_number(rule.lte)}"
    return f"must be {_number(rule.gte if rule.HasField('gte') else low)} to {_number(rule.lte)}"


def _words(text: str) -> Iterator[Word]:
    if len(text) > MAX_LENGTH:
        raise invalid(text, "", f"is part of {len(text)} characters; at most {MAX_LENGTH} are read")
    try:
        yield from words(text)
    except WordError as error:
        raise invalid(error.word, "", error.problem) from error


def _following(flag: str, words: Iterator[Word]) -> str:
    word = next(words, None)
    if word is None:
        raise invalid(flag, "", "needs a value")
    if word.flag or word.may_be_flag:
        raise invalid(flag, word.flag or word.text, "needs a value, and a flag follows")
    return word.text


def _typed(parameter: Parameter, flag: str, value: bool | str) -> bool | int | float | str:
    if isinstance(value, bool):
        return value
    value = parameter.named.get(value, value)
    kind = parameter.field.type
    if kind == FieldDescriptor.TYPE_ENUM:
        if value not in parameter.words:
            raise invalid(flag, value, bounds(parameter))
        return parameter.words[value]
    if kind == FieldDescriptor.TYPE_STRING:
        return value
    if kind == FieldDescriptor.TYPE_DOUBLE:
        if not NUMBER.fullmatch(value):
            raise invalid(flag, value, f"is not a decimal number; it {bounds(parameter)}")
        return float(value) + 0.0  # -0.0 is 0.0
    if not _INTEGER.fullmatch(value):
        raise invalid(flag, value, f"is not a whole decimal number; it {bounds(parameter)}")
    low, high = _TYPE_RANGE[kind]
    if not low <= int(value) <= high:
        raise invalid(flag, value, bounds(parameter))
    return int(value)


def _field_at_fault(error: protovalidate.ValidationError) -> str:
    """Return the name of the first field that breaks a rule. All rules of RuntimeParameters are rules of fields."""
    path = error.violations[0].proto.field
    assert path is not None
    return path.elements[0].field_name


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _shown(text: str) -> str:
    """Return a caller's text for a message: shortened, and without control characters that a terminal or a log would interpret."""
    return (text if len(text) <= 64 else text[:61] + "...").encode("unicode_escape").decode()


def unknown(flag: str) -> MeshError:
    """Return PARAMETER_UNKNOWN for a flag: with the reason if llama-server has the flag, and with the nearest flag of the allow-list."""
    name = flag[:64].replace("_", "-")
    option = options().get(name) if name.startswith("--") else options().get(flag)
    near = _nearest(name, option)
    if option is None:
        message = f"{_shown(flag)} is not a parameter that a server may be given"
        hint = f"; did you mean {near}?" if near else ""
    else:
        message = f"{_shown(flag)} {_REFUSED[option.treatment]}: {option.reason}"
        hint = f"; use {near}" if near else ""
    metadata = {"parameter": _shown(flag)}
    metadata |= {"problem": option.reason} if option else {}
    metadata |= {"suggestion": near} if near else {}
    return MeshError(
        Reason.ERROR_REASON_PARAMETER_UNKNOWN,
        message + hint,
        metadata,
        (FieldViolation("runtime_params", message + hint),),
    )


def _nearest(flag: str, option: Option | None) -> str:
    if option is not None:
        return option.instead
    return nearest(flag, spellings())


_REFUSED = {
    Treatment.SET: "is set by llamesh",
    Treatment.REFUSED: "is not a parameter that a server may be given",
    Treatment.MEANINGLESS: "has no meaning here",
}


def invalid(flag: str, value: str, problem: str) -> MeshError:
    """Return PARAMETER_INVALID for a flag with this value."""
    shown = f"{_shown(flag)} {_shown(value)}".rstrip()
    message = f"{shown}: {problem}"
    return MeshError(
        Reason.ERROR_REASON_PARAMETER_INVALID,
        message,
        {"parameter": _shown(flag), "value": _shown(value), "problem": problem},
        (FieldViolation("runtime_params", message),),
    )
