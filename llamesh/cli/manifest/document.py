"""One document of a manifest, and a problem in one. Both have a position: file, document, line, field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import Message

from llamesh.cli.manifest.kinds import label_of


@dataclass(frozen=True, slots=True)
class Document:
    """One declared object."""

    file: str
    number: int
    """Position in the file, from 1."""
    kind: str
    name: str
    id: str
    """Id in the mesh, from the annotation; empty without one."""
    spec: Message
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line of each field by its path in snake case, for instance "spec.parameters.ctx_size"."""

    @property
    def label(self) -> str:
        """Kind and name, as people read them."""
        return label_of(self.kind, self.name)

    @property
    def position(self) -> tuple[str, int]:
        """File and number, which no other document has."""
        return self.file, self.number

    @property
    def folder(self) -> Path:
        """The folder that paths in the document are relative to."""
        return Path.cwd() if self.file == "-" else Path(self.file).parent

    def place(self, path: str) -> str:
        """Describe the position of a field for people; of its nearest written parent if the field is absent."""
        at = path
        while at and at not in self.lines:
            at = at.rpartition(".")[0]
        return f"{self.file}:{self.lines.get(at, 1)}: document {self.number} ({self.label}): {path}"
