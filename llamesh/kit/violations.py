"""Describes violations of a contract's rules for people.

protovalidate's own messages show regular expressions, and bounds of a text that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from protovalidate import Violation

_DOMAIN = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*"
_LABEL = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_PATH = "[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*"
PATTERNS: Mapping[str, str] = {
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$": "must be 1 to 128 characters of A-Z, a-z, 0-9 and ._-, the first a letter or digit",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,110}$": "must be 1 to 111 characters of A-Z, a-z, 0-9 and ._-, the first a letter or digit",
    "^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$": "must be 1 to 128 characters of A-Z, a-z, 0-9 and ._:/@+-, the first a letter or digit",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": "must be 1 to 64 characters of A-Z, a-z, 0-9 and ._-, the first a letter or digit",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(:-?[0-9]{1,3}([.][0-9]{1,4})?)?"
    "(,[A-Za-z0-9][A-Za-z0-9._-]{0,63}(:-?[0-9]{1,3}([.][0-9]{1,4})?)?){0,7}$": (
        "must be 1 to 8 names of adapters, each with a scale if it is not 1: style:0.5,law"
    ),
    "^[A-Za-z][A-Za-z0-9._@-]{0,63}$": "must be 1 to 64 characters of A-Z, a-z, 0-9 and ._@-, the first a letter",
    "^[0-9a-fA-F]{64}$": "must be 64 hexadecimal digits",
    "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$": "must be a name of a Kubernetes namespace: at most 63 characters of a-z, 0-9 and -",
    f"^({_DOMAIN}/)?{_LABEL}$": "must be a key of a Kubernetes label: NAME or DOMAIN/NAME, the name at most 63 characters",
    f"^({_LABEL})?$": "must be a value of a Kubernetes label: at most 63 characters of A-Z, a-z, 0-9 and -_., none of -_. at an end",
    f"^{_DOMAIN}$": "must be a name of a Kubernetes object: words of a-z, 0-9 and -, with dots between them",
    f"^{_DOMAIN}/{_LABEL}$": "must be a resource of Kubernetes nodes: DOMAIN/NAME, for instance nvidia.com/gpu",
    f"^([A-Za-z0-9]([-A-Za-z0-9.]{{0,251}}[A-Za-z0-9])?(:[0-9]{{1,5}})?/)?{_PATH}(/{_PATH})*"
    "(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?$": (
        "must be a name of an image: [HOST[:PORT]/]PATH[:TAG][@sha256:DIGEST]"
    ),
    "^[^\\pC\\p{Zl}\\p{Zp}]*$": "must have no control characters",
    "^(manage|metrics|infer:(\\*|[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}))$": (
        "is not a scope: manage, metrics, infer:*, infer:MODEL or infer:SERVER_UUID"
    ),
}
"""Meaning of each pattern in the contracts."""


def described(violation: Violation) -> str:
    """Describe the problem of a field."""
    rule = violation.proto.rule_id
    if violation.field_value == "" and rule in {"string.pattern", "string.min_len"}:
        return "is missing"
    if rule == "string.pattern":
        return PATTERNS.get(str(violation.rule_value), violation.proto.message)
    return violation.proto.message
