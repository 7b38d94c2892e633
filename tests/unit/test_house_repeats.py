"""No code is written twice: neither runs of equal lines nor functions with the same body.

pylint's checker for this is under the GPL and jscpd needs Node, so this is a small one of our own (docs/adr/0007-libraries.md).
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.unit.house import name_of, product_files

RUN = 6
"""Equal lines of code in a row that count as repetition; comments, docstrings and imports are no code."""

BODY = 110
"""Functions are compared if the dump of their syntax tree has at least so many characters; shorter ones are mere delegation."""

DELEGATES = frozenset({"start", "close", "__init__"})
"""Functions whose bodies may be alike: they hand on to the tasks and channels of their object."""

RUNS = {
    frozenset({"llamesh/client/transport.py"}),
}
"""Files that share lines today. The list only shrinks."""

FUNCTIONS = {
    frozenset({"engine/demo.py::_sha256", "llamesh/kit/objects/directory.py::_digest"}),
}
"""Functions that are alike today. The list only shrinks."""

LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source: str) -> list[str]:
    """Lines of code with their spelling made uniform."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) or is_docstring(node):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))  # type: ignore[attr-defined]
    found: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT and token.start[0] not in skipped:
            found[token.start[0]].append(token.string)
    return [" ".join(found[number]) for number in sorted(found)]


def is_docstring(node: ast.AST) -> bool:
    """Whether a node is a string that stands by itself."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def repeated_runs(sources: Iterable[tuple[str, str]]) -> set[frozenset[str]]:
    """Sets of files that share a run of lines; a file that repeats itself is a set of one."""
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, source in sources:
        code = code_lines(source)
        for start in range(len(code) - RUN + 1):
            run = tuple(code[start : start + RUN])
            # Lines such as `)` alone say nothing.
            if sum(len(line) > 3 for line in run) > RUN // 2:
                places[run].append(name)
    return {frozenset(names) for names in places.values() if len(names) > 1}


def repeated_functions(sources: Iterable[tuple[str, str]]) -> set[frozenset[str]]:
    """Sets of functions with the same body, as `path::name`."""
    places: dict[str, set[str]] = defaultdict(set)
    for name, source in sources:
        for function, body in bodies(source):
            if len(body) >= BODY:
                places[body].add(f"{name}::{function}")
    return {frozenset(names) for names in places.values() if len(names) > 1}


def bodies(source: str) -> Iterator[tuple[str, str]]:
    """Each function and its syntax tree, without docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in DELEGATES:
            rest = node.body[1:] if is_docstring(node.body[0]) else node.body
            yield node.name, "".join(ast.dump(statement) for statement in rest)


def sources() -> list[tuple[str, str]]:
    """The product's Python modules."""
    return [(name_of(path), path.read_text(encoding="utf-8")) for path in product_files(".py") if is_product(path)]


def is_product(path: Path) -> bool:
    """Benchmarks stand beside the product and repeat parts of it on purpose."""
    return not name_of(path).startswith("benchmarks/")


def test_no_lines_are_repeated() -> None:
    found = repeated_runs(sources())
    assert found - RUNS == set()
    assert RUNS - found == set(), "repeated no longer: remove the entry"


def test_no_function_is_written_twice() -> None:
    found = repeated_functions(sources())
    assert found - FUNCTIONS == set()
    assert FUNCTIONS - found == set(), "repeated no longer: remove the entry"


def test_a_repetition_is_found() -> None:
    run = "\n".join(f"value_{number} = work({number})" for number in range(RUN))
    assert repeated_runs([("a.py", run), ("b.py", f'"""Doc."""\n{run}  # why\n'), ("c.py", "x = 1")]) == {
        frozenset({"a.py", "b.py"})
    }
    function = f'def one(text: str) -> str:\n    """Doc."""\n    return {"text.strip().lower()." * 3}title()\n'
    assert repeated_functions([("a.py", function), ("b.py", function.replace("one", "two"))]) == {
        frozenset({"a.py::one", "b.py::two"})
    }
