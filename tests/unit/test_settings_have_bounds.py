"""A setting that cannot be meant is refused by name, before anything starts."""

import pytest
from pydantic import ValidationError

from llamesh.kit.config import Settings, problems


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
        ("MAX_REPLICAS", "0"),
        ("MAX_REPLICAS", "many"),
        ("LLAMESH_INFERENCE_PORT", "70000"),
        ("LLAMESH_ENGINE_HTTP_THREADS", "1"),
        ("LLAMESH_MAX_BODY_BYTES", "0"),
        ("JWT_ALGORITHM", "none"),
        ("JWT_SECRET", "short"),
    ],
)
def test_it_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    (line,) = problems(caught.value)
    assert name in line
