"""A setting that cannot be meant is refused by name, before anything starts."""

from __future__ import annotations

import typing

import annotated_types
import pytest
from pydantic import AliasChoices, ValidationError

from llamesh.kit import limits
from llamesh.kit.config import Settings
from llamesh.kit.config_loading import problems


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JWT_EXPIRY_HOURS", "0"),
        ("JWT_EXPIRY_HOURS", "-1"),
        ("LLAMESH_JWT_ROTATION_DAYS", "0"),
        ("LLAMESH_JWT_ROTATION_DAYS", "0.001"),
        ("LLAMESH_JWT_ROTATION_DAYS", "inf"),
        ("LLAMESH_DATABASE_SECONDS", "0"),
        ("LLAMESH_DATABASE_SECONDS", "inf"),
        ("LLAMESH_DRAIN_SECONDS", "-1"),
        ("LLAMESH_BIND", "my-machine"),
        ("LLAMESH_BIND", "127.0.0.1:8080"),
        ("LLAMESH_BIND", " "),
        ("MAX_REPLICAS", "0"),
        ("MAX_REPLICAS", "many"),
        ("LLAMESH_INFERENCE_PORT", "70000"),
        ("LLAMESH_ENGINE_HTTP_THREADS", "1"),
        ("LLAMESH_MAX_BODY_BYTES", "0"),
        ("JWT_EXPIRY_HOURS", "inf"),
        ("JWT_EXPIRY_HOURS", "1e9"),
        ("LLAMESH_DRAIN_SECONDS", "nan"),
        ("LLAMESH_MEMORY_BYTES", "-1"),
        ("LLAMESH_MEMORY_RESERVE_BYTES", "-1"),
        ("JWT_ALGORITHM", "none"),
        ("JWT_SECRET", "short"),
        ("HF_ENDPOINT", "hf-mirror.example"),
        ("HF_ENDPOINT", "https://user:hidden@hf-mirror.example"),
        ("LLAMESH_HTTP_SOURCE_HOSTS", "localhost"),
        ("LLAMESH_HTTP_SOURCE_HOSTS", "a:80,http://localhost:80"),
        ("QUANT_SERVICE_URL", "quant:8300"),
        ("QUANT_SERVICE_URL", "http://quant:8300/?token=hidden"),
        ("LLAMESH_S3_SOURCES", '{"a": {"secret_key": "hidden"}}'),
        ("MINIO_BUCKET", "models/prod"),
        ("QUANT_MINIO_BUCKET", "b1"),
        ("LLAMESH_S3_SOURCES", '{"a": {"endpoint": "s3.example.com", "bucket": "hidden/prod"}}'),
        ("LLAMESH_S3_SOURCES", '{"b1": {"endpoint": "s3.example.com"}}'),
        ("LLAMESH_OLLAMA_REGISTRY", "registry.ollama.ai"),
        ("LLAMESH_OCI_REGISTRIES", "hidden"),
        ("LLAMESH_OCI_REGISTRIES", '{"https://ghcr.io": {"password": "hidden"}}'),
        ("LLAMESH_OCI_REGISTRIES", '{"ghcr.io": {"pasword": "hidden"}}'),
        ("LLAMESH_OCI_REGISTRIES", '{"ghcr.io": {"username": "hidden"}}'),
        ("LLAMESH_OCI_REGISTRIES", '{"ghcr.io": {"token_server": "https://ada:hidden@ghcr.io"}}'),
    ],
)
def test_it_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    (line,) = problems(caught.value)
    assert name in line
    assert "hidden" not in line


def test_an_empty_address_of_the_hub_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert Settings().hf_endpoint == "https://huggingface.co"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Compose files set an empty variable: `${LLAMESH_BIND:-}`."""
    alias = Settings.model_fields[name].validation_alias
    assert isinstance(alias, AliasChoices)
    monkeypatch.delenv(str(alias.choices[0]), raising=False)
    unset = getattr(Settings(), name)
    monkeypatch.setenv(str(alias.choices[0]), "")
    assert getattr(Settings(), name) == unset


@pytest.mark.parametrize("bind", ["localhost", "127.0.0.2", "0.0.0.0", "::", "[::1]"])
def test_an_address_to_listen_on_is_read(monkeypatch: pytest.MonkeyPatch, bind: str) -> None:
    monkeypatch.setenv("LLAMESH_BIND", bind)
    assert Settings().bind == bind


NUMBERS = {name: field for name, field in Settings.model_fields.items() if field.annotation in (int, float)}


def test_there_are_numbers() -> None:
    assert {"jwt_expiry_hours", "drain_seconds", "gateway_port", "member_patience_seconds"} <= set(NUMBERS)
    unseen = [
        name
        for name, field in Settings.model_fields.items()
        if name not in NUMBERS and {int, float} & set(typing.get_args(field.annotation))
    ]
    # A table of numbers: each has bounds of its own.
    assert unseen == ["inference_limits"]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_both_bounds(name: str) -> None:
    bounds = NUMBERS[name].metadata
    assert any(isinstance(bound, annotated_types.Ge | annotated_types.Gt) for bound in bounds)
    assert any(isinstance(bound, annotated_types.Le | annotated_types.Lt) for bound in bounds)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300"])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_endless(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    variable = NUMBERS[name].validation_alias.choices[0]  # type: ignore[union-attr]
    monkeypatch.setenv(str(variable), value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    (line,) = problems(caught.value)
    assert str(variable) in line


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("stop.items", "no value"),
        ("stop.things=3", "there is no limit 'stop.things'"),
        ("stop.items=0", "stop.items must be a whole number from 1 to 1024, not '0'"),
        ("stop.items=1025", "from 1 to 1024, not '1025'"),
        ("stop.items=-1", "from 1 to 1024"),
        ("stop.items=1e3", "from 1 to 1024"),
        ("stop.items=\u0663", "from 1 to 1024"),
        ("stop.items=", "from 1 to 1024"),
        ("stop.items=" + "9" * 5000, "from 1 to 1024"),
        ("stop.items=3,stop.items=4", "stop.items is given twice"),
        ("prompt.bytes=2048,grammar.depth=100000", "grammar.depth must be"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_named(monkeypatch: pytest.MonkeyPatch, value: str, words: str) -> None:
    monkeypatch.setenv("LLAMESH_INFERENCE_LIMITS", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    (line,) = problems(caught.value)
    assert line.startswith("setting LLAMESH_INFERENCE_LIMITS: ")
    assert words in line


def test_limits_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_INFERENCE_LIMITS", " stop.items = 3, prompt.bytes=4096,")
    assert Settings().inference_limits == {"stop.items": 3, "prompt.bytes": 4096}
    monkeypatch.delenv("LLAMESH_INFERENCE_LIMITS")
    assert Settings().inference_limits == {}


def test_every_default_is_inside_its_bounds() -> None:
    for name, limit in limits.table().items():
        assert limit.least <= limit.default <= limit.most, name
        assert limit.about.endswith("."), name
