# ruff: noqa: E501 - a table is read by its rows
"""Bodies that mean harm, made from the fields that llama.cpp reads on the paths of the inference port.

A family is one way to make one field costly, as a function of a size; `sizes` are those that the pinned llama.cpp (build 11549) was measured at
by `python -m benchmarks.request_costs`, the last of them costly or deadly for an engine that nobody protects. The fields come from llama.cpp's
server: server-schema.cpp, server-common.cpp, server-chat.cpp, json-schema-to-grammar.cpp and llama-grammar.cpp. Invariant: a body depends on
its family and size alone.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"
COUNT, COUNT_MESSAGES = "/v1/chat/completions/input_tokens", "/v1/messages/count_tokens"
PATHS = (COMPLETIONS, CHAT, RESPONSES, MESSAGES, EMBEDDINGS, RERANK, "/v1/reranking", COUNT, COUNT_MESSAGES)
MODEL = "wide.gguf"
"""The model that the bodies name."""
TOKENS = 4
"""Tokens of an answer, where a family does not need more."""

Body = dict[str, Any] | bytes


@dataclass(frozen=True)
class Family:
    """One way to make one field costly."""

    name: str
    path: str
    make: Callable[[int], Body]
    sizes: tuple[int, ...]

    def body(self, size: int, model: str = MODEL) -> bytes:
        """The body of a size, for a model."""
        made = self.make(size)
        if isinstance(made, bytes):
            return made.replace(b"{", b'{"model":' + json.dumps(model).encode() + b",", 1)
        return json.dumps({"model": model, **made}).encode()


def words(size: int) -> str:
    """Text of so many bytes that breaks into short words."""
    return ("the quick brown fox jumps over a lazy dog and " * (size // 46 + 1))[:size]


def names(count: int, length: int = 8) -> list[str]:
    """So many different words that begin in all ways."""
    chance = random.Random(count)
    return ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=length)) for _ in range(count)]


def completion(**fields: Any) -> Body:
    """A request for a completion."""
    return {"prompt": "Hello", "max_tokens": TOKENS, **fields}


def chat(**fields: Any) -> Body:
    """A request for a chat."""
    return {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": TOKENS, **fields}


def schema(value: Any, **fields: Any) -> Body:
    """A chat whose answer has a schema."""
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}}, **fields)


def pattern(value: str, **fields: Any) -> Body:
    """A chat whose answer matches a pattern."""
    return schema({"type": "string", "pattern": f"^{value}$"}, **fields)


def grammar(text: str, **fields: Any) -> Body:
    """A completion by a grammar."""
    return completion(grammar=text, **fields)


def lazy(kind: int, value: str) -> Body:
    """A completion with a grammar that a trigger starts."""
    return grammar('root ::= "a"', grammar_lazy=True, grammar_triggers=[{"type": kind, "value": value}])


def tool(index: int, parameters: Any, name: str = "") -> dict[str, Any]:
    """A tool that may be called."""
    return {"type": "function", "function": {"name": name or f"f{index}", "parameters": parameters}}


def properties(count: int, kind: Any = None, **more: Any) -> dict[str, Any]:
    """An object with so many properties, all optional unless `required` says otherwise."""
    return {"type": "object", "properties": {f"p{n}": kind or {"type": "string"} for n in range(count)}, **more}


def _wrapped(depth: int, wrap: Callable[[Any], Any], core: Any) -> Any:
    return functools.reduce(lambda inner, _: wrap(inner), range(depth), core)


def _references(depth: int, step: Callable[[dict[str, str]], Any], end: Any) -> dict[str, Any]:
    """A schema whose definitions lead from one to the next."""
    chain = {f"a{n}": step({"$ref": f"#/$defs/a{n + 1}"}) for n in range(depth)}
    return {"$ref": "#/$defs/a0", "$defs": {**chain, f"a{depth}": end}}


def _long_reference(depth: int) -> dict[str, Any]:
    key = "$" * 1000
    return {"$ref": "#/" + "/".join([key] * depth), **_wrapped(depth, lambda inner: {key: inner}, {"type": "null"})}


def _chained_rules(count: int, mark: str) -> str:
    """Rules without parentheses, each a repetition of the next."""
    rules = "".join(f"r{n} ::= r{n + 1}{mark}\n" for n in range(count))
    return f'root ::= r0{mark}\n{rules}r{count} ::= "a"{mark}'


def _raw(fields: str) -> bytes:
    return f'{{"prompt":"a","max_tokens":{TOKENS},{fields}}}'.encode()


_ODD = "$"
_ALLOF_CYCLE = {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}
_ALLOF_INNER = {"type": "object", "properties": {"x": {"allOf": [{"$ref": "#/$defs/a"}]}}}
_PALINDROME = {"anyOf": [{"type": "array", "items": [{"$ref": "#/$defs/r"}, {"const": end}]} for end in "ab"]}

# One row for each family.
# fmt: off
FAMILIES: tuple[Family, ...] = (
    # Samplers: one of each costs little; a chain of the same one, or much to look for, costs a scan of the vocabulary for each.
    Family("samplers dry", COMPLETIONS, lambda n: completion(samplers=["dry"] * n, dry_multiplier=1), (16, 100, 1000)),
    Family("samplers dry window", CHAT, lambda n: chat(samplers=["dry"] * n, dry_multiplier=1, dry_penalty_last_n=131072), (16, 100)),
    Family("samplers letters", COMPLETIONS, lambda n: completion(samplers="d" * n, dry_multiplier=1), (16, 1000)),
    Family("samplers penalties", COMPLETIONS, lambda n: completion(samplers=["penalties"] * n, repeat_penalty=1.1, repeat_last_n=131072), (16, 1000)),
    Family("breakers", COMPLETIONS, lambda n: completion(dry_multiplier=1, dry_sequence_breakers=names(n)), (4, 64, 10_000)),
    Family("breaker length", CHAT, lambda n: chat(dry_multiplier=1, dry_sequence_breakers=["a" * n]), (8, 40)),
    Family("dry window", COMPLETIONS, lambda n: completion(dry_multiplier=1, dry_penalty_last_n=n), (131_072, 2**31 - 1)),
    Family("penalty window", COMPLETIONS, lambda n: completion(repeat_penalty=1.1, repeat_last_n=n), (131_072, 2**31 - 1)),
    Family("n_probs", COMPLETIONS, lambda n: completion(n_probs=n, max_tokens=16), (20, 1000, 100_000)),
    Family("n_probs after sampling", COMPLETIONS, lambda n: completion(n_probs=n, post_sampling_probs=True), (20, 100_000)),
    Family("logprobs", COMPLETIONS, lambda n: completion(logprobs=n, max_tokens=16), (20, 40_000)),
    Family("top_logprobs", CHAT, lambda n: chat(logprobs=True, top_logprobs=n, max_tokens=16), (20, 100_000)),
    Family("bias list", COMPLETIONS, lambda n: completion(logit_bias=[[5, 1]] * n), (1024, 100_000)),
    Family("bias object", COMPLETIONS, lambda n: completion(logit_bias={str(k): 1 for k in range(n)}), (1024, 100_000)),
    Family("bias text", COMPLETIONS, lambda n: completion(logit_bias=[["a b c " * n, 1]] * 100), (10, 10_000)),
    Family("stop count", COMPLETIONS, lambda n: completion(stop=names(n), max_tokens=16), (64, 10_000)),
    Family("stop length", CHAT, lambda n: chat(stop=["a" * n], max_tokens=16), (256, 1_000_000)),
    Family("choices", COMPLETIONS, lambda n: completion(n=n), (4, 10_000)),
    Family("min_keep", COMPLETIONS, lambda n: completion(min_keep=n), (2**31 - 1,)),
    # Grammars.
    Family("grammar parentheses", COMPLETIONS, lambda n: grammar("root ::= " + "(" * n + '"a"' + ")" * n), (30, 30_000)),
    Family("grammar nested repetitions", COMPLETIONS, lambda n: grammar(f'root ::= a{{0,{n}}}\na ::= b{{0,{n}}}\nb ::= c{{0,{n}}}\nc ::= "a"{{0,{n}}}'), (2, 5)),
    Family("grammar two repetitions", COMPLETIONS, lambda n: grammar(f'root ::= a{{0,{n}}}\na ::= "a"{{0,{n}}}'), (5, 100)),
    Family("grammar stars of stars", COMPLETIONS, lambda n: grammar(_chained_rules(n, "*")), (3, 300)),
    Family("grammar optional letters", COMPLETIONS, lambda n: grammar("root ::= " + '"a"? ' * n), (10, 300)),
    Family("grammar optional words", COMPLETIONS, lambda n: grammar("root ::= " + "".join(f'"{w}"? ' for w in names(n, 3))), (10, 3000)),
    Family("grammar row of stars", COMPLETIONS, lambda n: grammar("root ::= " + "[a-z]* " * n), (5, 50)),
    Family("grammar ambiguous recursion", COMPLETIONS, lambda n: grammar("root ::= s\ns ::= [a-z ] | [a-z ] s | [a-z ] s s", max_tokens=n), (48,)),
    Family("grammar palindrome", COMPLETIONS, lambda n: grammar('root ::= r\nr ::= [a-z] r "a" | [a-z] r "b" | "y"', max_tokens=n), (48,)),
    Family("grammar class", COMPLETIONS, lambda n: grammar(f"root ::= [{'ab' * (n // 2)}]*"), (256, 100_000)),
    Family("grammar alternatives", COMPLETIONS, lambda n: grammar("root ::= " + " | ".join(f'"{w}"' for w in names(n))), (256, 10_000)),
    Family("grammar rules", COMPLETIONS, lambda n: grammar('root ::= "a"\n' + "".join(f'r{k} ::= "b"\n' for k in range(n))), (500, 30_000)),
    Family("grammar chain", COMPLETIONS, lambda n: grammar(_chained_rules(n, "")), (100, 30_000)),
    Family("grammar repeated literal", COMPLETIONS, lambda n: grammar(f'root ::= "{"a" * n}"{{2000}}'), (5, 4000)),
    Family("grammar length", COMPLETIONS, lambda n: grammar(f'root ::= "{"a" * n}"'), (10_000, 1_000_000)),
    Family("grammar left recursion", COMPLETIONS, lambda n: grammar('root ::= root "a" | "a"'), (1,)),
    Family("grammar alternatives alike", COMPLETIONS, lambda n: grammar("root ::= s*\ns ::= " + " | ".join(f'"-" "{w}"?' for w in names(n, 1))), (8, 100)),
    Family("trigger of no type", COMPLETIONS, lambda n: lazy(n, "x"), (99,)),
    Family("trigger parentheses", COMPLETIONS, lambda n: lazy(2, "(" * n + "a" + ")" * n), (30_000,)),
    Family("trigger length", COMPLETIONS, lambda n: lazy(2, "a" * n), (100_000,)),
    Family("trigger backtracks", COMPLETIONS, lambda n: lazy(2, "(([a-zA-Z ,.]+)+)+$!"), (1,)),
    # Patterns and schemas.
    Family("pattern nested repetitions", CHAT, lambda n: pattern("(" * n + "a{0,30}" + "){0,30}" * n), (0, 3)),
    Family("pattern nested small repetitions", CHAT, lambda n: pattern("(" * n + "a" + "){0,5}" * n), (2, 4)),
    Family("pattern optional letters", CHAT, lambda n: pattern("a?" * n), (10, 300)),
    Family("pattern row of stars", CHAT, lambda n: pattern("[a-z]*" * n), (5, 50)),
    Family("pattern stars of stars", CHAT, lambda n: pattern("(" * n + "[a-z]" + ")*" * n), (3, 90)),
    Family("pattern stars of alternatives", CHAT, lambda n: pattern("([a-z]|[a-z][a-z]|[a-z][a-z][a-z])*" * n), (1, 8)),
    Family("pattern alternatives", CHAT, lambda n: pattern("(" + "|".join(names(n)) + ")"), (100, 3000)),
    Family("pattern of each alternative", CHAT, lambda n: schema({"anyOf": [{"type": "string", "pattern": f"^{'-?' * 15}{k}$"} for k in range(n)]}, logit_bias=[['"', 50]]), (2, 120)),
    Family("pattern length", CHAT, lambda n: pattern("a" * n), (1000, 100_000)),
    Family("pattern odd characters", CHAT, lambda n: pattern(_ODD * n), (1000, 100_000)),
    Family("enum", CHAT, lambda n: schema({"enum": names(n)}), (128, 20_000)),
    Family("enum alike", CHAT, lambda n: schema({"enum": ["a" * 40 + w for w in names(n)]}), (128, 3000)),
    Family("enum length", CHAT, lambda n: schema({"enum": ["a" * n]}), (10_000, 300_000)),
    Family("const escapes", CHAT, lambda n: schema({"const": "\n" * n}), (10_000, 300_000)),
    Family("anyOf", CHAT, lambda n: schema({"anyOf": [{"const": w} for w in names(n)]}), (100, 3000)),
    Family("types", CHAT, lambda n: schema({"type": ["string"] * n}), (100, 3000)),
    Family("types nested", CHAT, lambda n: schema(_wrapped(n, lambda inner: {"type": ["array", "array"], "items": inner}, {"type": "string"})), (6, 18)),
    Family("allOf", CHAT, lambda n: schema({"allOf": [properties(1)] * n}), (100, 1000)),
    Family("allOf cycle", CHAT, lambda n: schema(_ALLOF_CYCLE), (1,)),
    Family("allOf cycle through a property", CHAT, lambda n: schema({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": _ALLOF_INNER}}), (1,)),
    Family("anyOf cycle", CHAT, lambda n: schema(_references(1, lambda ref: {"anyOf": [{"$ref": "#/$defs/a0"}, ref]}, {"type": "string"})), (1,)),
    Family("references twice", CHAT, lambda n: schema(_references(n, lambda ref: {"anyOf": [ref, ref]}, {"type": "string"})), (5, 60)),
    Family("references in line", CHAT, lambda n: schema(_references(n, lambda ref: ref, {"type": "string"})), (20, 3000)),
    Family("reference of odd keys", CHAT, lambda n: schema(_long_reference(n)), (30, 60)),
    Family("palindrome by tuples", CHAT, lambda n: schema({"$ref": "#/$defs/r", "$defs": {"r": {"anyOf": [*_PALINDROME["anyOf"], {"const": 1}]}}}, max_tokens=n), (48,)),
    Family("optional properties", CHAT, lambda n: schema(properties(n)), (128, 1000)),
    Family("required properties", CHAT, lambda n: schema(properties(n, required=[f"p{k}" for k in range(n)])), (200, 3000)),
    Family("additional properties", CHAT, lambda n: schema(properties(n, additionalProperties=True)), (100, 3000)),
    Family("property name", CHAT, lambda n: schema({"type": "object", "properties": {_ODD * n: {"type": "null"}}}), (256, 30_000)),
    Family("property names on the way", CHAT, lambda n: schema(_wrapped(n, lambda inner: {"type": "object", "properties": {"a" * 250: inner}}, {"type": "null"})), (20, 90)),
    Family("maxItems", CHAT, lambda n: schema({"type": "array", "items": {"type": "string"}, "maxItems": n}), (1000, 500_000)),
    Family("minItems", CHAT, lambda n: schema({"type": "array", "items": {"type": "string"}, "minItems": n}), (1000, 500_000)),
    Family("maxLength", CHAT, lambda n: schema({"type": "string", "maxLength": n}), (2000, 500_000)),
    Family("items nested", CHAT, lambda n: schema(_wrapped(n, lambda inner: {"type": "array", "items": inner}, {"type": "null"})), (30, 90)),
    Family("integers", CHAT, lambda n: schema(properties(n, {"type": "integer", "minimum": -(10**18), "maximum": 10**18}, required=[f"p{k}" for k in range(n)])), (200, 3000)),
    Family("json_schema", COMPLETIONS, lambda n: completion(json_schema={"enum": names(n)}), (128, 20_000)),
    # Tools: the same schemas by another way, once for each tool.
    Family("tools", CHAT, lambda n: chat(tools=[tool(k, properties(1)) for k in range(n)], tool_choice="required"), (50, 3000)),
    Family("tools offered", CHAT, lambda n: chat(tools=[tool(k, properties(1)) for k in range(n)]), (50, 3000)),
    Family("tool properties", CHAT, lambda n: chat(tools=[tool(0, properties(n))], tool_choice="required"), (100, 1000)),
    Family("tool enum", CHAT, lambda n: chat(tools=[tool(0, properties(1, {"enum": names(n)}, required=["p0"]))], tool_choice="required"), (100, 3000)),
    Family("tool maxItems", CHAT, lambda n: chat(tools=[tool(0, properties(1, {"type": "array", "items": {"type": "null"}, "maxItems": n}))], tool_choice="required"), (1000, 500_000)),
    Family("tool pattern", CHAT, lambda n: chat(tools=[tool(0, properties(1, {"type": "string", "pattern": f"^{'[a-z]*' * n}$"}, required=["p0"]))], tool_choice="required"), (5, 50)),
    Family("tool name", CHAT, lambda n: chat(tools=[tool(0, properties(1), _ODD * n)], tool_choice="required"), (64, 100_000)),
    Family("tool of messages", MESSAGES, lambda n: {"max_tokens": TOKENS, "messages": [{"role": "user", "content": "a"}], "tool_choice": {"type": "any"}, "tools": [{"name": "f", "input_schema": properties(n)}]}, (100, 1000)),
    Family("tool of responses", RESPONSES, lambda n: {"max_output_tokens": TOKENS, "input": "a", "tool_choice": "required", "tools": [{"type": "function", "name": "f", "parameters": properties(n)}]}, (100, 1000)),
    # Prompts, messages and templates.
    Family("prompts", COMPLETIONS, lambda n: completion(prompt=["a"] * n), (16, 1500)),
    Family("prompts by a grammar", COMPLETIONS, lambda n: grammar("root ::= " + " | ".join(f'"{w}"' for w in names(100)), prompt=["a"] * n), (16, 1000)),
    Family("prompt of tokens", COMPLETIONS, lambda n: completion(prompt=[5] * n), (1000, 1_000_000)),
    Family("prompt unbroken", COMPLETIONS, lambda n: completion(prompt="a" * n), (1000, 400_000)),
    Family("prompt of spaces", COMPLETIONS, lambda n: completion(prompt=" " * n), (1000, 400_000)),
    Family("prompt of special tokens", COUNT, lambda n: chat(messages=[{"role": "user", "content": "<|im_end|>" * n}]), (1000, 100_000)),
    Family("count of a long text", COUNT_MESSAGES, lambda n: {"messages": [{"role": "user", "content": words(n)}]}, (10_000, 4_000_000)),
    Family("messages", CHAT, lambda n: chat(messages=[{"role": "user", "content": "a"}] * n), (100, 30_000)),
    Family("content parts", CHAT, lambda n: chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * n}]), (100, 100_000)),
    Family("keys of a message", CHAT, lambda n: chat(messages=[{"role": "user", "content": "a", **dict.fromkeys(names(n), 0)}]), (100, 100_000)),
    Family("tool calls", CHAT, lambda n: chat(messages=[{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}] * n}, {"role": "user", "content": "a"}]), (50, 10_000)),
    Family("arguments nested", CHAT, lambda n: chat(messages=[{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" * n + "]" * n}}]}, {"role": "user", "content": "a"}]), (50, 100_000)),
    Family("arguments nested in objects", CHAT, lambda n: chat(messages=[{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":' * n + "0" + "} " * n}}]}, {"role": "user", "content": "a"}]), (50, 30_000)),
    Family("arguments of responses", RESPONSES, lambda n: {"max_output_tokens": TOKENS, "input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":' * n + "0" + "} " * n}, {"role": "user", "content": "a"}]}, (50, 30_000)),
    Family("template arguments", CHAT, lambda n: chat(chat_template_kwargs={f"k{k}": k for k in range(n)}), (50, 50_000)),
    Family("template argument", CHAT, lambda n: chat(chat_template_kwargs={"k": "a" * n}), (10_000, 1_000_000)),
    Family("reasoning tags", COMPLETIONS, lambda n: completion(reasoning_budget_start_tag="a", reasoning_budget_end_tags=names(n), reasoning_budget_tokens=1), (16, 10_000)),
    Family("reasoning message", COMPLETIONS, lambda n: completion(reasoning_budget_start_tag="a", reasoning_budget_end_tag="b", reasoning_budget_message="a " * n, reasoning_budget_tokens=1), (100, 100_000)),
    Family("items of responses", RESPONSES, lambda n: {"max_output_tokens": TOKENS, "input": [{"role": "user", "content": "a"}] * n}, (100, 30_000)),
    Family("merged items of responses", RESPONSES, lambda n: {"max_output_tokens": TOKENS, "input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}] * n + [{"role": "user", "content": "a"}]}, (50, 10_000)),
    Family("blocks of messages", MESSAGES, lambda n: {"max_tokens": TOKENS, "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "a"}] * n}]}, (50, 30_000)),
    Family("inputs", EMBEDDINGS, lambda n: {"input": ["a"] * n}, (100, 20_000)),
    Family("long inputs", EMBEDDINGS, lambda n: {"input": [words(n)] * 16}, (1000, 400_000)),
    Family("inputs of tokens", EMBEDDINGS, lambda n: {"input": [[5] * n] * 16}, (1000, 200_000)),
    Family("documents", RERANK, lambda n: {"query": words(1000), "documents": ["a"] * n}, (100, 20_000)),
    # The body itself.
    Family("keys", COMPLETIONS, lambda n: completion(**{f"x{k}": 0 for k in range(n)}), (500, 100_000)),
    Family("keys of an unknown field", COMPLETIONS, lambda n: completion(x={f"x{k}": 0 for k in range(n)}), (500, 1_000_000)),
    Family("values", COMPLETIONS, lambda n: completion(x=[0] * n), (10_000, 3_000_000)),
    Family("nesting", COMPLETIONS, lambda n: _raw('"x":' + "[" * n + "]" * n), (50, 1_000_000)),
    Family("fields of the answer", COMPLETIONS, lambda n: completion(response_fields=["a/b"] * n), (100, 100_000)),
    Family("long number", COMPLETIONS, lambda n: _raw('"x":' + "1" * n), (1000, 1_000_000)),
    Family("number beyond its type", COMPLETIONS, lambda n: _raw(f'"top_k":1e{n}'), (999,)),
    Family("numbers at their ends", COMPLETIONS, lambda n: _raw(f'"temperature":1e{n},"top_k":-2147483648,"seed":-1,"min_p":-1,"dynatemp_exponent":-1e30,"typical_p":0'), (38,)),
    Family("bytes that are no text", CHAT, lambda n: b'{"messages":[{"role":"user","content":"' + b"\xff\xfe\xf0" * n + b'"}],"max_tokens":2}', (1,)),
    Family("half a surrogate pair", CHAT, lambda n: b'{"messages":[{"role":"user","content":"' + b"\\ud800" * n + b'"}],"max_tokens":2}', (1,)),
    Family("tokens that are none", COMPLETIONS, lambda n: completion(prompt=[-n, 2**40, n]), (2, 2**31 - 1)),
)
# fmt: on
