"""Templates of Envoy configuration: YAML as Envoy documents it, with a few `${placeholders}`.

Placeholders are filled in the parsed tree, never in the text, so a value can hold anything and cannot change the
shape around it.
A placeholder that stands alone becomes the value itself; alone in a list, a list takes its place. A placeholder
without a value is an error, and so is a value without a placeholder.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from llamesh.kit import envoy_api

FOLDER = Path(__file__).parents[2] / "envoy"
_PLACEHOLDER = re.compile(r"\$\{([a-z_]+)\}")


class TemplateError(ValueError):
    """A template and the values for it do not fit together."""


def render(template: str, message: str, values: Mapping[str, Any]) -> Any:
    """The Envoy message `message` made of the template file `template` (a path below envoy/) and `values`.

    Raises:
        TemplateError: a placeholder has no value, or a value no placeholder.
        EnvoyConfigError: the result does not fit Envoy's API.
    """
    return envoy_api.parse(tree(template, values), message)


def tree(template: str, values: Mapping[str, Any]) -> Any:
    """The filled tree of a template that is a part of another."""
    return fill(_load(template), values)


def raw(template: str) -> Any:
    """The tree of a template as it stands, placeholders included."""
    return _load(template)


def fill(node: Any, values: Mapping[str, Any]) -> Any:
    """`node` with every placeholder replaced. See the module for the rules."""
    used: set[str] = set()
    filled = _fill(node, values, used)
    if unused := values.keys() - used:
        raise TemplateError(f"no placeholder for: {', '.join(sorted(unused))}")
    return filled


@functools.cache
def _load(template: str) -> Any:
    return yaml.safe_load((FOLDER / template).read_text())


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
