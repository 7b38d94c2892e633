"""Texts of and about sources, in the form in which messages and the log show them.

Invariant: no such text has the query of a URL, because it may contain a signature, is longer than MAX_TEXT, or has a character that is not
printable (see `object_names`): others than the caller chose parts of it. Texts of the HTTP library are never passed on: some contain the
requested URL or headers of the answer.
"""

from __future__ import annotations

import os
import re
import ssl

import aiohttp
from yarl import URL

from services.download.sources.object_names import printable

MAX_TEXT = 2_000
"""Maximum number of characters of a text."""
MAX_PHRASE = 64
"""Maximum number of characters of a phrase that a server chose, such as the words behind an HTTP status."""
_MAX_CAUSE = 200
_QUERY = re.compile(r"(https?://[^\s?]*)\?\S+", re.IGNORECASE)
_QUOTED = re.compile(r"""[\r\n"'].*""", re.DOTALL)
"""The part of the parser's message that repeats the answer."""


def shown(url: URL) -> str:
    """Return a URL without its query."""
    return str(url.with_query(None))


def shown_text(text: str) -> str:
    """Return a text without the queries of its URLs and with "?" for each character that is not printable, cut to MAX_TEXT characters."""
    # Cut first, so that the search is not longer than the result; a query that is cut is still removed.
    cut = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
    return printable(_QUERY.sub(r"\1", cut))[:MAX_TEXT]


def shown_phrase(text: str) -> str:
    """Return a phrase that a server chose, printable and cut to MAX_PHRASE characters."""
    return shown_text(text[:MAX_PHRASE])


def cause(error: Exception) -> str:
    """Return why a request failed, without the URL, the resolved address, and the bytes of the answer."""
    match error:
        case aiohttp.ClientResponseError():
            return f"the answer is not valid HTTP ({_QUOTED.sub('', error.message)[:_MAX_CAUSE].rstrip(' :b')})"
        case aiohttp.ServerDisconnectedError():
            return "the server disconnected"
        case ssl.SSLError():
            return shown_text(error.strerror or type(error).__name__)[:_MAX_CAUSE]
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            return os.strerror(number) if number else "no connection can be made"
        case OSError() if error.errno:
            return os.strerror(error.errno)
        case _:
            return type(error).__name__
