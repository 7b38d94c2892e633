"""The table of settings: name, type, bounds, default and description of each. `config_models.py` has those of
models, `config_quant.py` those of the engine of quantisation jobs, `config_kubernetes.py` those of engines on Kubernetes,
`config_members.py` those of members on TCP; `config_loading.py` reads all.

Names without prefix are those of the reference deployment, or of Hugging Face's own programs, and keep their meaning; all others begin
with LLAMESH_.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from llamesh.addresses import LOCALHOST, read_bind
from llamesh.home_files import MIN_SECRET_LENGTH
from llamesh.kit import limits
from llamesh.kit.config_kubernetes import KubernetesSettings
from llamesh.kit.config_members import MemberSettings
from llamesh.kit.config_models import ModelSettings
from llamesh.kit.config_quant import QuantEngineSettings
from llamesh.kit.config_sources import ENCODING
from llamesh.kit.config_types import Directory, Host, Origin, Port, Positive, Split, named
from llamesh.kit.exposure import is_loopback
from llamesh.kit.postgres import read_address
from llamesh.locations import run_directory

MIN_ROTATION_DAYS = 1 / 24
"""Verifiers get each key pair until its last token has expired; a shorter rotation would make their number unbounded."""


class Settings(ModelSettings, QuantEngineSettings, KubernetesSettings, MemberSettings):
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

    home: Directory = named("LLAMESH_HOME", Path("~/.llamesh"), "Directory of all data of one machine.")
    bind: Annotated[str, AfterValidator(read_bind)] = named(
        "LLAMESH_BIND",
        LOCALHOST,
        "Address that Envoy listens on. localhost means 127.0.0.1 and ::1, as far as this machine has them.",
    )
    public_host: str = named(
        "LLAMESH_PUBLIC_HOST",
        "localhost",
        "Host name in the endpoints that users see. It is also one of LLAMESH_ALLOWED_HOSTS.",
    )
    tls_certificate: str = named(
        "LLAMESH_TLS_CERTIFICATE",
        "",
        "File with the PEM certificate that all ports of Envoy show, the server's own first. Unset: no TLS.",
    )
    tls_key: str = named("LLAMESH_TLS_KEY", "", "File with the PEM key of LLAMESH_TLS_CERTIFICATE, not encrypted.")
    inference_port: Port = named("LLAMESH_INFERENCE_PORT", 8080, "Port of inference.")
    gateway_port: Port = named("LLAMESH_GATEWAY_PORT", 8200, "Port of all public services.")
    contract_port: Port = named("LLAMESH_CONTRACT_PORT", 8201, "Port of the contract service.")
    download_port: Port = named("LLAMESH_DOWNLOAD_PORT", 8202, "Port of the download service.")
    quant: bool = named("LLAMESH_QUANT", False, "Run the Quant service in this mesh, as `llamesh up --quant` does.")
    quant_port: Port = named("LLAMESH_QUANT_PORT", 8300, "Port of the Quant service.")

    database_url: SecretStr | None = named(
        "DATABASE_URL",
        None,
        "Address of PostgreSQL, postgresql://user:password@host:port/name; each service has its schema. Unset: SQLite files.",
    )
    database_seconds: Annotated[float, Field(ge=1, le=60)] = named(
        "LLAMESH_DATABASE_SECONDS", 5.0, "Deadline of one database operation in seconds; twice that on SQLite."
    )
    jwt_secret: SecretStr | None = named(
        "JWT_SECRET",
        None,
        "Secret for HS256, at least 32 characters. Unset: created once and stored in LLAMESH_HOME/secrets.",
    )
    jwt_algorithm: Literal["HS256", "EdDSA", "RS256"] = named("JWT_ALGORITHM", "HS256", "Algorithm that signs tokens.")
    jwt_expiry_hours: Annotated[Positive, Field(le=87_600)] = named(
        "JWT_EXPIRY_HOURS", 24.0, "Lifetime of login tokens in hours; at most ten years."
    )
    jwt_rotation_days: Annotated[float, Field(ge=MIN_ROTATION_DAYS, le=3650)] = named(
        "LLAMESH_JWT_ROTATION_DAYS",
        30.0,
        "Age in days at which EdDSA and RS256 keys are replaced; at least one hour (0.042).",
    )
    admin_password: SecretStr | None = named(
        "LLAMESH_ADMIN_PASSWORD",
        None,
        "First password of the user admin. Unset: admin, which is refused if a setting says that other machines reach the mesh.",
    )

    max_replicas: Annotated[int, Field(ge=1, le=1000)] = named("MAX_REPLICAS", 5, "Most replicas of a server.")
    allowed_namespaces: Annotated[tuple[str, ...], NoDecode, Split] = named(
        "ALLOWED_NAMESPACES", ("default", "inference"), "Allowed namespaces of servers."
    )
    anonymous_inference: Literal["auto", "allow", "deny"] = named(
        "LLAMESH_ANONYMOUS_INFERENCE",
        "auto",
        "Inference without a credential. auto: allowed if Envoy listens on a loopback address and no proxy is trusted.",
    )
    allowed_origins: Annotated[tuple[Origin, ...], NoDecode, Split] = named(
        "LLAMESH_ALLOWED_ORIGINS",
        (),
        "Origins of web pages that may use the mesh from a browser, such as http://localhost:5173; https://*.example.com: all below it.",
    )
    allowed_hosts: Annotated[tuple[Host, ...], NoDecode, Split] = named(
        "LLAMESH_ALLOWED_HOSTS",
        (),
        "Host names besides loopback and LLAMESH_PUBLIC_HOST that accept calls without a token: anonymous inference and logins.",
    )
    trusted_proxies: Annotated[int, Field(ge=0, le=16)] = named(
        "LLAMESH_TRUSTED_PROXIES",
        0,
        "Number of proxies in front of Envoy that append to x-forwarded-for. Failed logins are counted by the address that the first"
        " of them saw. 0: by the address that connects to Envoy.",
    )
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = named(
        "LLAMESH_MAX_BODY_BYTES", 16 * 1024 * 1024, "Largest body of an inference request in bytes."
    )
    inference_limits: Annotated[dict[str, int], NoDecode] = named(
        "LLAMESH_INFERENCE_LIMITS",
        {},
        "Limits of inference requests other than the defaults, as name=value,...; docs/reference/limits.md lists them.",
    )
    reflection: bool = named("LLAMESH_REFLECTION", True, "Serve gRPC reflection, without a token.")

    llama_server_bin: str = named(
        "LLAMA_SERVER_BIN", "", "Path of llama-server. Unset: the one on PATH, else the embedded library."
    )
    engine_http_threads: Annotated[int, Field(ge=4, le=4096)] = named(
        "LLAMESH_ENGINE_HTTP_THREADS", 64, "HTTP threads of an engine, and most connections of Envoy to it."
    )
    engine_stall_seconds: Annotated[float, Field(ge=5, le=86400)] = named(
        "LLAMESH_ENGINE_STALL_SECONDS", 300.0, "Seconds without progress that end an engine while its speed is unknown."
    )
    memory_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = named(
        "LLAMESH_MEMORY_BYTES",
        0,
        "Memory in bytes that all engines together may use. 0: that of the machine or container.",
    )
    memory_reserve_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = named(
        "LLAMESH_MEMORY_RESERVE_BYTES", 256 * 1024 * 1024, "Memory in bytes that engines never get."
    )
    concurrent_starts: Annotated[int, Field(ge=0, le=256)] = named(
        "LLAMESH_CONCURRENT_STARTS", 0, "Engines that may start at once. 0: one for each usable core, at most 16."
    )
    drain_seconds: Annotated[float, Field(ge=0, le=86_400)] = named(
        "LLAMESH_DRAIN_SECONDS", 20.0, "Seconds that a stopping process gives calls to finish."
    )
    member_patience_seconds: Annotated[float, Field(ge=1, le=3600)] = named(
        "LLAMESH_MEMBER_PATIENCE_SECONDS",
        20.0,
        "Seconds without an answer to a liveness probe after which Envoy, a service or the controller is killed and restarted;"
        " 15 times as long until it listens, because a start may migrate a database.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = named(
        "LLAMESH_LOG_LEVEL", "info", "Lowest level that is logged."
    )

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

    def listens_at(self, member: str) -> str:
        """Return host:port at which a member listens to other members over TCP; empty if it has its Unix socket only."""
        host, _, port = self.member_addresses.get(member, "").rpartition(":")
        return f"{self._member_bind or host}:{port}" if port else ""

    @property
    def probes_at(self) -> str:
        """Address, host:port, at which a member answers probes; empty if it answers none. [::] is every address, of IPv4 too."""
        return f"{self._member_bind or '[::]'}:{self.probe_port}" if self.probe_port else ""

    @property
    def _member_bind(self) -> str:
        return f"[{self.member_bind}]" if ":" in self.member_bind else self.member_bind

    def endpoint(self, server_uuid: str) -> str:
        """Return the address for requests to a server."""
        return f"{'https' if self.tls else 'http'}://{self.public_host}:{self.inference_port}/{server_uuid}/v1"
