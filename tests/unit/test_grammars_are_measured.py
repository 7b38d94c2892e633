"""Which grammars and patterns the front door lets through: those with one way to go on, not those that must be read in many."""

from __future__ import annotations

import json

import pytest
from lupa.luajit21 import LuaRuntime

from controller.xds import scripts

_READ = b"""
function(request_limits)
  return function(text)
    local said, problem = request_limits.read('/v1/completions', text)
    return said and "passes" or problem.name or problem.code
  end
end
"""
_lua = LuaRuntime(encoding=None)
_lua.execute(scripts.limits_modules({}).encode())
_read = _lua.eval(_READ)(_lua.eval(b"require('request_limits')"))


def grammar(text: str) -> str:
    """The limit that refuses a grammar, or that it passes."""
    return str(_read(json.dumps({"grammar": text}).encode()).decode())


def pattern(text: str) -> str:
    """The same for a pattern of a schema."""
    return str(_read(json.dumps({"json_schema": {"type": "string", "pattern": text}}).encode()).decode())


@pytest.mark.parametrize(
    "text",
    [
        r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-((?:0|[1-9]\d*|\d*[a-z-][0-9a-z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-z-][0-9a-z-]*))*))?$",
        r"^https?:\/\/(www\.)?[-a-zA-Z0-9@:%._\+~#=]{1,256}\.[a-zA-Z0-9()]{1,6}\b([-a-zA-Z0-9()@:%_\+.~#?&//=]*)$",
        r"^((25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)\.){3}(25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)$",
        r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$",
        r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$",
        r"^([a-z]+,)*[a-z]+$",
        r"^[A-Za-z0-9 ,.!?]{1,200}$",
        r"^\+?[1-9]\d{1,14}$",
        r"^(red|green|blue)( (light|dark))?$",
        "^" + "abc-" * 100 + "$",
        ".*",
        "",
        "^[",
        "^(",
        "*",
        "^\\$",
    ],
)
def test_usual_patterns_pass(text: str) -> None:
    assert pattern(text) == "passes"


@pytest.mark.parametrize(
    "text",
    [
        "^((a{0,30}){0,30})$",
        "^(((a{0,6}){0,6}){0,6})$",
        "^((((a+)+)+)+)$",
        r"^(\w+\s?)+$",
        "^([a-z]?){40}$",
        "^" + "[a-z]*" * 20 + "$",
        "^" + "a?" * 100 + "$",
        "^" + "a?a" * 50 + "$",
        "^(a|a?)(a|a?)" + "(a?|a)" * 30 + "$",
        "^(?:(?:a{0,30}){0,30})$",
        "^((\\u0061{0,30}){0,30})$",
        "^((\\x61{0,30}){0,30})$",
        "^(([ab]{0,30}){0,30})$",
        "^((.{0,30}){0,30})$",
        "^(([^b]{0,30}){0,30})$",
    ],
)
def test_patterns_that_divide_a_text_in_many_ways_do_not(text: str) -> None:
    assert pattern(text) == "grammar.ways"


@pytest.mark.parametrize(
    "braces",
    [
        "{0x,30x}",
        "{+0,+30}",
        "{-1,30}",
        "{0,30abc}",
        "{0\n,30}",
        "{0,\t30}",
        "{1,2,3}",
        "{}",
        "{,}",
        "{3 0}",
        "{",
        "{1,2",
    ],
)
def test_a_repetition_that_the_engine_may_read_differently_is_refused(braces: str) -> None:
    assert pattern(f"^a{braces}$") == "invalid_value"
    assert grammar(f"root ::= [a]{braces}") == "invalid_value"


COSTLY = "(([ a]{0,44}){0,44})"


@pytest.mark.parametrize(
    "text",
    [
        f"root ::= {COSTLY}",
        f'# a ::= "\nroot ::= {COSTLY}\n# "\n',
        f"root ::= x # c\rx ::= {COSTLY}\n",
        f"root ::= x # c\r\nx # d\n::= {COSTLY}",
        "root ::= ((([ a]{#\n0,44}){0 #\r,44}){#\n0,1})",
        f'root ::= "\\"#" [#"\\]#] {COSTLY}',
        f"root ::= x #[\nx ::= {COSTLY} #]",
    ],
)
def test_comments_hide_nothing(text: str) -> None:
    assert grammar(text) in ("grammar.ways", "invalid_value")


def test_a_comment_costs_nothing() -> None:
    assert grammar(f'root ::= "#" [#] # {COSTLY}\n#{COSTLY}') == "passes"


