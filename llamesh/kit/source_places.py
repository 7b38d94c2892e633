"""Reads the places of models from settings: addresses of web services, named places of S3 servers, and registries, with credentials.

Invariant: no message shows a value of a place, because it may be a secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationError

from llamesh.registry_addresses import DOCKER_HUB, DOCKER_HUB_HOSTS

HUB = "https://huggingface.co"
"""The Hugging Face Hub itself."""
OLLAMA = "https://registry.ollama.ai"
"""Ollama's registry itself."""
REGISTRY_OF = {"docker.io": "registry-1.docker.io"}
"""Host of a registry that has another name in addresses."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,61}[A-Za-z0-9]", re.ASCII)
_NO_BUCKET = re.compile(r"\.\.|\.-|-\.|(?:-s3alias|--ol-s3)$|^[0-9]{1,3}(?:\.[0-9]{1,3}){3}$", re.ASCII)
_ENDPOINT = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_EXAMPLE = '{"models": {"endpoint": "s3.example.com", "access_key": "...", "secret_key": "..."}}'

_REGISTRY_EXAMPLE = '{"registry.example:5000": {"username": "...", "password": "..."}}'
_Place = TypeVar("_Place", bound=BaseModel)


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


class StorePlace(S3Place):
    """A bucket in which this mesh keeps models. It knows the names of its settings, for messages."""

    server_settings: str = "MINIO_"
    """Begin of the names of the settings with the address and the keys of its server."""
    bucket_setting: str = "MINIO_BUCKET"

    @property
    def settings(self) -> str:
        """Names of the settings with its address and its keys."""
        return ", ".join(f"{self.server_settings}{name}" for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))


class RegistryPlace(BaseModel):
    """A registry, with credentials to read it. Without a password, public repositories are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    username: str = ""
    password: SecretStr = SecretStr("")
    """A password or an access token, which goes to the registry and to `token_server` only."""
    token_server: str = ""
    """Address of the service that gives tokens for the registry, if it is on another host."""
    secure: bool = True
    """Whether TLS is used."""


def read_places(text: str) -> dict[str, S3Place]:
    """Read LLAMESH_S3_SOURCES, a JSON object of places by name; ValueError with the remedy, without any value."""
    return {name: _place(name, place) for name, place in _object(text, _EXAMPLE).items()}


def read_registries(text: str) -> dict[str, RegistryPlace]:
    """Read LLAMESH_OCI_REGISTRIES, a JSON object of registries by host; ValueError with the remedy, without any value."""
    found: dict[str, RegistryPlace] = {}
    for name, place in _object(text, _REGISTRY_EXAMPLE).items():
        host = DOCKER_HUB if name.lower() in DOCKER_HUB_HOSTS else name.lower()
        if host in found:
            raise ValueError(f"the registry {host} is named twice: remove {name}")
        found[host] = _registry(name, place)
    return found


def _object(text: str, example: str) -> Mapping[str, object]:
    try:
        given = json.loads(text) if text.strip() else {}
    except ValueError:
        raise ValueError(f"it is not JSON such as {example}") from None
    if not isinstance(given, dict):
        raise ValueError(f"it is not a JSON object such as {example}")
    return given


def _validated(kind: type[_Place], what: str, given: object) -> _Place:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(map(str, item["loc"])) or what for item in error.errors()}))
        fields = ", ".join(kind.model_fields)
        raise ValueError(f"{what} has a wrong or missing field: {wrong}; it may have {fields}") from None


def _place(name: str, given: object) -> S3Place:
    if not _NAME.fullmatch(name):
        raise ValueError("the name of a place has lower-case letters, digits, dots and hyphens only, at most 63")
    place = _validated(S3Place, f"the place {name}", given)
    if not _ENDPOINT.fullmatch(place.endpoint):
        raise ValueError(f"the endpoint of the place {name} is not host or host:port")
    if bool(place.access_key.get_secret_value()) != bool(place.secret_key.get_secret_value()):
        raise ValueError(f"the place {name} needs both access_key and secret_key, or neither")
    try:
        return place.model_copy(update={"bucket": read_bucket(place.bucket or name)})
    except ValueError as error:
        raise ValueError(f"the bucket of the place {name}: {error}") from None


def _registry(name: str, given: object) -> RegistryPlace:
    if not _ENDPOINT.fullmatch(name):
        raise ValueError("the name of a registry is its host or host:port")
    place = _validated(RegistryPlace, f"the registry {name}", given)
    if place.username and not place.password.get_secret_value():
        raise ValueError(f"the registry {name} needs a password with its username")
    try:
        server = read_web_address(place.token_server) if place.token_server else ""
    except ValueError as error:
        raise ValueError(f"the token_server of the registry {name}: {error}") from None
    return place.model_copy(update={"token_server": server})


def read_bucket(text: str) -> str:
    """Read the name of a bucket; ValueError with the rule unless the S3 client takes it. It takes old names with capitals too."""
    if not _BUCKET.fullmatch(text) or _NO_BUCKET.search(text):
        raise ValueError(
            "it is not the name of a bucket, which has 3 to 63 letters, digits, dots and hyphens, begins and ends with a letter or a digit,"
            " and is no IP address"
        )
    return text


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


def _read_registries_if_text(value: object) -> object:
    return read_registries(value) if isinstance(value, str) else value


S3Places = Annotated[dict[str, S3Place], BeforeValidator(_read_if_text)]
"""Type of a setting with places of S3 servers by name."""
Registries = Annotated[dict[str, RegistryPlace], BeforeValidator(_read_registries_if_text)]
"""Type of a setting with registries by host."""
BucketName = Annotated[str, AfterValidator(read_bucket)]
"""Type of a setting with the name of a bucket."""
WebAddress = Annotated[str, AfterValidator(lambda text: read_web_address(text) if text else "")]
"""Type of a setting with the address of a web service; empty: none."""
HubEndpoint = Annotated[str, AfterValidator(lambda text: read_web_address(text or HUB))]
"""Type of HF_ENDPOINT. Other programs read this variable too, and treat an empty one as the default."""
OllamaRegistry = Annotated[str, AfterValidator(lambda text: read_web_address(text or OLLAMA))]
"""Type of the setting with the address of Ollama's registry."""
