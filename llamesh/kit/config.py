"""The table of settings: name, type, bounds, default and description of each. `config_loading.py` reads them.

Names without prefix are those of the reference deployment and keep their meaning; all others begin with LLAMESH_.
"""

from __future__ import annotations

import os
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llamesh.addresses import LOCALHOST
from llamesh.kit import limits
from llamesh.kit.config_sources import ENCODING
from llamesh.kit.origins import read_host, read_origin
from llamesh.kit.postgres import read_address
from llamesh.locations import run_directory


def _named(name: str, default: object, description: str) -> Any:
    """Make a field that is read from the variable `name` in any case."""
    return Field(default=default, validation_alias=AliasChoices(name, name.lower()), description=description)


Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0)]

MIN_ROTATION_DAYS = 1 / 24
"""Every key pair is named to verifiers until its last token has ended: replaced too often, they would be without number."""


class Settings(BaseSettings):
    """Everything that can be set. Raises pydantic.ValidationError, naming the setting, where a value is wrong."""

    # With populate_by_name the variable of a field's own name is read too: the prefix keeps HOME from being our home.
    model_config = SettingsConfigDict(
        extra="ignore", env_prefix="LLAMESH_", env_file_encoding=ENCODING, populate_by_name=True, frozen=True
    )

    home: Path = _named("LLAMESH_HOME", Path("~/.llamesh"), "Directory of all data of one machine.")
    bind: str = _named(
        "LLAMESH_BIND",
        LOCALHOST,
        "Address that Envoy listens on; localhost: 127.0.0.1 and ::1, as far as this machine has them.",
    )
    public_host: str = _named(
        "LLAMESH_PUBLIC_HOST",
        "localhost",
        "Host name in the endpoints that are shown, and one of LLAMESH_ALLOWED_HOSTS.",
    )
    tls_certificate: str = _named(
        "LLAMESH_TLS_CERTIFICATE",
        "",
        "File with the PEM certificate that all ports of Envoy show, the server's own first. Unset: no TLS.",
    )
    tls_key: str = _named("LLAMESH_TLS_KEY", "", "File with the PEM key of LLAMESH_TLS_CERTIFICATE, not encrypted.")
    inference_port: Port = _named("LLAMESH_INFERENCE_PORT", 8080, "Envoy: inference.")
    gateway_port: Port = _named("LLAMESH_GATEWAY_PORT", 8200, "Envoy: all public services.")
    contract_port: Port = _named("LLAMESH_CONTRACT_PORT", 8201, "Envoy: the contract service.")
    download_port: Port = _named("LLAMESH_DOWNLOAD_PORT", 8202, "Envoy: the download service.")

    database_url: SecretStr | None = _named(
        "DATABASE_URL",
        None,
        "postgresql://user:password@host:port/name, a schema for each service. Unset: SQLite files.",
    )
    database_seconds: Annotated[float, Field(ge=1, le=60)] = _named(
        "LLAMESH_DATABASE_SECONDS", 5.0, "Longest operation on the database, in seconds; on SQLite twice that."
    )
    minio_endpoint: str = _named("MINIO_ENDPOINT", "", "host:port of an S3 server. Unset: a directory.")
    minio_bucket: str = _named("MINIO_BUCKET", "inference-models", "Bucket of the models.")
    minio_secure: bool = _named("MINIO_SECURE", False, "Speak TLS to the S3 server.")
    minio_access_key: SecretStr = _named("MINIO_ACCESS_KEY", SecretStr(""), "S3 access key.")
    minio_secret_key: SecretStr = _named("MINIO_SECRET_KEY", SecretStr(""), "S3 secret key.")
    quant_service_url: str = _named("QUANT_SERVICE_URL", "", "Address of the Quant service.")

    jwt_secret: SecretStr | None = _named(
        "JWT_SECRET",
        None,
        "Secret for HS256, at least 32 characters. Unset: made once and kept in LLAMESH_HOME/secrets.",
    )
    jwt_algorithm: Literal["HS256", "EdDSA", "RS256"] = _named("JWT_ALGORITHM", "HS256", "How tokens are signed.")
    jwt_expiry_hours: Annotated[Positive, Field(le=87_600)] = _named(
        "JWT_EXPIRY_HOURS", 24.0, "Lifetime of login tokens, in hours; ten years at most."
    )
    jwt_rotation_days: Annotated[float, Field(ge=MIN_ROTATION_DAYS, le=3650)] = _named(
        "LLAMESH_JWT_ROTATION_DAYS",
        30.0,
        "Age at which EdDSA and RS256 keys are replaced, in days; an hour (0.042) at least.",
    )
    admin_password: SecretStr | None = _named(
        "LLAMESH_ADMIN_PASSWORD", None, "First password of the user admin. Unset: admin, on a loopback address only."
    )

    max_replicas: Annotated[int, Field(ge=1, le=1000)] = _named("MAX_REPLICAS", 5, "Most replicas of one server.")
    allowed_namespaces: Annotated[tuple[str, ...], NoDecode] = _named(
        "ALLOWED_NAMESPACES", ("default", "inference"), "Namespaces that servers may be declared in."
    )
    anonymous_inference: Literal["auto", "allow", "deny"] = _named(
        "LLAMESH_ANONYMOUS_INFERENCE", "auto", "Inference without a credential; auto: where Envoy is bound to loopback."
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = _named(
        "LLAMESH_ALLOWED_ORIGINS",
        (),
        "Origins of web pages that may use the mesh from a browser, such as http://localhost:5173; https://*.example.com: all below it.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = _named(
        "LLAMESH_ALLOWED_HOSTS",
        (),
        "Host names, beside loopback ones and LLAMESH_PUBLIC_HOST, under which calls need no token: anonymous inference and logins.",
    )
    trusted_proxies: Annotated[int, Field(ge=0, le=16)] = _named(
        "LLAMESH_TRUSTED_PROXIES",
        0,
        "Proxies in front of Envoy, each of which appends to x-forwarded-for whom it got a request from: failed logins are counted by the"
        " address that the first of them saw. 0: by the address that connects to Envoy.",
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = _named(
        "LLAMESH_MAX_BODY_BYTES", 16 * 1024 * 1024, "Longest body of an inference request."
    )
    inference_limits: Annotated[dict[str, int], NoDecode] = _named(
        "LLAMESH_INFERENCE_LIMITS",
        {},
        "Limits of inference requests that differ from the defaults, as name=value,...: docs/reference/limits.md lists them.",
    )
    reflection: bool = _named("LLAMESH_REFLECTION", True, "gRPC server reflection, without a token.")

    import_dirs: Annotated[tuple[Path, ...], NoDecode] = _named(
        "LLAMESH_IMPORT_DIRS", (), "Folders that file: sources may lie in, beside LLAMESH_HOME/import."
    )
    source_hosts: Annotated[tuple[str, ...], NoDecode] = _named(
        "LLAMESH_SOURCE_HOSTS", (), "Hosts that https sources may have although their address is private."
    )
    http_source_hosts: Annotated[tuple[str, ...], NoDecode] = _named(
        "LLAMESH_HTTP_SOURCE_HOSTS", (), "host:port pairs that may be read without TLS, private or not."
    )

    llama_server_bin: str = _named(
        "LLAMA_SERVER_BIN", "", "llama-server to use; unset: the one on PATH, else the embedded library."
    )
    engine_http_threads: Annotated[int, Field(ge=4, le=4096)] = _named(
        "LLAMESH_ENGINE_HTTP_THREADS", 64, "HTTP threads of an engine, and Envoy's connections to it."
    )
    engine_stall_seconds: Annotated[float, Field(ge=5, le=86400)] = _named(
        "LLAMESH_ENGINE_STALL_SECONDS",
        300.0,
        "How long an engine whose speed is not known yet may work without progress before it is ended, in seconds.",
    )
    memory_reserve_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = _named(
        "LLAMESH_MEMORY_RESERVE_BYTES", 256 * 1024 * 1024, "Memory never promised to engines."
    )
    concurrent_starts: Annotated[int, Field(ge=0, le=256)] = _named(
        "LLAMESH_CONCURRENT_STARTS",
        0,
        "Engines that may start at the same time; 0: one for each usable core, at most 16.",
    )
    drain_seconds: Annotated[float, Field(ge=0, le=86_400)] = _named(
        "LLAMESH_DRAIN_SECONDS", 20.0, "How long a stopping process lets calls finish."
    )
    member_patience_seconds: Annotated[float, Field(ge=1, le=3600)] = _named(
        "LLAMESH_MEMBER_PATIENCE_SECONDS",
        20.0,
        "How long Envoy, a service or the controller may leave liveness probes unanswered before it is killed and restarted;"
        " 15 times as long until it listens, since a start may migrate a database.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _named("LLAMESH_LOG_LEVEL", "info", "Least level logged.")

    @field_validator(
        "allowed_namespaces",
        "allowed_origins",
        "allowed_hosts",
        "import_dirs",
        "source_hosts",
        "http_source_hosts",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        """Read lists as the reference deployment writes them: separated by commas."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(read_origin, value))

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(read_host, value))

    @field_validator("inference_limits", mode="before")
    @classmethod
    def _known_limits(cls, value: object) -> object:
        return limits.parse(value) if isinstance(value, str) else value

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("jwt_secret", mode="after")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("it needs at least 32 characters; make one with: openssl rand -base64 48")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _known_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value():
            read_address(value.get_secret_value())
        return value

    @cached_property
    def run_dir(self) -> Path:
        """Directory of sockets: LLAMESH_HOME/run, or a short one where that would exceed the limit of Unix sockets."""
        return run_directory(self.home, os.environ)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach Envoy."""
        try:
            return ip_address(self.bind.strip("[]")).is_loopback
        except ValueError:
            return self.bind == LOCALHOST

    @property
    def tls(self) -> bool:
        """Whether Envoy speaks TLS. The supervisor refuses one of the two files without the other."""
        return bool(self.tls_certificate)

    @property
    def anonymous_allowed(self) -> bool:
        """Whether inference needs no credential."""
        return self.anonymous_inference == "allow" or (self.anonymous_inference == "auto" and self.loopback)

    def socket(self, service: str) -> Path:
        """Unix socket of a service of this machine."""
        return self.run_dir / f"{service}.sock"

    def endpoint(self, server_uuid: str) -> str:
        """Address that a server's requests are sent to."""
        return f"{'https' if self.tls else 'http'}://{self.public_host}:{self.inference_port}/{server_uuid}/v1"