def test_quoted_and_escaped_braces_are_text() -> None:
    assert pattern(r"^\{[a-z]{1,5}\}[{}]$") == "passes"
    assert grammar('root ::= "{" [{}] "}"') == "passes"


ARITHMETIC = """
root  ::= (expr "=" ws term "\\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \\t\\n]*
"""


@pytest.mark.parametrize(
    "text",
    [
        ARITHMETIC,
        'root ::= "yes" | "no"',
        'root ::= item+\nitem ::= "- " [^\\n]+ "\\n"',
        'root ::= list\nlist ::= "[" (value ("," value)*)? "]"\nvalue ::= list | [0-9]+ | "\\"" [^"]* "\\""',
        'root ::= node\nnode ::= "<" name ">" node* "</" name ">"\nname ::= [a-z]+',
        "root ::= [0-9]{1,6} # comment ( [ {",
        'root ::= ("if " | "import " | "in " | "else ")*',
        "root ::= (word [ ])*\nword ::= "
        + " | ".join(
            f'"{word}"' for word in ["a", "an", "and", "any", "as", "at", "be", "been", "by", "in", "into", "is", "it"]
        ),
        "root ::= japanese+\njapanese ::= [ぁ-ゟ] | [ァ-ヿ] | [、-〾] | [一-龯]",
        "root ::= right\nright ::= [a-z] | [a-z] right",
        "root ::=\n  [a]\n  [b]\n",
        "",
        "root",
        "root ::=",
        'root ::= "unclosed',
        "root ::= [unclosed",
        "root ::= (unclosed",
        "root ::= unknown",
    ],
)
def test_usual_grammars_pass(text: str) -> None:
    assert grammar(text) == "passes"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ('root ::= r\nr ::= "x" r "a" | "x" r "b" | "y"', "grammar.branches"),
        ("root ::= s\ns ::= [a-z ] | [a-z ] s | [a-z ] s s", "grammar.branches"),
        ('root ::= s\ns ::= "a" s*', "grammar."),
        ('root ::= s\ns ::= "a" s* "a" | "b"', "grammar."),
        ('root ::= s\ns ::= "a" (s s)?', "grammar.branches"),
        ('root ::= a\na ::= "x" b "1" | "y"\nb ::= "x" a "2" | "x" a "3"', "grammar.branches"),
        ('root ::= s\ns ::= (("a" s "b") | ("a" s "c"))?', "grammar.branches"),
        ('root ::= a{0,5}\na ::= b{0,5}\nb ::= c{0,5}\nc ::= "a"{0,5}', "grammar.ways"),
        ('root ::= "a"? ' + '"a"? ' * 40, "grammar.ways"),
        ("root ::= " + '"-"? ' * 16, "grammar.ways"),
        ('root ::= ("-" | "--" | "---")*', "grammar.ways"),
        ('root ::= ("-" | "-")* "x"', "grammar.ways"),
        ('root ::= ([a-z] | [a-z])* "1"', "grammar.ways"),
        ("root ::= ([a-z] [a-z] | [a-z] [a-z])*", "grammar.ways"),
        ("root ::= s*\ns ::= " + " | ".join(f'"-" "{chr(97 + n)}"?' for n in range(20)), "grammar.ways"),
        ('root ::= a{0,5}\na ::= "-"{0,5}', "grammar.ways"),
        ("root ::= " + '"-"* ' * 16, "grammar.ways"),
        ("root ::= r0\n" + "".join(f"r{n} ::= [a] r{n + 1} | [b] r{n + 1} | r{n + 1}\n" for n in range(200)), "grammar."),
        ("root ::= r0\n" + "".join(f"r{n} ::= r{n + 1} | r{n + 1}\n" for n in range(30)) + 'r30 ::= "a"', "grammar."),
        ('root ::= "' + "a" * 4000 + '"{2000}', "grammar.repetitions"),
        ("root ::= " + "(" * 60 + "[a]" + ")" * 60, "grammar.depth"),
    ],
)  # fmt: skip
def test_grammars_that_branch_do_not(text: str, limit: str) -> None:
    assert grammar(text).startswith(limit)


