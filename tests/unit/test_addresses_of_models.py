"""What people type as the address of a model is read, brought into one form, or answered with the nearest right form."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from llamesh.hub_addresses import read_hub_address
from llamesh.kit.config import Settings
from llamesh.model_addresses import SCHEMES, canonical, default_name, is_address, likely
from services.download.service import sources_of

REPO = "hf:ggml-org/SmolLM2-GGUF"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("hf:ggml-org/SmolLM2-GGUF", REPO),
        ("HF:ggml-org/SmolLM2-GGUF/", REPO),
        ("hf://ggml-org/SmolLM2-GGUF", REPO),
        ("hf.co/ggml-org/SmolLM2-GGUF", REPO),
        ("huggingface.co/ggml-org/SmolLM2-GGUF", REPO),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF", REPO),
        ("  https://hf.co/ggml-org/SmolLM2-GGUF/tree/main\n", REPO),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF?local-app=llama.cpp", REPO),
        ("hf:ggml-org/SmolLM2-GGUF@main", REPO),
        ("hf:ggml-org/SmolLM2-GGUF:q4_k_m", f"{REPO}:q4_k_m"),
        ("hf.co/ggml-org/SmolLM2-GGUF:Q8_0", f"{REPO}:Q8_0"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF:Q8_0", f"{REPO}:Q8_0"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF/blob/main/a.Q8_0.gguf", f"{REPO}/a.Q8_0.gguf"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF/resolve/main/a.Q8_0.gguf?download=true", f"{REPO}/a.Q8_0.gguf"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF?show_file_info=a.Q8_0.gguf", f"{REPO}/a.Q8_0.gguf"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF/resolve/v1.0/Q8_0/a%20b.gguf", f"{REPO}@v1.0/Q8_0/a%20b.gguf"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF/blob/refs%2Fpr%2F1/a.gguf", f"{REPO}@refs%2Fpr%2F1/a.gguf"),
        ("hf:ggml-org/SmolLM2-GGUF:a.Q8_0.gguf", f"{REPO}/a.Q8_0.gguf"),
        ("hf:ggml-org/SmolLM2-GGUF@abc123:Q8_0", f"{REPO}@abc123:Q8_0"),
        ("S3://place/a.gguf", "s3://place/a.gguf"),
        ("Quant:m1", "quant:m1"),
        ("https://models.example/a.gguf?sig=x", "https://models.example/a.gguf?sig=x"),
        ("https://huggingface.co/datasets/a/b/resolve/main/x.gguf",) * 2,
        ("/models/a.gguf", "/models/a.gguf"),
    ],
)
def test_every_spelling_has_one_form(written: str, meant: str) -> None:
    assert canonical(written) == meant
    assert canonical(meant) == meant


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("hf:", "hf:OWNER/REPO"),
        ("hf:repo", "hf:OWNER/REPO"),
        ("hf:../../api/whoami", "hf:OWNER/REPO"),
        ("hf:a/b/../../c.gguf", "leads out"),
        ("hf:a/b@x%00y/c.gguf", "leads out"),
        ("hf:a/b/model.safetensors", "no GGUF file"),
        ("https://huggingface.co/models?search=x", "not that of a model"),
        ("https://huggingface.co/datasets/a/b", "not that of a model"),
        ("https://huggingface.co/ggml-org", "not that of a model"),
        ("https://huggingface.co/a/b/discussions/1", "no GGUF file"),
    ],
)
def test_an_address_that_names_no_hub_model_is_refused_with_the_reason(written: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        canonical(written)


def test_pages_of_a_mirror_are_pages_of_the_hub() -> None:
    page = "https://mirror.example/a/b/resolve/main/c.gguf"
    assert canonical(page) == page
    assert canonical(page, {"mirror.example"}) == "hf:a/b/c.gguf"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("models.example/x.gguf", "https://models.example/x.gguf"),
        ("models.example:8443/x.gguf", "https://models.example:8443/x.gguf"),
        ("https:/models.example/x.gguf", "https://models.example/x.gguf"),
        ("https//models.example/x.gguf", "https://models.example/x.gguf"),
        ("htps://models.example/x.gguf", "https://models.example/x.gguf"),
        ("HTTPS:models.example/x.gguf", "https://models.example/x.gguf"),
        ("file:/models/x.gguf", "file:///models/x.gguf"),
        ("huggingface:a/b", "hf:a/b"),
        ("hugingface:a/b", "hf:a/b"),
        ("hf//a/b", "hf:a/b"),
        ("s3:place/x.gguf", "s3://place/x.gguf"),
        ("minio://place/x.gguf", "s3://place/x.gguf"),
        ("qant:m1", "quant:m1"),
        ("a/b", "hf:a/b"),
        ("a/b:Q4_K_M", "hf:a/b:Q4_K_M"),
        ("models/x.gguf", ""),
        ("llama3:8b", ""),
        ("qwen", ""),
        ("", ""),
    ],
)
def test_a_wrong_form_gets_the_nearest_right_one(word: str, meant: str) -> None:
    assert likely(word) == meant


def test_addresses_are_told_from_names_and_paths() -> None:
    assert all(map(is_address, ["https://h/x", "hf:a/b", "hf.co/a/b", "huggingface.co/a/b", "s3://p/k", "quant:m"]))
    assert not any(map(is_address, ["a/b", "./x.gguf", "qwen", "llama3:8b", "hf", "hf.co", "", "/x/hf.co/y"]))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("hf:a/SmolLM2-GGUF", "SmolLM2"),
        ("hf:a/SmolLM2-gguf:Q8_0", "SmolLM2:Q8_0"),
        ("hf:a/SmolLM2@v1/sub/x%20y.gguf", "x y.gguf"),
        ("quant:m1", "m1"),
        ("s3://place/dir/x.gguf", "x.gguf"),
        ("https://models.example/a%20b.gguf?x=/y", "a b.gguf"),
        ("/models/x.gguf", "x.gguf"),
    ],
)
def test_a_model_is_named_after_its_file_or_repository(address: str, name: str) -> None:
    assert default_name(address) == name


def test_an_address_is_read_back_as_it_was() -> None:
    for text in ("hf:a/b@refs%2Fpr%2F1/c%3Ad%40e.gguf", "hf:a/b@x:UD-Q4_K_XL", "hf:a/b"):
        assert str(read_hub_address(text)) == text


async def test_every_scheme_has_a_source_and_every_source_a_scheme(tmp_path: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/quant.sock") as channel:
        sources = sources_of(Settings(home=tmp_path), channel)
    assert sources.by_scheme.keys() == set(SCHEMES)
    assert len(SCHEMES) == len(set(SCHEMES))
