"""What a GGUF header says of a model to people: license, tags, modalities, and what its chat template takes.

Invariant: every value is bounded and printable, and no value makes a file invalid: a file with an unusual license is a model too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llamesh.kit.gguf.reader import Reader

LICENSE_KEY = "general.license"
TAGS_KEY = "general.tags"
MAX_LICENSE = 128
"""Maximum bytes of a license that are stored; most files have an SPDX identifier."""
MAX_TAGS = 32
"""Maximum number of tags that are stored."""
MAX_TAG = 64
"""Maximum bytes of a tag that are stored."""

_EMBEDDING_ARCHITECTURES = frozenset(
    {
        "bert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    }
)
_PROJECTOR_ARCHITECTURE = "clip"
# llama.cpp's `enum llama_pooling_type`.
_EMBEDDING_POOLINGS = frozenset({1, 2, 3})
_RANK_POOLING = 4
_TOOLS = re.compile(r"\btools\b")
_REASONING = re.compile(r"</?think>|\benable_thinking\b|\breasoning_content\b|\breasoning_effort\b")


@dataclass(frozen=True, slots=True)
class Description:
    """The description of a model. A text that the file does not have is empty."""

    license: str = ""
    """`general.license`, such as `apache-2.0`."""
    tags: tuple[str, ...] = ()
    """`general.tags`, without repetition."""
    modalities: tuple[str, ...] = ()
    """Names of the contract's `Modality`."""
    chat_template_has_tools: bool = False
    """Whether a chat template of the file renders tools."""
    chat_template_has_reasoning: bool = False
    """Whether a chat template of the file renders or controls reasoning."""


class Describer:
    """Collects the description while the header is read."""

    def __init__(self) -> None:
        self._license = ""
        self._tags: tuple[str, ...] = ()
        self._tools = self._reasoning = False

    def read_license(self, reader: Reader) -> None:
        """Read the beginning of a license and skip the rest."""
        self._license = _printable(reader.beginning(MAX_LICENSE))

    def read_tags(self, reader: Reader, count: int) -> None:
        """Read the first of `count` tags and skip the rest."""
        kept = min(count, MAX_TAGS)
        tags = [_printable(reader.beginning(MAX_TAG)) for _ in range(kept)]
        reader.skip_strings(count - kept)
        self._tags = tuple(dict.fromkeys(filter(None, tags)))

    def see_template(self, template: str) -> None:
        """Note what a chat template mentions: without the variable `tools` it cannot render any."""
        self._tools = _TOOLS.search(template) is not None
        self._reasoning = _REASONING.search(template) is not None

    def description(self, architecture: str, kind: str, numbers: Mapping[str, int]) -> Description:
        """Return the description of a model. `numbers` has the whole numbers of the header by key."""
        modality = _modality(architecture, kind, numbers.get(f"{architecture}.pooling_type", 0))
        return Description(self._license, self._tags, (modality,), self._tools, self._reasoning)


def _modality(architecture: str, kind: str, pooling: int) -> str:
    if kind == "mmproj" or architecture == _PROJECTOR_ARCHITECTURE:
        return "MODALITY_VISION_PROJECTOR"
    if pooling == _RANK_POOLING:
        return "MODALITY_RERANKING"
    if pooling in _EMBEDDING_POOLINGS or architecture in _EMBEDDING_ARCHITECTURES:
        return "MODALITY_EMBEDDING"
    return "MODALITY_TEXT"


def _printable(words: str) -> str:
    return "".join(filter(str.isprintable, words)).strip()
