"""Models from the Hugging Face Hub, or from a mirror with the same API.

`open` requests the repository's files at the wanted revision, chooses one, and reads it at that commit, so a branch that moves in the
meantime changes nothing. Invariant: the bytes have the size and the SHA-256 in the listing, or the transfer fails.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import quote

from pydantic import SecretStr
from yarl import URL

from llamesh.hub_addresses import HubAddress, read_hub_address
from llamesh.nearest import near
from services.download.sources.addresses import AddressRules
from services.download.sources.http_client import SourceAnswerError, service_client
from services.download.sources.http_objects import HttpObjects
from services.download.sources.hub_files import choose
from services.download.sources.hub_found import FoundRepository, read_found
from services.download.sources.hub_listing import HubFile, HubListing, read_listing
from services.download.sources.source import (
    CheckedSource,
    FileRole,
    SourceChangedError,
    SourceError,
    SourceFile,
    SourceObject,
    SourceRefusedError,
)

NEAREST_SECONDS = 3.0
"""Seconds for which the search for repositories with nearly the name of an unknown one may delay its refusal."""
MAX_NEAREST = 3
"""Maximum number of them that are named."""
_COMPARED = 50
"""Repositories of each search that are compared."""
MAX_LISTINGS = 8
"""Maximum number of listings that are kept, each of bounded size (see `hub_listing`).

