"""The files of a model whose parts are found by name: each has the address of the others, with another number."""

from __future__ import annotations

from collections.abc import Sequence

from llamesh.part_names import parts_of
from services.download.sources.source import SourceFile, SourceRefusedError


class NamedParts:
    """A source whose addresses end in the name of a file."""

    async def files(self, source: str) -> Sequence[SourceFile]:
        """See Source. Raises SourceRefusedError if there are too many parts."""
        try:
            return [SourceFile(part) for part in parts_of(source)]
        except ValueError as error:
            raise SourceRefusedError(str(error), rule="parts") from error
