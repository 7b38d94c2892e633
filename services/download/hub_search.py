"""Searches the Hugging Face Hub: one request for the repositories, then one for the files of each, a few at a time.

All requests go through the client of the source `hf:` and its rules for hosts, redirects and the token. Invariant: a search ends within
SEARCH_SECONDS and the time for questions about memory. A repository that cannot be listed by then is returned with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from llamesh.kit.errors import MeshError, Reason
from llamesh.v1.download_pb2 import HubModel, HubRepository, SearchHubResponse
from services.download.catalogue import Catalogue
from services.download.memory_fits import MemoryFits
from services.download.sources import HubSource, SourceError, SourceRefusedError
from services.download.sources.hub_found import FoundModel, FoundRepository, models_of
from services.download.sources.shown_texts import shown_text
from services.download.verification import transfer_error

SEARCH_SECONDS = 12.0
"""Seconds for all requests to the Hub."""
DEFAULT_REPOSITORIES = 5
"""Repositories of a search that names no number."""
MAX_REQUESTS = 4
"""Maximum number of requests to the Hub at the same time."""


class HubSearch:
    """Searches one Hub. `clock` is monotonic, in seconds."""

    def __init__(
        self, hub: HubSource, catalogue: Catalogue, fits: MemoryFits, clock: Callable[[], float] = monotonic
    ) -> None:
        self._hub = hub
        self._catalogue = catalogue
        self._fits = fits
        self._clock = clock
        self._requests = asyncio.Semaphore(MAX_REQUESTS)

    async def search(self, query: str, limit: int) -> SearchHubResponse:
        """Return what a query finds. Raises SOURCE_UNAVAILABLE and SOURCE_REFUSED."""
        ends = self._clock() + SEARCH_SECONDS
        try:
            async with asyncio.timeout(SEARCH_SECONDS):
                found = await self._hub.search(query, limit or DEFAULT_REPOSITORIES)
        except TimeoutError as error:
            raise self._unavailable(f"no answer within {SEARCH_SECONDS:.0f} s") from error
        except SourceError as error:
            if isinstance(error, SourceRefusedError):
                raise transfer_error(error, self._hub.host) from error
            raise self._unavailable(shown_text(str(error)), error.status) from error
        listed = await asyncio.gather(*(self._listed(repository, ends) for repository in found))
        return await self._answer(listed)

    async def _listed(self, found: FoundRepository, ends: float) -> tuple[FoundRepository, str, list[FoundModel], str]:
        """Return a repository with its commit and its models, or the reason why they are not listed."""
        try:
            async with asyncio.timeout(max(ends - self._clock(), 0)), self._requests:
                listing = await self._hub.listing(found.address)
            models = await asyncio.to_thread(models_of, found.address, listing)
        except TimeoutError:
            return found, "", [], f"{self._hub.host} did not list it within {SEARCH_SECONDS:.0f} s"
        except SourceError as error:
            return found, "", [], shown_text(str(error))
        return replace(found, gated=found.gated or listing.gated), listing.commit, models, ""

    async def _answer(self, listed: list[tuple[FoundRepository, str, list[FoundModel], str]]) -> SearchHubResponse:
        digests = {model.sha256 for _, _, models, _ in listed for model in models if model.sha256}
        known = await self._catalogue.models_of_digests(digests)
        memory, estimates = await asyncio.gather(self._fits.memory(), self._fits.estimates(set(known.values())))
        answer = SearchHubResponse(free_bytes=memory.free, total_bytes=memory.total)
        for found, commit, models, problem in listed:
            repository = HubRepository(
                repository=found.address.repository,
                downloads=found.downloads,
                likes=found.likes,
                gated=found.gated,
                license=found.license,
                revision=commit,
                problem=problem,
            )
            for model in models:
                uuid = known.get(model.sha256, "")
                needed = estimates.get(uuid, model.size or 0)
                repository.models.append(
                    HubModel(
                        source=model.source,
                        path=model.path,
                        quantisation=model.type,
                        size_bytes=model.size or 0,
                        file_count=model.files,
                        model_uuid=uuid,
                        needed_bytes=needed,
                        fit=memory.fit(needed),
                    )
                )
            answer.repositories.append(repository)
        return answer

    def _unavailable(self, why: str, status: int = 0) -> MeshError:
        return MeshError(
            Reason.ERROR_REASON_SOURCE_UNAVAILABLE,
            f"{self._hub.host} cannot be searched: {why}; a mesh without internet access needs a mirror, which HF_ENDPOINT names",
            {"source": self._hub.host, "status": str(status or "")},
        )