def test_a_schema_that_leads_back_in_two_ways_does_not() -> None:
    def schema(*alternatives: object) -> str:
        both = {"$ref": "#/$defs/r", "$defs": {"r": {"anyOf": [*alternatives, {"const": "end"}]}}}
        return str(_read(json.dumps({"json_schema": both}).encode()).decode())

    again = {"$ref": "#/$defs/r"}

    def node(kind: str, **more: object) -> dict[str, object]:
        properties = {"kind": {"const": kind}, **more}
        return {"type": "object", "properties": properties, "required": list(properties)}

    assert schema(node("sum", left=again, right=again), node("minus", of=again)) == "passes"
    assert schema({"type": "array", "items": again}, node("minus", of=again)) == "passes"
    tuples = [{"type": "array", "prefixItems": [again, {"const": end}]} for end in "ab"]
    assert schema(*tuples) == "grammar.branches"
    assert schema(node("same", of=again), node("same", of=again, more=again)) == "grammar.branches"
    assert schema(
        {"properties": {"of": again}, "required": ["of"]}, {"properties": {"of": again}, "required": ["of"]}
    ) == ("grammar.branches")


def schema_of(written: object) -> str:
    """The limit that refuses a schema, or that it passes."""
    return str(_read(json.dumps({"json_schema": written}).encode()).decode())


PATTERN = "-".join(["(" * 30 + "a" + "".join(f"|{letter})" for letter in "bcdefghijklmnopqrstuvwxyzABCDE")] * 8)
"""The longest work that a pattern of 1 KB was found to make."""


@pytest.mark.parametrize(
    "types", [["string", "string"], [["string"] * 3], ["string", 1], ["strings"], ["object", None]], ids=str
)
def test_a_list_of_types_is_of_different_names(types: list[object]) -> None:
    assert schema_of({"type": types, "pattern": PATTERN, "maxLength": 1900}) == "invalid_value"


def test_the_work_of_the_front_door_for_patterns_is_bounded_however_they_are_reached() -> None:
    many = [{"$ref": "#/l/" + "0" * n} for n in range(1, 200)]
    assert (
        schema_of({"type": "array", "items": many, "l": [{"type": "string", "pattern": PATTERN}]}) == "schema.patterns"
    )
    properties = {f"p{n}": {"type": "string", "pattern": PATTERN} for n in range(240)}
    assert schema_of({"type": "object", "properties": properties, "required": list(properties)}) == "schema.patterns"


@pytest.mark.parametrize(
    "values",
    [[f"{a}{b}" for a in "ABCDEFGHIJ" for b in "KLMNOPQRSTUVWXYZABCDEFGH"], [f"{n:03d} category" for n in range(100)]],
)
def test_long_enums_of_different_words_pass(values: list[str]) -> None:
    assert schema_of({"type": "string", "enum": values}) == "passes"


def test_long_enums_of_words_that_begin_alike_do_not() -> None:
    assert schema_of({"type": "string", "enum": [f"same beginning {n}" for n in range(65)]}) == "schema.alternatives"


@pytest.mark.parametrize(
    "written",
    [
        {"type": "array", "items": {}, "minItems": 5, "maxItems": 3},
        {"type": "string", "minLength": 2, "maxLength": 1},
        {"type": "string", "pattern": "^a{5,3}$"},
        {"type": ["null", "array"], "items": {}, "minItems": 1, "maxItems": 0},
        {"type": "string", "minLength": -4294967291, "maxLength": 3},
        {"type": "string", "maxLength": -4294965296},
        {"type": "string", "maxLength": 4294967301},
        {"type": "array", "items": {}, "maxItems": "3"},
        {"type": "array", "items": {}, "minItems": 1.5},
        {"type": "array", "items": {}, "minItems": None},
    ],
    ids=str,
)
def test_a_repetition_that_ends_before_it_begins_is_refused(written: object) -> None:
    assert schema_of(written) == "invalid_value"


@pytest.mark.parametrize(
    "text",
    [
        'root ::= e root "b" | "a"\ne ::= f\nf ::= ""',
        'root ::= ("x"?) root "b" | "a"',
        "root ::= root",
        'root ::= a "x"\na ::= b?\nb ::= root',
        'root ::= (e [x]?)*\ne ::= f\nf ::= ""',
        "root ::= e+\ne ::= f\nf ::= [x]*",
        "root ::= ([x]? [y]*){2,}",
        'root ::= "a" loop\nloop ::= (("" | [b]?) loop) | "c"',
    ],
)
def test_a_grammar_that_goes_on_without_reading_is_refused(text: str) -> None:
    assert grammar(text) in ("invalid_value", "grammar.ways", "grammar.branches")