The listing of a commit never changes, and is needed for each file of a model.
"""


class HubSource:
    """Reads GGUF files of repositories. `token`, if it is not empty, is sent to the endpoint only."""

    def __init__(
        self, rules: AddressRules, endpoint: str, token: SecretStr | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        """`endpoint` is the address that the operator set. Its host may be private; http is used if the address has that scheme."""
        self._endpoint = endpoint.rstrip("/")
        self.host = URL(self._endpoint).host_port_subcomponent or ""
        self._has_token = bool(token and token.get_secret_value())
        self._client = service_client(rules, self._endpoint, token=token, tls=tls)
        self._objects = HttpObjects(self._client)
        self._listings: dict[tuple[str, str], HubListing] = {}
        """By repository and commit, the oldest first."""

    def check(self, source: str) -> CheckedSource:
        """See Source."""
        address = _read(source)
        return CheckedSource(str(address), str(address), address.model_name)

    async def files(self, source: str) -> Sequence[SourceFile]:
        """See Source. All files are of one commit."""
        address = _read(source)
        listing = await self.listing(address)
        at_commit = replace(address, revision=listing.commit, choice="")
        weights = await asyncio.to_thread(choose, listing, address)
        projector = listing.projector_for(weights[0])
        files = [SourceFile(str(replace(at_commit, path=file.path))) for file in weights]
        if projector is not None:
            files.append(SourceFile(str(replace(at_commit, path=projector.path)), FileRole.PROJECTOR))
        return files

    @asynccontextmanager
    async def open(self, source: str) -> AsyncIterator[SourceObject]:
        """See Source."""
        address = _read(source)
        listing = await self.listing(address)
        file = listing.files.get(address.path) or (await asyncio.to_thread(choose, listing, address))[0]
        async with self._opened(address, listing.commit, file) as found:
            yield found

    @asynccontextmanager
    async def open_of_checkpoint(self, address: HubAddress, name: str) -> AsyncIterator[SourceObject]:
        """Open a file of a checkpoint by its name. The context closes it. Raises SourceError."""
        listing = await self.listing(address)
        file = listing.checkpoint.get(name)
        if file is None:
            raise SourceError(f"{address.repository} has no file {name} that a conversion reads", status=404)
        async with self._opened(address, listing.commit, file) as found:
            yield found

    @asynccontextmanager
    async def _opened(self, address: HubAddress, commit: str, file: HubFile) -> AsyncIterator[SourceObject]:
        url = self._url(f"/{address.repository}/resolve/{commit}/{quote(file.path)}")
        name = file.path.rpartition("/")[2]
        try:
            async with self._objects.open(lambda: url, name, sha256=file.sha256, revision=commit) as found:
                _check_size(file, found)
                yield found
        except SourceAnswerError as error:
            raise await self._explained(error, address) from error

    async def search(self, query: str, limit: int) -> list[FoundRepository]:
        """Return the most downloaded repositories with GGUF files that a query finds. Raises SourceError."""
        return await self._found(f"search={quote(query, safe='')}&filter=gguf", limit)

    async def _found(self, words: str, limit: int) -> list[FoundRepository]:
        url = self._url(f"/api/models?{words}&sort=downloads&direction=-1&limit={limit}")
        document = await self._client.document(url, self.host)
        try:
            return read_found(document, limit)
        except ValueError as error:
            raise SourceError(f"{self.host} does not answer like the Hugging Face Hub: check HF_ENDPOINT") from error

    async def _nearest(self, address: HubAddress) -> str:
        """Return the repositories whose names are most like that of an unknown one, as the end of a sentence."""
        name = re.sub(r"[-_.]gguf$", "", address.repo, flags=re.IGNORECASE)
        searches = (f"search={quote(name, safe='')}", f"author={quote(address.owner, safe='')}")
        try:
            async with asyncio.timeout(NEAREST_SECONDS):
                found = await asyncio.gather(*(self._found(words, _COMPARED) for words in searches))
        except (SourceError, TimeoutError):
            found = []
        names = dict.fromkeys(each.address.repository for repositories in found for each in repositories)
        names.pop(address.repository, None)
        if meant := near(address.repository, names, MAX_NEAREST):
            return f": did you mean {' or '.join(str(read_hub_address(each)) for each in meant)}?"
        return f": `llamesh search {shlex.quote(name)}` looks for others"

    async def listing(self, address: HubAddress) -> HubListing:
        """Return the files of a repository. Raises SourceError."""
        try:
            return await self._listing(address)
        except SourceAnswerError as error:
            raise await self._explained(error, address) from error

    async def _listing(self, address: HubAddress) -> HubListing:
        known = self._listings.get((address.repository, address.revision))
        if known is not None:
            return known
        revision = quote(address.revision or "main", safe="")
        url = self._url(f"/api/models/{address.repository}/revision/{revision}?blobs=true")
        try:
            document = await self._client.document(url, self.host)
            listing = await asyncio.to_thread(read_listing, document, address.repository)
        except ValueError as error:
            raise SourceError(f"{self.host} does not answer like the Hugging Face Hub: check HF_ENDPOINT") from error
        self._listings[address.repository, listing.commit] = listing
        for oldest in list(self._listings)[:-MAX_LISTINGS]:
            del self._listings[oldest]
        return listing

    def _url(self, path: str) -> URL:
        return self._client.parsed(f"{self._endpoint}{path}")

    async def _explained(self, error: SourceAnswerError, address: HubAddress) -> SourceError:
        """Return the error with a message that names the remedy. The Hub also answers 401 for a repository that does not exist."""
        code, said = error.headers.get("X-Error-Code", ""), error.headers.get("X-Error-Message", "")
        repository = address.repository
        if code == "RevisionNotFound":
            words = f"{repository} has no revision {address.revision or 'main'}"
        elif code == "EntryNotFound":
            words = f"{repository} has no such file: {address}"
        elif self._has_token and said.startswith("Invalid credentials"):
            words = f"{self.host} refuses the token in HF_TOKEN"
        elif code == "GatedRepo" or error.status == 403:
            words = (
                f"{repository} is gated: accept its terms at {self._endpoint}/{repository}, and set HF_TOKEN to a token of the account"
                " that has"
            )
        elif code == "RepoNotFound" or error.status in {401, 404}:
            account = (
                "the account of HF_TOKEN may not read it"
                if self._has_token
                else "it is private and HF_TOKEN is not set"
            )
            words = f"{self.host} has no repository {repository}, or {account}{await self._nearest(address)}"
        else:
            return error
        return SourceError(words, status=error.status)


def _read(source: str) -> HubAddress:
    try:
        return read_hub_address(source)
    except ValueError as error:
        raise SourceRefusedError(str(error), rule="form") from error


def _check_size(file: HubFile, found: SourceObject) -> None:
    if file.size is not None and found.size is not None and found.size != file.size:
        raise SourceChangedError(
            f"{file.path} has {found.size} bytes, and the Hub lists it with {file.size}",
            opened=f"{file.size} bytes",
            found=f"{found.size} bytes",
        )
