"""Reads texts of HTTP: URLs byte for byte, and the header Retry-After. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from yarl import URL

_URI = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
"""The characters of a URL; all others must be escaped."""


def as_written(text: str) -> URL:
    """Parse a URL with path and query byte for byte, because escaping them again would break a signature. Raises ValueError.

    Scheme, host and port are parsed as a browser does, because they are checked. A text with other characters is escaped.
    """
    url = URL(text).with_fragment(None)
    if not _URI.fullmatch(text):
        return url
    exact = URL(text, encoded=True)
    return URL.build(
        scheme=url.scheme,
        authority=url.raw_authority,
        path=exact.raw_path,
        query_string=exact.raw_query_string,
        encoded=True,
    )


def retry_after(value: str) -> float | None:
    """Return the seconds in a Retry-After header, which is a number or a date; None if it is neither."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        at = parsedate_to_datetime(value)
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return max((at - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, OverflowError):
        # OverflowError: a number in the date is too large.
        return None
