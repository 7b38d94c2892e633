"""Envoy's access log protocol: reports of requests that have ended.

Envoy holds one stream open for each of its access logs and reports each request on it when the request ends. This module decodes the
reports; `settlement` finds the tokens in them, and `admission` records them.

Invariant: no generated text passes through this service: a report has counts and metadata only.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from llamesh.kit.envoy_api import message_class
from llamesh.names import ADMISSION_LOG
from services.contract import settlement
from services.contract.admission import Admission
from services.contract.envoy_request import claims_of, envoy_of, permit_id_of, target_of, text_of
from services.contract.usage import Account, day_of

_LogMessage = message_class("envoy.service.accesslog.v3.StreamAccessLogsMessage")
_LogResponse = message_class("envoy.service.accesslog.v3.StreamAccessLogsResponse")
_ENDED: bytes = _LogResponse().SerializeToString()
_REFUSED_BY_CHECK = (401, 403, 429)
"""Statuses that only `ext_authz` gives, always without a permit. A 503 may also be Envoy's own, for a request that holds a permit."""

_as_it_is: Callable[[bytes], bytes] = bytes
"""Serialiser of a handler that returns bytes."""


class AccessLog:
    """Answers envoy.service.accesslog.v3.AccessLogService. `stopping` is set when this process drains."""

    def __init__(self, admission: Admission, stopping: asyncio.Event) -> None:
        self._admission = admission
        self._stopping = stopping
        self._estimators = settlement.TokenEstimators()
        self._admission_logs: Counter[str] = Counter()
        """Open streams of ADMISSION_LOG, by their Envoy."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service on a server."""
        stream = grpc.stream_unary_rpc_method_handler(self.stream_access_logs, _LogMessage.FromString, _as_it_is)
        service = "envoy.service.accesslog.v3.AccessLogService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"StreamAccessLogs": stream}),))

    async def stream_access_logs(
        self, messages: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> bytes:
        """Read one stream until Envoy ends it or this process drains; Envoy then opens another stream."""
        reader = asyncio.create_task(self._read(messages, envoy_of(context.peer())))
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({reader, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            stop.cancel()
            await asyncio.gather(reader, stop, return_exceptions=True)
        return _ENDED

    async def _read(self, messages: AsyncIterator[Any], envoy: str) -> None:
        of_admission = False
        try:
            async for message in messages:
                if not of_admission and message.identifier.log_name == ADMISSION_LOG:
                    of_admission = True
                    self._admission_logs[envoy] += 1
                for entry in message.http_logs.log_entry:
                    self._record(entry)
        finally:
            if of_admission:
                self._admission_logs[envoy] -= 1
                # A killed Envoy does not report the requests that it carried, and they have ended with it.
                if not self._admission_logs[envoy]:
                    del self._admission_logs[envoy]
                    self._admission.release_all(envoy)

    def _record(self, entry: Any) -> None:
        """Record the usage of one request that has ended, and free its permit."""
        common = entry.common_properties
        status = entry.response.response_code.value
        if status in _REFUSED_BY_CHECK and common.response_flags.HasField("unauthorized_details"):
            return  # it holds no permit, but its id may be the id of another request that holds one
        target = target_of(entry.request.request_headers)[:256]
        if not target:
            return  # a list of models holds no permit and uses no tokens
        claims = claims_of(common.metadata)
        account = Account(
            day_of(common.start_time.seconds),
            text_of(claims, "sub")[:128],
            target,
            text_of(claims, "contract")[:64],
            text_of(claims, "uid")[:64],
        )
        usage = settlement.tokens_used(entry, target, self._estimators)
        self._admission.end(permit_id_of(claims, entry.request.request_id), account, usage)
