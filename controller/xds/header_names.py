"""Which headers of a client get past the front door of inference, as the regular expression of all others.

Engines and the waker take 8 KB of a header, and a client behind a proxy may have longer cookies: what is not needed is removed before
anything looks at it. Envoy removes what matches, so the allow-list is written as its complement.

Invariant: names that begin with x-llamesh- or x-envoy- are not among those that pass: only the mesh may say what they say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

PASSED = (
    *("authorization", "x-api-key", "origin", "access-control-request-method", "access-control-request-headers"),
    *("content-type", "content-encoding", "content-length", "transfer-encoding", "expect"),
)
"""What Envoy and its filters read. Those that no engine needs are removed on the route: envoy/routes/inference.yaml."""


def all_but(names: Iterable[str]) -> str:
    """A regular expression (RE2) for every header name but these, in lower case, and those of HTTP/2 that begin with a colon."""
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for letter in name:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _other_than(tree, not_first=":")


def _other_than(tree: dict[str, Any], not_first: str = "") -> str:
    """What follows a beginning that `tree` has, if the whole is none of its names."""
    letters = [letter for letter in tree if letter]
    others = "".join(map(re.escape, letters)) + not_first
    branches = [f"[^{others}].*" if others else ".+"]
    branches += [re.escape(letter) + _other_than(tree[letter]) for letter in letters]
    optional = "" if "" in tree else "?"
    return f"(?:{'|'.join(branches)}){optional}"
