# Written from aio/part.py by tools/sync_client.py; edit there.
# ruff: noqa: UP028 a loop over what comes, as in the source
"""The base class of the client's parts: it holds the transport and reads paged lists."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from llamesh.client.transport import Transport


class Part:
    """Base class of a part of the client, such as `servers` or `models`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._call = transport.call

    def pages(
        self, method: str, request: Any, answer: type[Message], field: str, timeout: float | None = None
    ) -> Iterator[Any]:
        """Yield the items of a list; each page is fetched when it is needed. `timeout`: seconds for all pages; None: 30 for each."""
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if ends is None else ends - time.monotonic()
            page: Any = self._call(method, request, answer, left)
            for item in getattr(page, field):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
