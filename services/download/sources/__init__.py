"""Sources of models, one module for each kind. `Sources` chooses the kind by the scheme of the canonical address."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from llamesh.hub_addresses import HUB_HOSTS
from llamesh.model_addresses import ADDRESSES, canonical, likely
from llamesh.part_names import first_part, whole_name
from services.download.sources.addresses import AddressRules, refuse_user
from services.download.sources.file import FileSource
from services.download.sources.https import HttpsSource
from services.download.sources.hub import HubSource
from services.download.sources.quant import QuantSource
from services.download.sources.quant_http import QuantOverHttp
from services.download.sources.quant_member import QuantMember
from services.download.sources.quant_models import QuantModels
from services.download.sources.registry import RegistrySource
from services.download.sources.s3 import S3Bucket, S3Source
from services.download.sources.source import (
    CheckedSource,
    FileRole,
    ModelFacts,
    Source,
    SourceChangedError,
    SourceError,
    SourceFile,
    SourceGoneError,
    SourceObject,
    SourceRefusedError,
    SourceSlowError,
    SourceTruncatedError,
)

__all__ = [
    "AddressRules",
    "CheckedSource",
    "FileRole",
    "FileSource",
    "HttpsSource",
    "HubSource",
    "ModelFacts",
    "QuantMember",
    "QuantModels",
    "QuantOverHttp",
    "QuantSource",
    "RegistrySource",
    "S3Bucket",
    "S3Source",
    "Source",
    "SourceChangedError",
    "SourceError",
    "SourceFile",
    "SourceGoneError",
    "SourceObject",
    "SourceRefusedError",
    "SourceSlowError",
    "SourceTruncatedError",
    "Sources",
]


class Sources:
    """A Source that brings addresses into their canonical form and passes them to the kind of source for their scheme."""

    def __init__(self, by_scheme: Mapping[str, Source], hub_hosts: Collection[str] = HUB_HOSTS) -> None:
        """`by_scheme` maps lower-case schemes to kinds of sources; an absolute path without a scheme belongs to "file"."""
        self.by_scheme = by_scheme
        self._hub_hosts = hub_hosts

    def check(self, source: str) -> CheckedSource:
        """See Source. The address of any part of a model in parts becomes that of the first."""
        refuse_user(source)
        try:
            address = first_part(canonical(source, self._hub_hosts))
        except ValueError as error:
            raise SourceRefusedError(str(error), rule="form") from error
        checked = self._kind(address).check(address)
        return replace(checked, name=whole_name(checked.name))

    async def files(self, source: str) -> Sequence[SourceFile]:
        """See Source."""
        return await self._kind(source).files(source)

    def open(self, source: str) -> AbstractAsyncContextManager[SourceObject]:
        """See Source."""
        return self._kind(source).open(source)

    def _kind(self, address: str) -> Source:
        scheme = "file" if address.startswith("/") else address.partition(":")[0].lower()
        kind = self.by_scheme.get(scheme)
        if kind is None:
            meant = likely(address)
            hint = f"did you mean {meant}?" if meant else f"give {ADDRESSES}, or file:///PATH/FILE.gguf"
            raise SourceRefusedError(f"not the address of a model: {hint}", rule="form")
        return kind
