"""Envoy's YAML and Lua repeat names of llamesh/names.py: they must be the same there, and no other Python module may repeat them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.xds import scripts
from llamesh import names

ROOT = Path(__file__).resolve().parents[2]
DATA = sorted(path for kind in ("yaml", "lua") for path in (ROOT / "envoy").rglob(f"*.{kind}"))
MODULES = sorted(
    path
    for package in ("llamesh", "services", "controller", "engine", "benchmarks")
    for path in (ROOT / package).rglob("*.py")
    if path != ROOT / "llamesh" / "names.py" and "llamesh/v1" not in path.as_posix()
)
HEADERS = {
    value for name, value in vars(names).items() if name.endswith("_HEADER") and value.startswith(names.HEADER_PREFIX)
}
BETWEEN_FILTERS = "llamesh.began"
"""Namespace of the metadata that route.lua writes and only answers.lua reads."""
METADATA = {names.METADATA, names.USAGE_METADATA, names.CLAIMS_METADATA, BETWEEN_FILTERS}
UUID = "7b0f5d3e-1c52-4f57-9f0e-1d8a4c9b2e61"


def strings(module: Path) -> Iterator[str]:
    """The string constants of a module, without its docstrings."""
    tree = ast.parse(module.read_text())
    loose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loose:
            yield node.value


def values(node: Any, key: str) -> Iterator[Any]:
    """The values of every `key` in a YAML tree."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == key)
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from values(child, key)


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.name)
def test_headers_in_yaml_and_lua_are_among_the_names(path: Path) -> None:
    found = set(re.findall(r"x-llamesh-[a-z-]*", path.read_text()))
    assert found <= HEADERS | {names.HEADER_PREFIX}


def test_every_header_is_used_by_envoy_or_its_filters() -> None:
    text = "".join(path.read_text() for path in DATA)
    assert [header for header in HEADERS if header not in text] == []


@pytest.mark.parametrize("path", [path for path in DATA if path.suffix == ".lua"], ids=lambda path: path.name)
def test_lua_sets_and_reads_only_metadata_that_is_named(path: Path) -> None:
    found = re.findall(r'"((?:llamesh|envoy)\.?[a-z_.]*)"', path.read_text())
    assert set(found) <= METADATA


def test_the_route_filter_makes_the_names_of_clusters() -> None:
    source = scripts.file("route")
    assert f'return "{names.server_cluster("")}" .. server' in source
    assert f'return "{names.model_cluster("")}" .. model' in source


def test_yaml_names_the_same_clusters_listeners_metadata_and_logs() -> None:
    trees = [yaml.safe_load(path.read_text()) for path in DATA if path.suffix == ".yaml"]
    clusters = {name for key in ("cluster", "cluster_name") for name in values(trees, key) if "$" not in str(name)}
    assert clusters == {names.WAKER, names.CONTRACT, "controller", "llamesh"}, "the last two are in the bootstrap only"
    assert set(values(trees, "cluster_header")) == {names.CLUSTER_HEADER}
    assert set(values(trees, "server_listener_name")) == {names.HELD_LISTENER}
    assert set(values(trees, "route_config_name")) == {names.INFERENCE_LISTENER}
    assert set(values(trees, "log_name")) == {names.ADMISSION_LOG, "counted"}
    assert {name for name in values(trees, "filter") if isinstance(name, str)} <= METADATA
    assert {name for each in values(trees, "metadata_context_namespaces") for name in each} <= METADATA
    inference = next(tree for tree in trees if isinstance(tree, dict) and tree.get("name") == names.HELD_LISTENER)
    assert "internal_listener" in inference


def test_the_replies_tell_clusters_of_models_apart() -> None:
    entries = yaml.safe_load((ROOT / "envoy" / "replies" / "inference.yaml").read_text())
    of_clusters = [entry["when"] for entry in entries if entry["when"].get("header") == names.CLUSTER_HEADER]
    assert {when["begins"] for when in of_clusters if "begins" in when} == {names.model_cluster("")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_other_module_repeats_a_name(path: Path) -> None:
    own = {*HEADERS, names.LIFELINE, names.CLAIMS_METADATA, names.USAGE_METADATA}
    repeated = [
        text for text in strings(path) if text in own or text in (names.server_cluster(""), names.model_cluster(""))
    ]
    assert repeated == []


def used_names(source: str) -> Iterator[str]:
    """The names of llamesh.names that a module imports from there and uses, or takes from the imported module."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = {
        alias.asname or alias.name: alias.name
        for node in imports
        if node.module == "llamesh.names"
        for alias in node.names
    }
    module = {
        alias.asname or alias.name
        for node in imports
        if node.module == "llamesh"
        for alias in node.names
        if alias.name == "names"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in own:
            yield own[node.id]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in module:
            yield node.attr


def test_a_use_of_a_name_is_an_imported_one() -> None:
    source = """
from llamesh import names as agreed
from llamesh.names import QUANT, WAKER as HELD, ISSUER
from other import GATEWAY, names
print(QUANT, HELD, agreed.METADATA, GATEWAY, names.CONTRACT, Scope.AUDIENCE)
"""
    assert set(used_names(source)) == {"QUANT", "WAKER", "METADATA"}


def test_every_name_is_used_outside_of_its_module() -> None:
    used = {name for path in MODULES for name in used_names(path.read_text())}
    assert {name for name in vars(names) if re.fullmatch("[A-Z][A-Z_]+", name)} - used == {"HEADER_PREFIX"}


def test_a_cluster_is_of_a_server_or_of_a_model() -> None:
    assert names.server_of(names.server_cluster(UUID)) == UUID
    assert names.model_of(names.model_cluster("s:x")) == "s:x"
    for cluster in (names.WAKER, names.CONTRACT, ""):
        assert names.server_of(cluster) is None
        assert names.model_of(cluster) is None
    assert names.model_of(names.server_cluster(UUID)) is None


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("Qwen.gguf", "Qwen.gguf"),
        ("org/name:Q4", "org/name:Q4"),
        ("a b  c", "a-b-c"),
        ("-.x", "x"),
        ("日本", "model-1"),
        ("x" * 200, "x" * 128),
    ],
)
def test_the_default_name_has_usable_characters_only(name: str, served: str) -> None:
    assert names.served_name(name, "model-1") == served


def test_a_hidden_socket_is_no_longer_and_keeps_the_end_of_its_name() -> None:
    socket = Path("/run/engines/0f0c6a0e-1.sock")
    assert names.hidden_socket(socket) == Path("/run/engines/~f0c6a0e-1.sock")
