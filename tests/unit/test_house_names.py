"""A public class has one meaning: its name is used once in the product. Exceptions are those of today and only shrink."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable

from tests.unit.house import name_of, product_files

SHARED: dict[str, set[str]] = {
    # The same thing on both sides, which do not import each other.
    "FieldViolation": {"llamesh/client/errors.py", "llamesh/kit/errors.py"},
    "MeshError": {"llamesh/client/errors.py", "llamesh/kit/errors.py"},
    # To be told apart.
    "Liveness": {"controller/runtimes/__init__.py", "llamesh/cli/mesh/liveness.py"},
}


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
