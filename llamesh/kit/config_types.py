"""Types of settings, with their bounds, and how a setting gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field

from llamesh.kit.origins import read_host, read_host_and_port, read_origin
from llamesh.locations import expanded

MIN_BYTES_PER_SECOND = 1 << 16
"""Least limit of bandwidth: with less, parallel reads wait so long for each other that servers close their connections."""


def _none_or_enough(bytes_per_second: int) -> int:
    if 0 < bytes_per_second < MIN_BYTES_PER_SECOND:
        raise ValueError(f"it is 0, for no limit, or at least {MIN_BYTES_PER_SECOND}")
    return bytes_per_second


def _split(value: object) -> object:
    """Split a list at commas, as in the reference deployment."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Split = BeforeValidator(_split)
"""For lists, together with `NoDecode`: their text has commas."""
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0)]
BytesPerSecond = Annotated[int, Field(ge=0, le=1 << 40), AfterValidator(_none_or_enough)]
Host = Annotated[str, AfterValidator(read_host)]
HostAndPort = Annotated[str, AfterValidator(read_host_and_port)]
Directory = Annotated[Path, AfterValidator(lambda path: expanded(path).absolute())]
Origin = Annotated[str, AfterValidator(read_origin)]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""Name of an object of Kubernetes."""
_DOMAIN = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*"
_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
DomainName = Annotated[str, Field(max_length=253, pattern=rf"^{_DOMAIN}$")]
"""Name of an object of Kubernetes that may have dots."""
ResourceName = Annotated[str, Field(pattern=rf"^{_DOMAIN}/{_LABEL}$")]
"""Name of a resource of nodes that is none of Kubernetes itself, such as nvidia.com/gpu."""
LabelPattern = Annotated[str, Field(pattern=rf"^({_DOMAIN}/)?{_LABEL}$|^{_DOMAIN}/\*$")]
"""Key of a label, or all keys of a domain: example.com/*."""
ImagePattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9._:/@]*$|^[A-Za-z0-9][-A-Za-z0-9._:/@]*[/:]\*$")]
"""Name of an image, or the beginning of names up to a / or : and *."""


def named(name: str, default: object, description: str) -> Any:
    """Make a field that is read from the variable `name`, in upper or lower case."""
    return Field(default=default, validation_alias=AliasChoices(name, name.lower()), description=description)
