"""Models from registries: `ollama:NAME:TAG` of Ollama's, `oci://HOST/REPOSITORY:TAG` of any that keeps the OCI distribution specification.

`files` reads the manifest and names each file by the digests of manifest and layer, so a tag that moves in the meantime changes nothing.
Invariant: the bytes have the size and the SHA-256 in the manifest, or the transfer fails.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

from llamesh.kit.source_places import OLLAMA, REGISTRY_OF, RegistryPlace
from llamesh.nearest import near
from llamesh.registry_addresses import DOCKER_HUB, RegistryAddress, read_registry_address
from services.download.sources.addresses import AddressRules
from services.download.sources.first_bytes import with_magic
from services.download.sources.http_client import SourceAnswerError
from services.download.sources.http_objects import HttpObjects
from services.download.sources.registry_client import RegistryClient
from services.download.sources.registry_facts import read_facts
from services.download.sources.registry_manifests import (
    Layer,
    ModelManifest,
    choose_variant,
    is_index,
    may_be_packed,
    packed_words,
    read_document,
    read_manifest,
)
from services.download.sources.shown_texts import shown_phrase
from services.download.sources.source import (
    CheckedSource,
    FileRole,
    SourceChangedError,
    SourceError,
    SourceFile,
    SourceObject,
    SourceRefusedError,
)

MAX_MANIFESTS = 8
"""Maximum number of manifests that are kept. The manifest of a digest never changes, and is needed for each file of a model."""
MAX_REGISTRIES = 32
"""Maximum number of registries whose tokens are kept."""
_MAX_SHOWN_TAGS = 10
_DOCKER_HUB_TOKENS = "https://auth.docker.io"
_UNKNOWN_NAME = re.compile(rb'"(NAME_UNKNOWN|NAME_INVALID)"')


class RegistrySource:
    """Reads the models of registries. `registries` are those that the operator named, by host; `ollama` is the address of Ollama's.

    `http_hosts` are the `host:port` pairs to which a named registry without TLS may redirect or send for a token.
    """

    def __init__(
        self,
        rules: AddressRules,
        registries: Mapping[str, RegistryPlace],
        ollama: str = OLLAMA,
        *,
        http_hosts: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._http_hosts = http_hosts
        self._registries = registries
        self._ollama = ollama
        self._tls = tls
        self._clients: dict[str, RegistryClient] = {}
        """By host, "" for Ollama's registry, the oldest first."""
        self._manifests: dict[tuple[str, str], ModelManifest] = {}
        """By place and digest, the oldest first."""

    def check(self, source: str) -> CheckedSource:
        """See Source."""
        address = _read(source)
        shown = str(address)
        return CheckedSource(shown, shown, address.model_name)

    async def files(self, source: str) -> Sequence[SourceFile]:
        """See Source. All files are of one manifest."""
        address = _read(source)
        manifest = await self._manifest(address)
        if address.layer or manifest.files[0][0] is not FileRole.WEIGHTS:
            # A file by itself, or a manifest without weights: the check of its header says what it is.
            return [SourceFile(str(address))]
        facts = await read_facts(self._client(address.host), address.repository, manifest)
        pinned = replace(address, digest=manifest.sha256)
        numbers = count(1)
        return [
            SourceFile(
                str(replace(pinned, layer=layer.sha256)),
                role,
                _adapter_name(next(numbers)) if role is FileRole.ADAPTER else "",
                facts,
            )
            for role, layer in manifest.files
        ]

    @asynccontextmanager
    async def open(self, source: str) -> AsyncIterator[SourceObject]:
        """See Source."""
        address = _read(source)
        manifest = await self._manifest(address)
        client = self._client(address.host)
        role, layer = _file(address, manifest)
        url = client.url(address.repository, f"blobs/sha256:{layer.sha256}")
        name = layer.name.rpartition("/")[2] or f"{_PREFIXES[role]}{address.model_name}.gguf"
        objects = HttpObjects(client.of(address.repository))
        try:
            async with objects.open(
                lambda: url, name, sha256=layer.sha256, revision=manifest.sha256, immutable=True
            ) as found:
                if found.size not in (None, layer.size):
                    raise SourceChangedError(
                        f"sha256:{layer.sha256} has {found.size} bytes, and its manifest says {layer.size}",
                        opened=f"{layer.size} bytes",
                        found=f"{found.size} bytes",
                    )
                if may_be_packed(layer):
                    found = await with_magic(found, packed_words(layer, address.place))
                yield replace(found, size=layer.size)
        except SourceAnswerError as error:
            raise await self._explained(error, address, f"no bytes of its file sha256:{layer.sha256}") from error

    async def _manifest(self, address: RegistryAddress) -> ModelManifest:
        """Return the manifest of an address, after at most one index. Raises SourceError."""
        if known := self._manifests.get((address.place, address.digest)):
            return known
        client = self._client(address.host)
        reference = f"sha256:{address.digest}" if address.digest else address.tag
        try:
            sha256, body = await client.manifest(address.repository, reference)
            document = await asyncio.to_thread(read_document, body)
            if is_index(document):
                variant = choose_variant(document, address.place)
                sha256, body = await client.manifest(address.repository, f"sha256:{variant}")
                document = await asyncio.to_thread(read_document, body)
            manifest = read_manifest(document, sha256, str(address))
        except SourceAnswerError as error:
            raise await self._explained(error, address, f"no manifest {reference}") from error
        except ValueError as error:
            raise SourceError(f"{client.host} does not answer like a registry of models: {error}") from error
        self._manifests[address.place, sha256] = manifest
        for oldest in list(self._manifests)[:-MAX_MANIFESTS]:
            del self._manifests[oldest]
        return manifest

    def _client(self, host: str) -> RegistryClient:
        known = self._clients.get(host)
        if known is None:
            known = self._clients[host] = self._new_client(host)
            for oldest in list(self._clients)[:-MAX_REGISTRIES]:
                del self._clients[oldest]
        return known

    def _new_client(self, host: str) -> RegistryClient:
        if not host:
            return RegistryClient(self._rules, self._ollama, RegistryPlace(), flat=True, tls=self._tls)
        place = self._registries.get(host)
        if host == DOCKER_HUB:
            tokens = (place and place.token_server) or _DOCKER_HUB_TOKENS
            place = (place or RegistryPlace()).model_copy(update={"token_server": tokens})
            return RegistryClient(
                AddressRules(resolve=self._rules.resolve), f"https://{REGISTRY_OF[host]}", place, tls=self._tls
            )
        if place is None or place.secure:
            return RegistryClient(self._rules, f"https://{host}", place, tls=self._tls)
        return RegistryClient(self._rules, f"http://{host}", place, http_hosts=self._http_hosts, tls=self._tls)

    async def _explained(self, error: SourceAnswerError, address: RegistryAddress, lacks: str) -> SourceError:
        """Return the error with a message that names the remedy. Registries answer 401 for a repository that does not exist too."""
        client = self._client(address.host)
        where = client.host if address.host else "Ollama's registry"
        if error.status in {401, 403}:
            place = self._registries.get(address.host)
            if place is not None and place.password.get_secret_value():
                words = f"{where} refuses the credentials in LLAMESH_OCI_REGISTRIES for {address.repository}"
            elif address.host:
                words = (
                    f"{where} has no repository {address.repository}, or it is private: an administrator names credentials for"
                    f" {address.host} in LLAMESH_OCI_REGISTRIES"
                )
            else:
                words = f"{where} has no model {address}, or it is private, and private models are not read from it"
        elif error.status == 404 and _UNKNOWN_NAME.search(error.body) and address.host:
            words = f"{where} has no repository {address.repository}"
        elif error.status == 404 and address.digest:
            words = f"{address.place} has {lacks}"
        elif error.status == 404:
            words = await self._no_tag(client, address)
        else:
            return error
        return SourceError(words, status=error.status)

    async def _no_tag(self, client: RegistryClient, address: RegistryAddress) -> str:
        """Say that there is no such tag, with the nearest ones if the registry lists them."""
        tags = await client.tags(address.repository)
        words = f"{address.place} has no tag {address.tag}" if tags else f"there is no {address.place}:{address.tag}"
        if meant := near(address.tag, tags, 1):
            words += f": did you mean {replace(address, tag=meant[0])}?"
        elif not tags and not address.host:
            page = address.repository
            words += f": https://ollama.com/{page}/tags shows the tags of the model if there is one"
        if tags:
            shown = ", ".join(
                shown_phrase(tag) for tag in near(address.tag, tags, _MAX_SHOWN_TAGS, 0.0)[:_MAX_SHOWN_TAGS]
            )
            words += f" There are {shown}"
        return words


_PREFIXES = {FileRole.WEIGHTS: "", FileRole.PROJECTOR: "mmproj-", FileRole.ADAPTER: "adapter-"}


def _read(source: str) -> RegistryAddress:
    try:
        return read_registry_address(source)
    except ValueError as error:
        raise SourceRefusedError(str(error), rule="form") from error


def _file(address: RegistryAddress, manifest: ModelManifest) -> tuple[FileRole, Layer]:
    """Return the layer that an address names, else the first file."""
    if not address.layer:
        return manifest.files[0]
    for role, layer in manifest.files:
        if layer.sha256 == address.layer:
            return role, layer
    words = f"the manifest of {address.place} has no GGUF file sha256:{address.layer}"
    raise SourceRefusedError(words, rule="missing")


def _adapter_name(number: int) -> str:
    """Return the name by which servers use an adapter of a manifest: adapter, adapter-2, ..."""
    return "adapter" if number == 1 else f"adapter-{number}"
