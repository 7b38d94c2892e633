"""Spec of one engine: the JSON file that `python -m engine` reads.

Invariant: an `EngineSpec` is complete and consistent, so no other module checks it again. Parameters stay as they were received (ProtoJSON
of `llamesh.v1.RuntimeParameters`) until `engine.parameters` decodes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.failure import EngineError, FailureReason
from llamesh.locations import MAX_UNIX_SOCKET_PATH


@dataclass(frozen=True, slots=True)
class Address:
    """Listening address in llama.cpp's form: a host that ends in `.sock` is a Unix socket and has no port."""

    host: str
    port: int = 0

    @property
    def socket(self) -> Path | None:
        """Path of the Unix socket, or None for TCP."""
        return Path(self.host) if self.host.endswith(".sock") else None

    def __str__(self) -> str:
        return self.host if self.socket else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `/path/name.sock`, `unix:/path/name.sock` or `host:port`. Raises EngineError(BAD_SPEC)."""
        path = text.removeprefix("unix:")
        if path.startswith("/"):
            if not path.endswith(".sock"):
                raise EngineError(
                    FailureReason.BAD_SPEC, f"listen: {path} must end in .sock, or llama.cpp takes it for a host"
                )
            if len(path.encode()) > MAX_UNIX_SOCKET_PATH:
                raise EngineError(FailureReason.BAD_SPEC, f"listen: {path} is longer than {MAX_UNIX_SOCKET_PATH} bytes")
            return cls(path)
        host, colon, port = text.rpartition(":")
        if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            raise EngineError(
                FailureReason.BAD_SPEC, f"listen: {text!r} is neither an absolute socket path nor host:port"
            )
        return cls(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Spec of one engine. The field names have the units."""

    model: Path
    """The GGUF file."""
    listen: Address
    """Address on which llama.cpp serves HTTP."""
    alias: str
    """The model name in answers."""
    http_threads: int = 64
    """Threads of the HTTP server. At least as many as the connections that Envoy opens: each occupies a thread."""
    api_key: str = field(default="", repr=False)
    """Required from every caller, except for /health. If empty, only the socket's permissions protect the engine."""
    model_context: int = 0
    """Tokens that the model was trained for, from its GGUF metadata; the limit of the default context. 0 if unknown."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """ProtoJSON of RuntimeParameters."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """The file of each model that a parameter names, by the parameter's name."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """The LoRA adapters that parameters name, by their names."""
    projector: Path | None = None
    """The multimodal projector of the model."""
    grace_seconds: float = 30.0
    """Seconds that running requests may take to finish after a stop was requested."""
    state_file: Path | None = None
    """File in which the engine publishes its state atomically; see `engine.state`."""
    hand_over: Path | None = None
    """A Unix socket on which the engine sends a duplicate of its listening socket to the mesh; see `engine.listener`."""

    @classmethod
    def read(cls, path: Path) -> EngineSpec:
        """Read a spec file. Raises EngineError(BAD_SPEC), which names the problem."""
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise EngineError(FailureReason.BAD_SPEC, f"cannot read the spec {path}: {error}") from error
        return cls.decode(document)

    @classmethod
    def decode(cls, document: object) -> EngineSpec:
        """Decode a JSON document into a spec. Raises EngineError(BAD_SPEC), which names the field."""
        if not isinstance(document, dict):
            raise EngineError(FailureReason.BAD_SPEC, "the spec is not a JSON object")
        known = {item.name for item in fields(cls)}
        if unknown := sorted(document.keys() - known):
            raise EngineError(FailureReason.BAD_SPEC, f"unknown fields in the spec: {', '.join(unknown)}")
        for name in ("model", "listen", "alias"):
            if not document.get(name):
                raise EngineError(FailureReason.BAD_SPEC, f"{name}: missing")
        alias = _typed(document, "alias", str, "")
        if alias.startswith("-") or "," in alias:
            raise EngineError(FailureReason.BAD_SPEC, f"alias: {alias!r} is not one name")
        state_file = _typed(document, "state_file", str, None)
        hand_over = _typed(document, "hand_over", str, None)
        projector = _typed(document, "projector", str, None)
        return cls(
            model=Path(_typed(document, "model", str, "")).absolute(),
            listen=Address.parse(_typed(document, "listen", str, "")),
            alias=alias,
            http_threads=_at_least(1, document, "http_threads", int, 64),
            api_key=_typed(document, "api_key", str, ""),
            model_context=_at_least(0, document, "model_context", int, 0),
            parameters=_typed(document, "parameters", dict, {}),
            files=_files(_typed(document, "files", dict, {})),
            adapters=_files(_typed(document, "adapters", dict, {}), "adapters"),
            projector=Path(projector).absolute() if projector else None,
            grace_seconds=float(_at_least(0, document, "grace_seconds", (int, float), 30.0)),
            state_file=Path(state_file) if state_file else None,
            hand_over=Path(hand_over) if hand_over else None,
        )


def _typed(document: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    value = document.get(name, default)
    if value is default or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise EngineError(FailureReason.BAD_SPEC, f"{name}: {value!r} is of the wrong type")


def _files(document: Mapping[str, Any], what: str = "files") -> dict[str, Path]:
    for name, path in document.items():
        if not isinstance(path, str) or not Path(path).is_absolute():
            raise EngineError(FailureReason.BAD_SPEC, f"{what}: {name}: {path!r} is not an absolute path")
    return {name: Path(path) for name, path in document.items()}


def _at_least(least: int, document: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    value = _typed(document, name, kind, default)
    if value < least:
        raise EngineError(FailureReason.BAD_SPEC, f"{name}: {value!r} is below {least}")
    return value
