"""Types of settings, with their bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from llamesh.kit.origins import read_host, read_host_and_port, read_origin
from llamesh.locations import expanded

MIN_BYTES_PER_SECOND = 1 << 16
"""Least limit of bandwidth: with less, parallel reads wait so long for each other that servers close their connections."""


def _none_or_enough(bytes_per_second: int) -> int:
    if 0 < bytes_per_second < MIN_BYTES_PER_SECOND:
        raise ValueError(f"it is 0, for no limit, or at least {MIN_BYTES_PER_SECOND}")
    return bytes_per_second


Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0)]
BytesPerSecond = Annotated[int, Field(ge=0, le=1 << 40), AfterValidator(_none_or_enough)]
Host = Annotated[str, AfterValidator(read_host)]
HostAndPort = Annotated[str, AfterValidator(read_host_and_port)]
Directory = Annotated[Path, AfterValidator(lambda path: expanded(path).absolute())]
Origin = Annotated[str, AfterValidator(read_origin)]
