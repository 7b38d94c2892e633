"""The table of settings: name, type, bounds, default and description of each. `config_loading.py` reads them.

Names without prefix are those of the reference deployment, or of Hugging Face's own programs, and keep their meaning; all others begin
with LLAMESH_.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llamesh.addresses import LOCALHOST, read_bind
from llamesh.kit import limits
from llamesh.kit.config_sources import ENCODING
from llamesh.kit.config_types import BytesPerSecond, Directory, Host, HostAndPort, Origin, Port, Positive
from llamesh.kit.exposure import is_loopback
from llamesh.kit.postgres import read_address
from llamesh.kit.source_places import HUB, HubEndpoint, S3Places, WebAddress
from llamesh.locations import run_directory


def _named(name: str, default: object, description: str) -> Any:
    """Make a field that is read from the variable `name`, in upper or lower case."""
    return Field(default=default, validation_alias=AliasChoices(name, name.lower()), description=description)


MIN_ROTATION_DAYS = 1 / 24
"""Verifiers get each key pair until its last token has expired; a shorter rotation would make their number unbounded."""
MIN_SECRET_LENGTH = 32


class Settings(BaseSettings):
    """All settings. Raises pydantic.ValidationError, which names the setting, if a value is invalid."""

    # With populate_by_name, the name of a field is read from the environment too; the prefix prevents that HOME sets `home`.
    # Compose files set a variable that has no value to an empty text, which counts as unset.
    model_config = SettingsConfigDict(
        extra="ignore",
        env_prefix="LLAMESH_",
        env_file_encoding=ENCODING,
        env_ignore_empty=True,
        populate_by_name=True,
        frozen=True,
    )

    home: Directory = _named("LLAMESH_HOME", Path("~/.llamesh"), "Directory of all data of one machine.")
    bind: Annotated[str, AfterValidator(read_bind)] = _named(
        "LLAMESH_BIND",
        LOCALHOST,
        "Address that Envoy listens on. localhost means 127.0.0.1 and ::1, as far as this machine has them.",
    )
    public_host: str = _named(
        "LLAMESH_PUBLIC_HOST",
        "localhost",
        "Host name in the endpoints that users see. It is also one of LLAMESH_ALLOWED_HOSTS.",
    )
    tls_certificate: str = _named(
        "LLAMESH_TLS_CERTIFICATE",
        "",
        "File with the PEM certificate that all ports of Envoy show, the server's own first. Unset: no TLS.",
    )
    tls_key: str = _named("LLAMESH_TLS_KEY", "", "File with the PEM key of LLAMESH_TLS_CERTIFICATE, not encrypted.")
    inference_port: Port = _named("LLAMESH_INFERENCE_PORT", 8080, "Port of inference.")
    gateway_port: Port = _named("LLAMESH_GATEWAY_PORT", 8200, "Port of all public services.")
    contract_port: Port = _named("LLAMESH_CONTRACT_PORT", 8201, "Port of the contract service.")
    download_port: Port = _named("LLAMESH_DOWNLOAD_PORT", 8202, "Port of the download service.")
    quant: bool = _named("LLAMESH_QUANT", False, "Run the Quant service in this mesh, as `llamesh up --quant` does.")
    quant_port: Port = _named("LLAMESH_QUANT_PORT", 8300, "Port of the Quant service.")

    database_url: SecretStr | None = _named(
        "DATABASE_URL",
        None,
        "Address of PostgreSQL, postgresql://user:password@host:port/name; each service has its schema. Unset: SQLite files.",
    )
    database_seconds: Annotated[float, Field(ge=1, le=60)] = _named(
        "LLAMESH_DATABASE_SECONDS", 5.0, "Deadline of one database operation in seconds; twice that on SQLite."
    )
    minio_endpoint: str = _named(
        "MINIO_ENDPOINT", "", "host:port of an S3 server for models. Unset: a directory below LLAMESH_HOME."
    )
    minio_bucket: str = _named("MINIO_BUCKET", "inference-models", "Bucket for models.")
    minio_secure: bool = _named("MINIO_SECURE", False, "Use TLS to the S3 server.")
    minio_access_key: SecretStr = _named("MINIO_ACCESS_KEY", SecretStr(""), "S3 access key.")
    minio_secret_key: SecretStr = _named("MINIO_SECRET_KEY", SecretStr(""), "S3 secret key.")
    quant_service_url: WebAddress = _named(
        "QUANT_SERVICE_URL", "", "Address of the Quant service, such as http://quant:8300."
    )
    quant_service_token: SecretStr = _named(
        "QUANT_SERVICE_TOKEN", SecretStr(""), "Bearer token for the Quant service, sent to QUANT_SERVICE_URL only."
    )
    quant_minio_endpoint: str = _named(
        "QUANT_MINIO_ENDPOINT", "", "host:port of the S3 server of the Quant service. Unset: that of MINIO_ENDPOINT."
    )
    quant_minio_bucket: str = _named("QUANT_MINIO_BUCKET", "llm-models", "Bucket of the Quant service.")
    quant_minio_secure: bool = _named("QUANT_MINIO_SECURE", False, "Use TLS to QUANT_MINIO_ENDPOINT.")
    quant_minio_access_key: SecretStr = _named("QUANT_MINIO_ACCESS_KEY", SecretStr(""), "Its S3 access key.")
    quant_minio_secret_key: SecretStr = _named("QUANT_MINIO_SECRET_KEY", SecretStr(""), "Its S3 secret key.")
    llama_quantize_bin: str = _named(
        "LLAMA_QUANTIZE_BIN", "", "Path of llama-quantize. Unset: the package cyllama (extra `quant`)."
    )

    jwt_secret: SecretStr | None = _named(
        "JWT_SECRET",
        None,
        "Secret for HS256, at least 32 characters. Unset: created once and stored in LLAMESH_HOME/secrets.",
    )
    jwt_algorithm: Literal["HS256", "EdDSA", "RS256"] = _named("JWT_ALGORITHM", "HS256", "Algorithm that signs tokens.")
    jwt_expiry_hours: Annotated[Positive, Field(le=87_600)] = _named(
        "JWT_EXPIRY_HOURS", 24.0, "Lifetime of login tokens in hours; at most ten years."
    )
    jwt_rotation_days: Annotated[float, Field(ge=MIN_ROTATION_DAYS, le=3650)] = _named(
        "LLAMESH_JWT_ROTATION_DAYS",
        30.0,
        "Age in days at which EdDSA and RS256 keys are replaced; at least one hour (0.042).",
    )
    admin_password: SecretStr | None = _named(
        "LLAMESH_ADMIN_PASSWORD",
        None,
        "First password of the user admin. Unset: admin, which is refused if a setting says that other machines reach the mesh.",
    )

    max_replicas: Annotated[int, Field(ge=1, le=1000)] = _named("MAX_REPLICAS", 5, "Most replicas of a server.")
    allowed_namespaces: Annotated[tuple[str, ...], NoDecode] = _named(
        "ALLOWED_NAMESPACES", ("default", "inference"), "Allowed namespaces of servers."
    )
    anonymous_inference: Literal["auto", "allow", "deny"] = _named(
        "LLAMESH_ANONYMOUS_INFERENCE",
        "auto",
        "Inference without a credential. auto: allowed if Envoy listens on a loopback address and no proxy is trusted.",
    )
    allowed_origins: Annotated[tuple[Origin, ...], NoDecode] = _named(
        "LLAMESH_ALLOWED_ORIGINS",
        (),
        "Origins of web pages that may use the mesh from a browser, such as http://localhost:5173; https://*.example.com: all below it.",
    )
    allowed_hosts: Annotated[tuple[Host, ...], NoDecode] = _named(
        "LLAMESH_ALLOWED_HOSTS",
        (),
        "Host names besides loopback and LLAMESH_PUBLIC_HOST that accept calls without a token: anonymous inference and logins.",
    )
    trusted_proxies: Annotated[int, Field(ge=0, le=16)] = _named(
        "LLAMESH_TRUSTED_PROXIES",
        0,
        "Number of proxies in front of Envoy that append to x-forwarded-for. Failed logins are counted by the address that the first"
        " of them saw. 0: by the address that connects to Envoy.",
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = _named(
        "LLAMESH_MAX_BODY_BYTES", 16 * 1024 * 1024, "Largest body of an inference request in bytes."
    )
    inference_limits: Annotated[dict[str, int], NoDecode] = _named(
        "LLAMESH_INFERENCE_LIMITS",
        {},
        "Limits of inference requests other than the defaults, as name=value,...; docs/reference/limits.md lists them.",
    )
    reflection: bool = _named("LLAMESH_REFLECTION", True, "Serve gRPC reflection, without a token.")

    import_dirs: Annotated[tuple[Directory, ...], NoDecode] = _named(
        "LLAMESH_IMPORT_DIRS", (), "Folders for file: sources, besides LLAMESH_HOME/import."
    )
    source_hosts: Annotated[tuple[str, ...], NoDecode] = _named(
        "LLAMESH_SOURCE_HOSTS", (), "Hosts of https sources that are allowed although their address is private."
    )
    http_source_hosts: Annotated[tuple[HostAndPort, ...], NoDecode] = _named(
        "LLAMESH_HTTP_SOURCE_HOSTS", (), "host:port pairs of sources that are allowed without TLS, private or not."
    )

    download_part_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 30)] = _named(
        "LLAMESH_DOWNLOAD_PART_BYTES",
        16 * 1024 * 1024,
        "Size of the parts in which a model is fetched, in bytes. A source without ranges is read as one stream.",
    )
    download_parallel_parts: Annotated[int, Field(ge=1, le=32)] = _named(
        "LLAMESH_DOWNLOAD_PARALLEL_PARTS",
        4,
        "Parts of one model that are fetched at the same time; under a limit of bandwidth, no more than it fills in a second. At most this "
        "many are fetched again after a crash.",
    )
    download_bytes_per_second: BytesPerSecond = _named(
        "LLAMESH_DOWNLOAD_BYTES_PER_SECOND",
        0,
        "Most bytes per second that all downloads of this process together read, in equal shares; files of this machine do not count."
        " 0: no limit; the least is 65536.",
    )
    download_paused_hours: Annotated[Positive, Field(le=87_600)] = _named(
        "LLAMESH_DOWNLOAD_PAUSED_HOURS",
        168.0,
        "Hours for which the parts of a paused download are kept. After that the download stays paused, and begins anew once resumed.",
    )
    hf_endpoint: HubEndpoint = _named(
        "HF_ENDPOINT", HUB, "Address of the Hugging Face Hub or of a mirror, for hf: sources."
    )
    hf_token: SecretStr = _named(
        "HF_TOKEN", SecretStr(""), "Token for gated and private repositories, sent to HF_ENDPOINT only."
    )
    s3_sources: Annotated[S3Places, NoDecode] = _named(
        "LLAMESH_S3_SOURCES",
        {},
        'Places that s3://NAME/KEY reads, as JSON: {"NAME": {"endpoint": "host:port", "bucket": "...", "access_key": "...",'
        ' "secret_key": "...", "secure": true, "region": "us-east-1"}}.',
    )

    llama_server_bin: str = _named(
        "LLAMA_SERVER_BIN", "", "Path of llama-server. Unset: the one on PATH, else the embedded library."
    )
    engine_http_threads: Annotated[int, Field(ge=4, le=4096)] = _named(
        "LLAMESH_ENGINE_HTTP_THREADS", 64, "HTTP threads of an engine, and most connections of Envoy to it."
    )
    engine_stall_seconds: Annotated[float, Field(ge=5, le=86400)] = _named(
        "LLAMESH_ENGINE_STALL_SECONDS", 300.0, "Seconds without progress that end an engine while its speed is unknown."
    )
    memory_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = _named(
        "LLAMESH_MEMORY_BYTES",
        0,
        "Memory in bytes that all engines together may use. 0: that of the machine or container.",
    )
    memory_reserve_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = _named(
        "LLAMESH_MEMORY_RESERVE_BYTES", 256 * 1024 * 1024, "Memory in bytes that engines never get."
    )
    concurrent_starts: Annotated[int, Field(ge=0, le=256)] = _named(
        "LLAMESH_CONCURRENT_STARTS", 0, "Engines that may start at once. 0: one for each usable core, at most 16."
    )
    drain_seconds: Annotated[float, Field(ge=0, le=86_400)] = _named(
        "LLAMESH_DRAIN_SECONDS", 20.0, "Seconds that a stopping process gives calls to finish."
    )
    member_patience_seconds: Annotated[float, Field(ge=1, le=3600)] = _named(
        "LLAMESH_MEMBER_PATIENCE_SECONDS",
        20.0,
        "Seconds without an answer to a liveness probe after which Envoy, a service or the controller is killed and restarted;"
        " 15 times as long until it listens, because a start may migrate a database.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _named(
        "LLAMESH_LOG_LEVEL", "info", "Lowest level that is logged."
    )

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
        """Split lists at commas, as in the reference deployment."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("inference_limits", mode="before")
    @classmethod
    def _known_limits(cls, value: object) -> object:
        return limits.parse(value) if isinstance(value, str) else value

    @field_validator("jwt_secret", mode="after")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < MIN_SECRET_LENGTH:
            raise ValueError(f"it needs at least {MIN_SECRET_LENGTH} characters; make one: openssl rand -base64 48")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _known_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value():
            read_address(value.get_secret_value())
        return value

    @cached_property
    def run_dir(self) -> Path:
        """Directory of sockets: LLAMESH_HOME/run, or a short path if that exceeds the limit of Unix sockets."""
        return run_directory(self.home, os.environ)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach Envoy."""
        return is_loopback(self.bind)

    @property
    def tls(self) -> bool:
        """Whether Envoy speaks TLS. The supervisor refuses one of the two files without the other."""
        return bool(self.tls_certificate)

    @property
    def anonymous_allowed(self) -> bool:
        """Whether inference needs no credential."""
        closed = self.loopback and not self.trusted_proxies
        return self.anonymous_inference == "allow" or (self.anonymous_inference == "auto" and closed)

    def socket(self, service: str) -> Path:
        """Return the Unix socket of a service on this machine."""
        return self.run_dir / f"{service}.sock"

    def endpoint(self, server_uuid: str) -> str:
        """Return the address for requests to a server."""
        return f"{'https' if self.tls else 'http'}://{self.public_host}:{self.inference_port}/{server_uuid}/v1"
