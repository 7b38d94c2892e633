"""Reads the places of models from settings: addresses of web services, and named places of S3 servers with their credentials.

Invariant: no message shows a value of a place, because it may be a secret.
"""

from __future__ import annotations

import json
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationError

HUB = "https://huggingface.co"
"""The Hugging Face Hub itself."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_ENDPOINT = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_EXAMPLE = '{"models": {"endpoint": "s3.example.com", "access_key": "...", "secret_key": "..."}}'


class S3Place(BaseModel):
    """A bucket of an S3 server, with credentials to read it. Without an access key, requests are not signed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    """host or host:port."""
    bucket: str = ""
    """Name of the bucket; empty if it is the name of the place."""
    access_key: SecretStr = SecretStr("")
    secret_key: SecretStr = SecretStr("")
    secure: bool = True
    region: str = "us-east-1"


def read_places(text: str) -> dict[str, S3Place]:
    """Read LLAMESH_S3_SOURCES, a JSON object of places by name; ValueError with the remedy, without any value."""
    try:
        given = json.loads(text) if text.strip() else {}
    except ValueError:
        raise ValueError(f"it is not JSON such as {_EXAMPLE}") from None
    if not isinstance(given, dict):
        raise ValueError(f"it is not a JSON object such as {_EXAMPLE}")
    return {name: _place(name, place) for name, place in given.items()}


def _place(name: str, given: object) -> S3Place:
    if not _NAME.fullmatch(name):
        raise ValueError("the name of a place has lower-case letters, digits, dots and hyphens only, at most 63")
    try:
        place = S3Place.model_validate(given)
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(map(str, item["loc"])) or "the place" for item in error.errors()}))
        fields = ", ".join(S3Place.model_fields)
        raise ValueError(f"the place {name} has a wrong or missing field: {wrong}; it may have {fields}") from None
    if not _ENDPOINT.fullmatch(place.endpoint):
        raise ValueError(f"the endpoint of the place {name} is not host or host:port")
    if bool(place.access_key.get_secret_value()) != bool(place.secret_key.get_secret_value()):
        raise ValueError(f"the place {name} needs both access_key and secret_key, or neither")
    return place.model_copy(update={"bucket": place.bucket or name})


def read_web_address(text: str) -> str:
    """Read the address of a web service; ValueError with the remedy unless it is http or https without credentials and query."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment or any(part.isspace() for part in text):
        raise ValueError("it is not an address such as https://host:port, without user name and query")
    return text.rstrip("/")


def _read_if_text(value: object) -> object:
    return read_places(value) if isinstance(value, str) else value


S3Places = Annotated[dict[str, S3Place], BeforeValidator(_read_if_text)]
"""Type of a setting with places of S3 servers by name."""
WebAddress = Annotated[str, AfterValidator(lambda text: read_web_address(text) if text else "")]
"""Type of a setting with the address of a web service; empty: none."""
HubEndpoint = Annotated[str, AfterValidator(lambda text: read_web_address(text or HUB))]
"""Type of HF_ENDPOINT. Other programs read this variable too, and treat an empty one as the default."""
