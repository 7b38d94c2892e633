"""Reads manifests: parses YAML to documents and keeps the line of every field. Makes no call to a mesh.

Invariant: all problems of all files are reported together, and sizes are bounded: 1 MiB and 50,000 values for each file, each use of an
alias counted, and a length for each value.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.manifest.document import Document
from llamesh.cli.manifest.kinds import API_VERSION, ID_ANNOTATION, MAX_NAME, NAMED_FOR_PEOPLE, SPECS
from llamesh.cli.manifest.spec import SpecError, decode, line_of, short
from llamesh.nearest import nearest

MAX_FILE = 1 << 20
MAX_VALUES = 50_000
MAX_DEPTH = 50
"""Maximum number of levels of one document."""
MAX_TEXT = 1 << 16
"""Characters of a text."""
MAX_NUMBER = 64
"""Characters of a number or another value that is no text. PyYAML takes quadratic time for 1:1:1:..., a number of base 60."""
_NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@+-]*")
TOP = ("apiVersion", "kind", "metadata", "spec", "status")
METADATA = ("name", "annotations", "labels", "namespace")
_Node = Any


class _ProblemError(Exception):
    def __init__(self, line: int, path: str, words: str) -> None:
        super().__init__(words)
        self.line, self.path, self.words = line, path, words


def read(paths: Sequence[str]) -> list[Document]:
    """Return every document of the files; "-" is standard input. CommandError lists every problem."""
    found: list[Document] = []
    problems: list[str] = []
    for path in paths:
        for item in _documents(path, _text(path)):
            if isinstance(item, str):
                problems.append(item)
            else:
                found.append(item)
    first: dict[tuple[str, str, str], Document] = {}
    for document in found:
        other = first.setdefault((document.kind, document.name, document.id), document)
        if other is not document:
            problems.append(f"{document.place('metadata.name')}: declared before: {other.place('metadata.name')}")
    if problems:
        raise CommandError(
            "the manifest has mistakes; nothing was changed",
            parts=problems,
            hint="llamesh schema prints the JSON schema for an editor",
            code=Exit.USAGE,
        )
    return found


def _text(path: str) -> str:
    try:
        raw = (
            sys.stdin.buffer.read(MAX_FILE + 1) if path == "-" else Path(path).open("rb").read(MAX_FILE + 1)  # noqa: SIM115 read at once
        )
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", hint="-f names a YAML file", code=Exit.USAGE) from error
    if len(raw) > MAX_FILE:
        raise CommandError(f"{path}: larger than 1 MiB", hint="divide it: -f may be repeated", code=Exit.USAGE)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: not UTF-8 at byte {error.start}", code=Exit.USAGE) from error


def _documents(path: str, text: str) -> Iterator[Document | str]:
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except RecursionError:
        yield f"{path}: nested deeper than can be read; write it flat"
        return
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        yield f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}"
        return
    budget = [MAX_VALUES]
    for number, node in enumerate((node for node in nodes if not _empty(node)), 1):
        try:
            _count(node, budget, 0)
            yield from _document(path, number, node)
        except _ProblemError as problem:
            place = f": {problem.path}" if problem.path else ""
            yield f"{path}:{problem.line}: document {number}{place}: {problem.words}"
            if budget[0] < 0:
                return


def _empty(node: _Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _count(node: _Node, budget: list[int], depth: int) -> None:
    """Refuse a file that would take long. An alias counts each time it is used."""
    budget[0] -= 1
    if budget[0] < 0 or depth > MAX_DEPTH:
        raise _ProblemError(line_of(node), "", f"more than {MAX_VALUES} values or {MAX_DEPTH} levels; divide the file")
    if isinstance(node, yaml.ScalarNode):
        most = MAX_TEXT if node.tag == "tag:yaml.org,2002:str" else MAX_NUMBER
        if len(node.value) > most:
            raise _ProblemError(line_of(node), "", f"a value is longer than {most} characters")
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _count(key, budget, depth + 1)
            _count(value, budget, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _count(value, budget, depth + 1)


def _document(path: str, number: int, node: _Node) -> Iterator[Document | str]:
    fields = _mapping(node, "", TOP)
    lines = {name: line_of(value) for name, value in fields.items()}
    version = _word(fields, "apiVersion", node)
    if version != API_VERSION:
        raise _ProblemError(lines["apiVersion"], "apiVersion", f"{short(version)!r} is not known; write {API_VERSION}")
    kind = _word(fields, "kind", node)
    if kind not in SPECS:
        raise _ProblemError(
            lines["kind"], "kind", f"{short(kind)!r} is not known{_nearest(kind, SPECS)}; one of {', '.join(SPECS)}"
        )
    if "metadata" not in fields:
        raise _ProblemError(line_of(node), "metadata", "is missing; write metadata: {name: ...}")
    metadata = _mapping(fields["metadata"], "metadata", METADATA)
    name = _word(metadata, "name", fields["metadata"], "metadata.")
    lines["metadata.name"] = line_of(metadata["name"])
    if len(name) > MAX_NAME:
        raise _ProblemError(lines["metadata.name"], "metadata.name", f"is longer than {MAX_NAME} characters")
    if kind not in NAMED_FOR_PEOPLE and not _NAMES.fullmatch(name):
        raise _ProblemError(
            lines["metadata.name"],
            "metadata.name",
            f"{name!r} must be letters, digits and ._:/@+- after a letter or digit",
        )
    annotations = _mapping(metadata["annotations"], "metadata.annotations") if "annotations" in metadata else {}
    meant = _word(annotations, ID_ANNOTATION, node) if ID_ANNOTATION in annotations else ""
    spec = SPECS[kind]()
    errors: list[SpecError] = []
    if "spec" in fields:
        decode(fields["spec"], spec, "spec", lines, errors)
    document = Document(path, number, kind, name, meant, spec, lines)
    if errors:
        for error in errors:
            yield f"{path}:{error.line}: document {number} ({document.label}): {error.path}: {error.words}"
        return
    if kind == "ModelServe" and not spec.model_uuid:  # type: ignore[attr-defined]
        yield f"{document.place('spec.model_uuid')}: is missing; write the model's id"
        return
    yield document


def _mapping(node: _Node, path: str, known: Sequence[str] = ()) -> dict[str, _Node]:
    if not isinstance(node, yaml.MappingNode):
        raise _ProblemError(line_of(node), path, "must be a mapping of names to values")
    found: dict[str, _Node] = {}
    for key, value in node.value:
        name = str(key.value)
        at = f"{path}.{short(name)}" if path else short(name)
        if known and name not in known:
            raise _ProblemError(line_of(key), at, f"unknown field{_nearest(name, known)}; known: {', '.join(known)}")
        if name in found:
            raise _ProblemError(line_of(key), at, "is given twice")
        found[name] = value
    return found


def _word(fields: dict[str, _Node], name: str, parent: _Node, path: str = "") -> str:
    node = fields.get(name)
    if node is None:
        raise _ProblemError(line_of(parent), path + name, "is missing")
    if not isinstance(node, yaml.ScalarNode) or not node.value:
        raise _ProblemError(line_of(node), path + name, "must be a word")
    return str(node.value)


def _nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    meant = nearest(word, known, 0.5)
    return f"; did you mean {meant}?" if meant else ""
