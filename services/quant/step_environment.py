"""The environment of a step's program: variables that say where programs and files are, and the settings that this step needs.

A step parses files of strangers with libraries in C and C++. Invariant: it gets a secret only if it needs one: the keys of a bucket, in a
step that reads or writes that bucket. It reads no file of settings, so what is not named here has its default in a step.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import SecretStr

from llamesh.kit.config import Settings

_NAMES = frozenset(
    {
        *("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "VIRTUAL_ENV", "XDG_RUNTIME_DIR", "ARGO_PROGRESS_FILE"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR"),
    }
)
_PREFIXES = (
    *("LC_", "LD_", "DYLD_", "PYTHON", "MALLOC_", "GRPC_"),
    *("OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "GGML_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_"),
)
"""How the variables of the loader, of Python and of the libraries of llama.cpp and numpy begin."""
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
"""For steps that use a bucket only: the address of a proxy may have a password."""
_SETTINGS = ("home", "llama_quantize_bin", "llama_imatrix_bin", "llama_convert_bin")
_BUCKET_SETTINGS = (
    *("cache_bytes", "minio_endpoint", "minio_bucket", "minio_secure", "minio_access_key", "minio_secret_key"),
    *("quant_minio_endpoint", "quant_minio_bucket", "quant_minio_secure", "quant_minio_access_key"),
    "quant_minio_secret_key",
)
_MEMBER_SETTINGS = ("member_addresses", "member_certificates", "trust_domain")
"""For a step that asks the download service: over TCP it shows the certificate of the Quant service."""


def plain_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that every program may have. None of them is a setting or a secret."""
    return {name: value for name, value in environment.items() if name in _NAMES or name.startswith(_PREFIXES)}


def step_environment(
    settings: Settings, environment: Mapping[str, str], *, uses_bucket: bool, asks_download: bool = False
) -> dict[str, str]:
    """Return the environment of a step's program. `environment` is that of this process."""
    found = plain_variables(environment)
    fields: tuple[str, ...] = _SETTINGS
    if asks_download and settings.member_addresses:
        fields += _MEMBER_SETTINGS
    if uses_bucket:
        found |= {name: value for name, value in environment.items() if name.upper() in _PROXIES}
        fields += _BUCKET_SETTINGS
    given = {_variable(field): _text(getattr(settings, field)) for field in fields}
    return found | {name: value for name, value in given.items() if value}


def _variable(field: str) -> str:
    """Return the name of a setting in the environment."""
    return str(Settings.model_fields[field].validation_alias.choices[0])  # type: ignore[union-attr]


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