@pytest.mark.parametrize("text", ["^((|a))*$", "^(()){3,}$", "^((a?))+$", "^(a*)*$", "^(|(|))*$", "^(([a-z]+)*)*$"])
def test_a_pattern_that_goes_on_without_reading_is_refused(text: str) -> None:
    assert pattern(text) in ("invalid_value", "grammar.ways")


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "(" root ")" | ""',
        'root ::= item (ws "," ws item)* ws\nitem ::= [a-z] [a-z]*\nws ::= " "?',
        'root ::= "a" root | "b"',
        'root ::= [a]? "x" root? "y"',
    ],
)
def test_recursion_behind_a_character_passes(text: str) -> None:
    assert grammar(text) == "passes"


def test_a_reference_of_a_part_counts_despite_keywords_beside_it() -> None:
    stuck = {"type": "string", "pattern": "^((((a{0,30}){0,30}){0,30}){0,30})$"}
    hidden = {"type": "object", "properties": {"p0": stuck}}
    assert schema_of({"allOf": [{"$ref": "#/x", "anyOf": [{}]}], "x": hidden}) == "grammar.ways"
    assert schema_of({"allOf": [{"$ref": "#/x", "oneOf": False}], "x": hidden}) == "grammar.ways"


def test_parts_in_each_other_count_as_often_as_they_are_built() -> None:
    schema: dict[str, object] = {"type": "object"}
    for _ in range(20):
        schema = {"type": ["object", "string"], "allOf": [schema]}
    assert schema_of(schema).startswith("schema.")


def test_parts_that_inherit_from_parts_pass() -> None:
    base = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
    named = {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"name": {"type": "string"}}}]}
    assert schema_of({"allOf": [{"$ref": "#/$defs/named"}], "$defs": {"base": base, "named": named}}) == "passes"


@pytest.mark.parametrize(
    "reference", ["#/l/-0", "#/l/+0", "#/l/ 0", "#/l/0x", "#/l/-18446744073709551615", "#/nowhere", "#/l/9"]
)
def test_a_reference_is_read_in_one_way_or_not_at_all(reference: str) -> None:
    assert schema_of({"$ref": reference, "l": [{"type": "string"}, {"type": "string"}]}) == "invalid_value"


def test_references_to_parts_of_a_list_pass() -> None:
    assert schema_of({"$ref": "#/l/1", "l": [{"type": "string"}, {"type": "string"}]}) == "passes"


def test_parts_bring_no_more_properties_together_than_an_object_may_have() -> None:
    many = {"type": "object", "properties": {f"p{n}": {} for n in range(200)}}
    assert schema_of({"allOf": [{"$ref": "#/x"}] * 100, "x": many}) in ("schema.properties", "schema.optional")


def test_a_long_enum_of_numbers_passes() -> None:
    assert schema_of({"enum": list(range(200))}) == "passes"


@pytest.mark.parametrize("text", [r"^((aa\.{0,999}){0,999}c{400})$", '^((aa"{0,999}){0,999}c{400})$'])
def test_a_repetition_after_an_escaped_character_repeats_the_whole_literal(text: str) -> None:
    assert pattern(text) in ("grammar.ways", "grammar.repetitions")


def test_a_literal_that_an_escape_makes_long_counts_with_its_length() -> None:
    assert pattern("^" + "a" * 100 + r"\.{500}$") == "grammar.repetitions"
    assert pattern("^" + "a" * 100 + r"\.{5}$") == "passes"


def _levels(width: int, depth: int) -> dict[str, object]:
    """Objects that are one of so many equal objects, whose property is one of so many, and so on."""
    schema: dict[str, object] = {"$ref": "#/l0", f"l{depth}": {"type": "object"}}
    for level in range(depth):
        member = {"type": "object", "properties": {"a": {"$ref": f"#/l{level + 1}"}}, "required": ["a"]}
        schema[f"l{level}"] = {"anyOf": [member] * width}
    return schema


@pytest.mark.parametrize(("width", "depth"), [(20, 4), (12, 8), (6, 3), (6, 10)])
def test_alternatives_that_begin_alike_multiply_with_those_inside_them(width: int, depth: int) -> None:
    assert schema_of(_levels(width, depth)) == "schema.ways"


def test_unions_that_differ_at_their_beginning_do_not_multiply() -> None:
    inner: dict[str, object] = {"type": "string"}
    for _ in range(8):
        member = {"type": "object", "properties": {"kind": {"const": "a"}, "of": inner}, "required": ["kind", "of"]}
        inner = {"anyOf": [member, {"type": "null"}, {"type": "string"}]}
    assert schema_of(inner) == "passes"
