"""Facts of a model in a registry: the beginning of its licence, and what its chat template can do, from layers beside its files.

Invariant: they are bounded, printable and verified, and a model never fails because of them: what cannot be read is left out.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress

from services.download.sources.object_names import printable
from services.download.sources.registry_client import RegistryClient
from services.download.sources.registry_manifests import Layer, ModelManifest, template_language
from services.download.sources.source import ModelFacts, SourceError

MAX_TEXT_BYTES = 64 << 10
"""Maximum size of a licence or a template that is read in bytes. Real ones have some tens of KiB."""
MAX_LICENSE_BYTES = 128
"""Maximum size of the beginning of a licence, in UTF-8. It is that of the licence in a header."""
_LICENSE_LINES = 2
_TOOLS = re.compile(r"\.Tools\b|\btools\b")
"""How a template mentions tools, in Go's language and in Jinja."""


async def read_facts(client: RegistryClient, repository: str, manifest: ModelManifest) -> ModelFacts:
    """Read the first licence and the first chat template beside the files of a model."""
    templates = [layer for layer in manifest.texts if template_language(layer)]
    licences = [layer for layer in manifest.texts if layer not in templates]
    template = await _text(client, repository, templates[0]) if templates else ""
    licence = await _text(client, repository, licences[0]) if licences else ""
    return ModelFacts(
        license=beginning(licence),
        chat_template_language=template_language(templates[0]) if template else "",
        chat_template_has_tools=_TOOLS.search(template) is not None,
    )


def beginning(licence: str) -> str:
    """Return the first lines with words of a licence as one, cut to MAX_LICENSE_BYTES."""
    lines = (" ".join(line.split()) for line in licence.splitlines())
    first = [line for line in lines if any(letter.isalnum() for letter in line)][:_LICENSE_LINES]
    cut = printable(" ".join(first)).encode()[:MAX_LICENSE_BYTES]
    return cut.decode(errors="ignore").strip()


async def _text(client: RegistryClient, repository: str, layer: Layer) -> str:
    """Return the text of a layer, "" if it cannot be read."""
    if layer.size > MAX_TEXT_BYTES:
        return ""
    with suppress(SourceError):
        body = await client.body(repository, f"blobs/sha256:{layer.sha256}", MAX_TEXT_BYTES)
        if hashlib.sha256(body).hexdigest() == layer.sha256:
            return body.decode(errors="replace")
    return ""
