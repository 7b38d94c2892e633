"""A public class has a name of its own, and the name of a bound begins with MAX_ or MIN_. Exceptions are those of today and only shrink."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

from tests.unit.house import name_of, product_files

SHARED: dict[str, set[str]] = {
    # The same thing on both sides, which do not import each other.
    "FieldViolation": {"llamesh/client/errors.py", "llamesh/kit/errors.py"},
    "MeshError": {"llamesh/client/errors.py", "llamesh/kit/errors.py"},
    # To be told apart.
    "Liveness": {"controller/runtimes/__init__.py", "llamesh/cli/mesh/liveness.py"},
}

BOUNDS = {
    r"(Maximum|Largest|Longest|Most|Highest)\b": ("MAX_", "_MAX_"),
    r"(Minimum|Smallest|Shortest|Least|Lowest)\b": ("MIN_", "_MIN_"),
}
"""How the docstring of a constant begins that is a bound, and how its name begins."""
BOUNDS_CHECKED_IN = ("llamesh/", "services/", "controller/", "engine/")


def shared_classes(sources: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Public classes that several modules define, and these modules."""
    places: dict[str, set[str]] = defaultdict(set)
    for name, source in sources:
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].add(name)
    return {name: modules for name, modules in places.items() if len(modules) > 1}


def test_public_classes_have_names_of_their_own() -> None:
    files = (path for path in product_files(".py") if not name_of(path).startswith(("benchmarks/", "tools/")))
    found = shared_classes((name_of(path), path.read_text(encoding="utf-8")) for path in files)
    assert {name: modules for name, modules in found.items() if modules != SHARED.get(name)} == {}
    assert SHARED.keys() - found.keys() == set(), "shared no longer: remove the entry"


def test_a_shared_name_is_found() -> None:
    assert shared_classes(
        [("a.py", "class Models: ..."), ("b.py", "class Models: ..."), ("c.py", "class Other: ...")]
    ) == {"Models": {"a.py", "b.py"}}


def misnamed_bounds(source: str) -> Iterator[str]:
    """Module constants whose docstring calls them a bound, and whose name does not."""
    for node, after in pairwise(ast.parse(source).body):
        if not isinstance(after, ast.Expr) or not isinstance(after.value, ast.Constant):
            continue
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            for beginning, prefixes in BOUNDS.items():
                if re.match(beginning, str(after.value.value)) and not ast.unparse(target).startswith(prefixes):
                    yield ast.unparse(target)


def test_the_name_of_a_bound_says_so() -> None:
    files = (path for path in product_files(".py") if name_of(path).startswith(BOUNDS_CHECKED_IN))
    found = {name_of(path): list(misnamed_bounds(path.read_text(encoding="utf-8"))) for path in files}
    assert {name: constants for name, constants in found.items() if constants} == {}


def test_a_misnamed_bound_is_found() -> None:
    documented = '''
LEAST = 1
"""Minimum width."""
_LONGEST: float = 2
"""Longest wait in seconds."""
MAX_LENGTH = 3
"""Largest length."""
_MIN_LENGTH = 4
"""Minimum length."""
OTHER = 5
"""Interval in seconds."""
'''
    assert list(misnamed_bounds(documented)) == ["LEAST", "_LONGEST"]
