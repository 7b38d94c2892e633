"""Structured logs on standard error: readable in a terminal, JSON otherwise.

Invariant: secrets are never logged, and a log that cannot be written never fails a call.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from typing import TextIO, cast

import grpc
import structlog

from llamesh.kit.errors import MeshError
from llamesh.kit.objects.store import StoreError


class _StandardError(io.TextIOBase):
    """Standard error that drops a line it cannot write: a full disk or a closed pipe must not fail a call."""

    def write(self, text: str) -> int:
        """Write the text if possible."""
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def configure_logs(component: str, level: str = "info", *, console: bool | None = None) -> None:
    """Set up logging for this process. `console` None: readable if standard error is a terminal."""
    pretty = sys.stderr.isatty() if console is None else console
    numeric = logging.getLevelNamesMapping()[level.upper()]
    # Plain tracebacks: the pretty ones print local variables, which may be passwords and tokens.
    renderers: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if pretty
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _StandardError())),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(component=component)
    logging.basicConfig(stream=sys.stderr, level=max(numeric, logging.WARNING), format="%(name)s: %(message)s")


log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
"""The logger of the process: `log.info("event", key=value)`."""


def report_failure(name: str, failure: Exception) -> None:
    """Log one failure of a background task; the `report` of `llamesh.background.BackgroundTask`.

    A failure of the environment (disk, network, database, object store, another service) is logged as one line; any other is a bug and is
    logged with its traceback.
    """
    if isinstance(failure, grpc.aio.AioRpcError):
        log.warning("background task failed", task=name, error=f"{failure.code().name}: {failure.details()}")
    elif isinstance(failure, MeshError | OSError | StoreError | grpc.RpcError):
        log.warning("background task failed", task=name, error=str(failure) or type(failure).__name__)
    else:
        log.error("background task failed", task=name, exc_info=failure)
