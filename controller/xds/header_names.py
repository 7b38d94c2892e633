"""The allow-list of a client's headers on the inference listener, as a regular expression that matches all other names.

Engines and the waker accept 8 KB for each header, and a client behind a proxy may send longer cookies. So headers that no part of the mesh
reads are removed first. Envoy removes the headers that match, so the expression is the complement of the allow-list.

Invariant: no name that begins with x-llamesh- or x-envoy- is on the list, because only the mesh may set them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

PASSED = (
    *("authorization", "x-api-key", "origin", "access-control-request-method", "access-control-request-headers"),
    *("content-type", "content-encoding", "content-length", "transfer-encoding", "expect"),
)
"""The headers that Envoy and its filters read. The route removes those that no engine needs: envoy/routes/inference.yaml."""


def all_but(names: Iterable[str]) -> str:
    """Return a regular expression (RE2) for every header name in lower case except `names` and the pseudo-headers of HTTP/2."""
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for letter in name:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _other_than(tree, not_first=":")


def _other_than(tree: dict[str, Any], not_first: str = "") -> str:
    """Return the expression for the text after the prefix of `tree`, so that the whole is none of its names."""
    letters = [letter for letter in tree if letter]
    others = "".join(map(re.escape, letters)) + not_first
    branches = [f"[^{others}].*" if others else ".+"]
    branches += [re.escape(letter) + _other_than(tree[letter]) for letter in letters]
    optional = "" if "" in tree else "?"
    return f"(?:{'|'.join(branches)}){optional}"
