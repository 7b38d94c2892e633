"""Errors of the S3 client and of the network below it, raised as StoreErrors.

Invariant: messages name the setting of this bucket to check, and contain neither addresses nor the client's own messages. What the server
says in them is short and printable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import urllib3
from minio.error import InvalidResponseError, S3Error, ServerError

from llamesh.kit.objects.store import (
    ObjectNotFoundError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)

_MISSING_CODES = {"NoSuchKey", "NoSuchObject", "NoSuchBucket", "NoSuchUpload", "NotFound", "ResourceNotFound"}
_FULL_CODES = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage"}
DENIED_CODES = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "XAdminUserNotFound"}
)
"""How servers say that credentials are wrong. versitygw has the last one for an unknown key, with the status 404."""

MAX_SAID = 200
"""Maximum number of characters of a code or a message of the server that is passed on."""


class S3Errors:
    """Raises the client's errors as StoreErrors. `server` begins the names of the server's settings; `bucket` is the bucket's setting."""

    def __init__(self, server: str, bucket: str) -> None:
        self._server = server
        self._bucket = bucket

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Translate the errors of a block. `what` begins the message, for instance "cannot read KEY"."""
        try:
            yield
        except S3Error as error:
            raise self._refusal(what, error) from error
        except ServerError as error:
            status = error.status_code
            raise StoreUnavailableError(f"{what}: the object store answers with HTTP status {status}") from error
        except urllib3.exceptions.HTTPError as error:
            # Before ValueError: those about the form of an address are both.
            raise StoreUnavailableError(f"{what}: the object store {self._transport_words(error)}") from error
        except (InvalidResponseError, UnicodeError) as error:
            # UnicodeError, also a ValueError: the client decodes an error page as UTF-8, whatever its encoding is.
            raise StoreUnavailableError(f"{what}: the server at {self._server}ENDPOINT is not an S3 server") from error
        except ValueError as error:
            # The client checks names before it sends a request, and those of new buckets more strictly than those of old ones.
            raise StoreDeniedError(f"{what}: the S3 client refuses the request: check {self._bucket}") from error

    def _refusal(self, what: str, error: S3Error) -> StoreError:
        code, said = _said(error.code), _said(error.message)
        reason = f"{what}: {code}: {said}"
        if error.code in _MISSING_CODES:
            return ObjectNotFoundError(reason)
        if error.code in _FULL_CODES:
            return StoreFullError(reason)
        if error.code in DENIED_CODES:
            keys = f"{self._server}ACCESS_KEY and {self._server}SECRET_KEY"
            return StoreDeniedError(f"{what}: the object store refuses {keys} ({code})")
        return StoreUnavailableError(reason)

    def _transport_words(self, error: BaseException) -> str:
        """Describe a failure of the network, without the HTTP library's messages and addresses."""
        cause: object = error
        while isinstance(cause, urllib3.exceptions.MaxRetryError) and cause.reason is not None:
            cause = cause.reason
        match cause:
            case urllib3.exceptions.SSLError():
                return f"does not speak TLS as {self._server}SECURE and its certificate ask for"
            case urllib3.exceptions.NameResolutionError() | urllib3.exceptions.LocationValueError():
                return f"has a name that cannot be resolved: check {self._server}ENDPOINT"
            case urllib3.exceptions.NewConnectionError():
                return f"cannot be reached: it is stopped, or {self._server}ENDPOINT is wrong"
            case urllib3.exceptions.TimeoutError():
                return "does not answer in time"
            case urllib3.exceptions.ResponseError():
                return "answers with a failure each time"
            case _:
                return "broke the connection off"


def _said(text: str | None) -> str:
    return "".join(filter(str.isprintable, text or ""))[:MAX_SAID]
