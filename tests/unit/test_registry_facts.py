"""Facts of a model in a registry: the beginning of a licence, and templates, bounded and never the cause of a failure."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.download.sources import AddressRules, ModelFacts, RegistrySource
from services.download.sources.registry_facts import MAX_LICENSE_BYTES, MAX_TEXT_BYTES, beginning
from tests.unit.fake_registry import OLLAMA_MODEL, FakeRegistry, digest, fake_registry

LICENSE, TEMPLATE = "application/vnd.ollama.image.license", "application/vnd.docker.ai.chat.template.jinja"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("MIT License\n\nCopyright (c) 2024 Ada\n\nPermission", "MIT License Copyright (c) 2024 Ada"),
        ("  ====\r\n   LLAMA  3.2\tLICENSE\r\n", "LLAMA 3.2 LICENSE"),
        ("a\x1b[31m\u202eb", "a?[31m?b"),
        ("\u00e4" * 500, "\u00e4" * (MAX_LICENSE_BYTES // 2)),
        ("x" + "\u00e4" * 500, "x" + "\u00e4" * 63),
        ("", ""),
    ],
)
def test_a_licence_is_shown_by_its_first_lines(text: str, first: str) -> None:
    assert beginning(text) == first
    assert len(first.encode()) <= MAX_LICENSE_BYTES


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with fake_registry() as state:
        yield state


async def facts(registry: FakeRegistry, *layers: tuple[str, bytes], **changed: bytes) -> ModelFacts:
    """The facts of a model with these layers; `changed` are the contents of blobs that were replaced."""
    registry.push("ada/model", "v1", [(OLLAMA_MODEL, b"GGUF"), *layers])
    for before, after in changed.items():
        registry.repositories["ada/model"].blobs[digest(before.encode())] = after
    sources = RegistrySource(AddressRules(), {}, registry.url)
    return (await sources.files("ollama:ada/model:v1"))[0].facts


async def test_licence_and_template_are_facts(registry: FakeRegistry) -> None:
    template = (TEMPLATE, b"{% for tool in tools %}")
    assert await facts(registry) == ModelFacts()
    assert await facts(registry, (LICENSE, b"mit"), template) == ModelFacts("mit", "jinja", True)


async def test_what_is_too_long_or_of_another_digest_is_left_out(registry: FakeRegistry) -> None:
    template = (TEMPLATE, b"{% for message in messages %}")
    long = (LICENSE, b"m" * (MAX_TEXT_BYTES + 1))
    assert await facts(registry, long, template) == ModelFacts("", "jinja")
    assert await facts(registry, (LICENSE, b"mit"), template, mit=b"mat") == ModelFacts("", "jinja")
    assert await facts(registry, (LICENSE, b"mit"), template, mit=b"m" * (MAX_TEXT_BYTES + 1)) == ModelFacts(
        "", "jinja"
    )
    assert await facts(registry, (LICENSE, b"\xff\xfe")) == ModelFacts()
