"""The clients of one S3 server, by how long an answer may take.

A server that hangs accepts connections and answers nothing, so only the silence says so. Most answers come within a second; a copy inside
the server and the completion of an upload take as long as the server reads and writes the bytes. Invariant: every call ends, also of a
server that hangs.
"""

from __future__ import annotations

import certifi
import urllib3
from minio import Minio

from llamesh.kit.source_places import StorePlace

CONNECT_SECONDS = 5.0
"""Seconds in which a connection is made, and in which the server must go on reading a request."""
PROBE_SECONDS = 5.0
"""Seconds of silence after which a check of the store fails; it is asked twice."""
SILENCE_SECONDS = 30.0
"""Seconds of silence after which a request fails; it is sent twice."""
LONG_SECONDS = 300.0
"""Seconds of silence in which the server may copy an object or complete an upload; it is asked twice."""
_STATUSES = [500, 502, 503, 504]
"""Answers after which a request is sent again."""
_RETRIES = 3
_BACKOFF_FACTOR = 0.2
_SILENT_RETRIES = 1


class S3Clients:
    """The clients of the server of a place; `connections` is the number that each keeps."""

    def __init__(self, place: StorePlace, connections: int) -> None:
        self.usual = _client(place, SILENCE_SECONDS, connections)
        """For requests that the server answers at once, and for bytes."""
        self.long = _client(place, LONG_SECONDS, connections)
        """For copies inside the server and completions of uploads."""
        self.probe = _client(place, PROBE_SECONDS, 1)
        """For checks of the store."""


def _client(place: StorePlace, silence: float, connections: int) -> Minio:
    return Minio(
        place.endpoint,
        access_key=place.access_key.get_secret_value() or None,
        secret_key=place.secret_key.get_secret_value() or None,
        secure=place.secure,
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=silence),
            maxsize=connections,
            retries=urllib3.Retry(
                total=_RETRIES, read=_SILENT_RETRIES, backoff_factor=_BACKOFF_FACTOR, status_forcelist=_STATUSES
            ),
            cert_reqs="CERT_REQUIRED",
            ca_certs=certifi.where(),
        ),
    )
