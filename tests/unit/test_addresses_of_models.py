"""What people type as the address of a model is read, brought into one form, or answered with the nearest right form."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from llamesh.hub_addresses import read_hub_address
from llamesh.kit.config import Settings
from llamesh.model_addresses import SCHEMES, canonical, default_name, is_address, likely, name_with_owner
from services.download.service import files_of, hub_of, sources_of

HEX = "0123456789abcdef" * 4
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
        ("hf:ggml-org/SmolLM2-GGUF:q4_k_m", f"{REPO}:Q4_K_M"),
        ("hf.co/ggml-org/SmolLM2-GGUF:Q8_0", f"{REPO}:Q8_0"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF:Q8_0", f"{REPO}:Q8_0"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF/blob/main/a.Q8_0.gguf", f"{REPO}/a.Q8_0.gguf"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF/resolve/main/a.Q8_0.gguf?download=true", f"{REPO}/a.Q8_0.gguf"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF?show_file_info=a.Q8_0.gguf", f"{REPO}/a.Q8_0.gguf"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF/resolve/v1.0/Q8_0/a%20b.gguf", f"{REPO}@v1.0/Q8_0/a%20b.gguf"),
        ("https://huggingface.co/ggml-org/SmolLM2-GGUF/blob/refs%2Fpr%2F1/a.gguf", f"{REPO}@refs%2Fpr%2F1/a.gguf"),
        ("hf:ggml-org/SmolLM2-GGUF:a.Q8_0.gguf", f"{REPO}/a.Q8_0.gguf"),
        ("hf:ggml-org/SmolLM2-GGUF@abc123:Q8_0", f"{REPO}@abc123:Q8_0"),
        ("ollama:smollm2:135m", "ollama:smollm2:135m"),
        ("OLLAMA:smollm2", "ollama:smollm2"),
        ("ollama://smollm2:latest", "ollama:smollm2"),
        ("ollama:library/smollm2:135m", "ollama:smollm2:135m"),
        ("ollama:Ada/Model.v2", "ollama:Ada/Model.v2"),
        ("ollama:registry.ollama.ai/library/smollm2:135m", "ollama:smollm2:135m"),
        ("ollama.com/library/smollm2:135m", "ollama:smollm2:135m"),
        ("https://ollama.com/library/smollm2/tags", "ollama:smollm2"),
        ("https://www.ollama.com/ada/model:q4?x=1", "ollama:ada/model:q4"),
        ("https://registry.ollama.ai/v2/library/smollm2/manifests/135m", "ollama:smollm2:135m"),
        (f"ollama:smollm2:135m@sha256:{HEX}", f"ollama:smollm2@sha256:{HEX}"),
        ("oci://ghcr.io/ada/model:v1", "oci://ghcr.io/ada/model:v1"),
        ("oci:ghcr.io/ada/model:v1", "oci://ghcr.io/ada/model:v1"),
        ("OCI://GHCR.io/ada/model:latest/", "oci://ghcr.io/ada/model"),
        (f"oci://localhost:5000/a/b/c:v1@sha256:{HEX}", f"oci://localhost:5000/a/b/c@sha256:{HEX}"),
        (f"oci://ghcr.io/a/b@sha256:{HEX}#sha256:{HEX}", f"oci://ghcr.io/a/b@sha256:{HEX}#sha256:{HEX}"),
        ("oci://index.docker.io/smollm2", "oci://docker.io/library/smollm2"),
        ("oci://registry.ollama.ai/library/smollm2:135m", "ollama:smollm2:135m"),
        ("S3://place/a.gguf", "s3://place/a.gguf"),
        ("Quant:m1", "quant:m1"),
        ("https://models.example/a.gguf?sig=x", "https://models.example/a.gguf?sig=x"),
        ("https://huggingface.co/datasets/a/b/resolve/main/x.gguf",) * 2,
        (f"https://registry.ollama.ai/v2/library/smollm2/blobs/sha256:{HEX}",) * 2,
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


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("ollama:", "ollama:NAME"),
        ("ollama:a/b/c", "ollama:OWNER/NAME"),
        ("ollama:../x", "ollama:NAME"),
        ("ollama:x:", "no tag"),
        ("ollama:x:a b", "ollama:NAME"),
        ("ollama:x@sha256:12", "64 hexadecimal digits"),
        ("ollama:x@sha512:12", "64 hexadecimal digits"),
        ("ollama.com/search", "not that of a model"),
        ("https://ollama.com/blog/a/b/c", "not that of a model"),
        ("oci://", "oci://HOST/REPOSITORY"),
        ("oci://ghcr.io", "oci://HOST/REPOSITORY"),
        ("oci://ai/smollm2", "did you mean oci://docker.io/ai/smollm2"),
        ("oci://ghcr.io/Ada/Model:V1", "did you mean oci://ghcr.io/ada/model:V1"),
        ("oci://ghcr.io/a//b", "no name of a repository"),
        ("oci://ghcr.io/a/../b", "no name of a repository"),
        (f"oci://ghcr.io/{'a' * 256}", "no name of a repository"),
        ("oci://user:secret@ghcr.io/a/b", "oci://HOST/REPOSITORY"),
        (f"oci://ghcr.io/a:{'t' * 129}", "no tag"),
    ],
)
def test_an_address_that_names_no_model_of_a_registry_is_refused_with_the_reason(written: str, words: str) -> None:
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
        ("llama3:8b", "ollama:llama3:8b"),
        *(
            (word, f"ollama:{word}")
            for word in ("codellama:7b", "orca:7b", "ollama3:8b", "lama:7b", "minion:3b", "hu:1")
        ),
        *((f"{word}:foo", "ollama:foo") for word in ("ollam", "Ollama", "ollamaa")),
        ("orac://ghcr.io/ada/model", "oci://ghcr.io/ada/model"),
        ("https:x.gguf", "https://x.gguf"),
        ("s3:x", "s3://x"),
        ("olama:llama3:8b", "ollama:llama3:8b"),
        ("ghcr.io/ada/model:v1", "oci://ghcr.io/ada/model:v1"),
        ("registry.example/ada/model:v1", "oci://registry.example/ada/model:v1"),
        ("docker.io/ai/smollm2", "oci://docker.io/ai/smollm2"),
        ("hub.docker.com/r/ai/smollm2", "oci://docker.io/ai/smollm2"),
        ("docker:ai/smollm2", "oci://docker.io/ai/smollm2"),
        ("qwen", ""),
        ("", ""),
    ],
)
def test_a_wrong_form_gets_the_nearest_right_one(word: str, meant: str) -> None:
    assert likely(word) == meant


def test_addresses_are_told_from_names_and_paths() -> None:
    assert all(map(is_address, ["https://h/x", "hf:a/b", "hf.co/a/b", "huggingface.co/a/b", "s3://p/k", "quant:m"]))
    assert all(map(is_address, ["ollama:x", "ollama.com/library/x", "registry.ollama.ai/library/x:y", "oci://h.io/x"]))
    assert not any(map(is_address, ["a/b", "./x.gguf", "qwen", "llama3:8b", "hf", "hf.co", "", "/x/hf.co/y"]))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("hf:a/SmolLM2-GGUF", "SmolLM2"),
        ("hf:a/SmolLM2-gguf:Q8_0", "SmolLM2:Q8_0"),
        ("hf:a/SmolLM2@v1/sub/x%20y.gguf", "x y.gguf"),
        ("quant:m1", "m1"),
        ("ollama:smollm2:135m", "smollm2:135m"),
        ("ollama:ada/model", "model"),
        ("oci://ghcr.io/ada/model:v1", "model:v1"),
        (f"oci://ghcr.io/ada/model@sha256:{HEX}", "model"),
        ("oci:nonsense", ""),
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
        settings = Settings(home=tmp_path)
        sources = sources_of(settings, hub_of(settings), files_of(settings), channel)
    assert sources.by_scheme.keys() == set(SCHEMES)
    assert len(SCHEMES) == len(set(SCHEMES))


@pytest.mark.parametrize(
    ("address", "present", "name"),
    [
        ("hf:ada/tiny-GGUF:Q8_0", "hf:eve/tiny-GGUF:Q8_0", "ada-tiny:Q8_0"),
        ("ollama:ada/tiny:1b", "ollama:tiny:1b", "ada-tiny:1b"),
        ("hf:ada/tiny-GGUF:Q8_0", "https://models.example/tiny", "ada-tiny:Q8_0"),
        ("hf:ada/tiny-GGUF@v2:Q8_0", "hf:ada/tiny-GGUF:Q8_0", ""),
        ("https://models.example/tiny.gguf", "hf:ada/tiny-GGUF:Q8_0", ""),
        ("hf:ada", "hf:eve/tiny-GGUF:Q8_0", ""),
    ],
)
def test_the_model_of_another_owner_gets_the_owner_in_front(address: str, present: str, name: str) -> None:
    assert name_with_owner(address, present) == name
