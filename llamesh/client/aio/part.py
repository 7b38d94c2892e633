"""What every part of the client shares: the transport and lists that come in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import Message

from llamesh.client.transport import AsyncTransport


class AsyncPart:
    """What the parts of the client share."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._call = transport.call

    async def pages(self, method: str, request: Any, answer: type[Message], field: str) -> AsyncIterator[Any]:
        """The items of a list, one page after the other."""
        while True:
            page: Any = await self._call(method, request, answer)
            for item in getattr(page, field):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
