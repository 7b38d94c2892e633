"""Templates of Envoy configuration: YAML as Envoy documents it, with a few `${placeholders}`.

Placeholders are filled in the parsed tree, never in the text, so a value cannot change the structure around it. A node that is one
placeholder becomes the value itself; if it is an item of a list and the value is a list, the items of the value replace it. A placeholder
without a value is an error, and so is a value without a placeholder.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamesh.kit import envoy_api
from llamesh.kit.yaml_files import read_yaml

FOLDER = Path(__file__).parents[2] / "envoy"
_PLACEHOLDER = re.compile(r"\$\{([a-z_]+)\}")


class TemplateError(ValueError):
    """The placeholders of a template and the values for it differ."""


def render(template: str, message: str, values: Mapping[str, Any]) -> Any:
    """Return the Envoy message `message` from the template file `template` (a path below envoy/) and `values`.

    Raises:
        TemplateError: a placeholder has no value, or a value no placeholder.
        EnvoyConfigError: the result does not fit Envoy's API.
    """
    return envoy_api.parse(tree(template, values), message)


def tree(template: str, values: Mapping[str, Any]) -> Any:
    """Return the filled tree of a template that is a part of another one."""
    return fill(_load(template), values)


def raw(template: str) -> Any:
    """Return the tree of a template with its placeholders."""
    return _load(template)


def fill(node: Any, values: Mapping[str, Any]) -> Any:
    """Return `node` with every placeholder replaced, by the rules of this module."""
    used: set[str] = set()
    filled = _fill(node, values, used)
    if unused := values.keys() - used:
        raise TemplateError(f"no placeholder for: {', '.join(sorted(unused))}")
    return filled


@functools.cache
def _load(template: str) -> Any:
    return read_yaml(FOLDER / template)


def _fill(node: Any, values: Mapping[str, Any], used: set[str]) -> Any:
    if isinstance(node, dict):
        return {key: _fill(child, values, used) for key, child in node.items()}
    if isinstance(node, list):
        filled: list[Any] = []
        for child in node:
            value = _fill(child, values, used)
            spliced = isinstance(child, str) and _PLACEHOLDER.fullmatch(child) and isinstance(value, list)
            filled.extend(value if spliced else [value])
        return filled
    if not isinstance(node, str):
        return node

    def value_of(match: re.Match[str]) -> Any:
        name = match[1]
        if name not in values:
            raise TemplateError(f"no value for ${{{name}}}")
        used.add(name)
        return values[name]

    alone = _PLACEHOLDER.fullmatch(node)
    return value_of(alone) if alone else _PLACEHOLDER.sub(lambda match: str(value_of(match)), node)
