# ruff: noqa: ASYNC109 a timeout here is the deadline of a gRPC call, which the server learns of
"""Sends calls over one gRPC channel to the front door: adds the token, translates errors, and retries idempotent calls."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import Message

from llamesh.client import errors, retries
from llamesh.client.silence import Silence
from llamesh.client.trust import root_certificates

Answer = TypeVar("Answer", bound=Message)

DEADLINE = 30.0
"""Default deadline of a call in seconds, retries and pauses included."""

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def _target(url: str) -> tuple[str, bool, list[tuple[str, Any]]]:
    """Split an address into target, whether to use TLS, and channel options. ValueError if it is not an address."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is not an address like http://localhost:8200")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 8200)
    options: list[tuple[str, Any]] = [
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name, this option also limits how long one connection attempt may take.
        ("grpc.min_reconnect_backoff_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    if parts.hostname in _LOOPBACK:
        # A proxy of the environment cannot reach this machine's own loopback.
        options.append(("grpc.enable_http_proxy", 0))
    return f"{host}:{port}", parts.scheme == "https", options


def _credentials(url: str) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root_certificates=root_certificates(url))


class _Caller:
    """Base class of the two transports, with and without `await`."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.silence = Silence()

    def _metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")] if self.token else []


class AsyncTransport(_Caller):
    """Calls with `await`."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(token)
        target, tls, options = _target(url)
        self.channel = (
            grpc.aio.secure_channel(target, _credentials(url), options=options)
            if tls
            else grpc.aio.insecure_channel(target, options=options)
        )

    async def call(self, method: str, request: Message, answer: type[Answer], timeout: float | None = None) -> Answer:
        """Make a unary call."""
        send: Any = self.channel.unary_unary(f"/{method}", type(request).SerializeToString, answer.FromString)
        ends = time.monotonic() + (DEADLINE if timeout is None else timeout)
        tries = 0
        while True:
            tries += 1
            left = max(ends - time.monotonic(), 0.001)
            try:
                return await send(request, timeout=left, metadata=self._metadata())  # type: ignore[no-any-return]
            except grpc.RpcError as failure:
                error = errors.of_call(failure)
                pause = _pause(method, request, error, tries, ends)
                if pause is None:
                    raise error from failure
            await asyncio.sleep(pause)

    async def stream(
        self, method: str, request: Message, answer: type[Answer], timeout: float | None = None
    ) -> AsyncIterator[Answer]:
        """Yield the responses of a stream. Without a timeout the stream has no deadline."""
        send: Any = self.channel.unary_stream(f"/{method}", type(request).SerializeToString, answer.FromString)
        call = send(request, timeout=timeout, metadata=self._metadata())
        try:
            async for item in call:
                yield item
        except grpc.RpcError as failure:
            raise errors.of_call(failure) from failure
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()


class Transport(_Caller):
    """Calls that block."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(token)
        target, tls, options = _target(url)
        self.channel = (
            grpc.secure_channel(target, _credentials(url), options=options)
            if tls
            else grpc.insecure_channel(target, options=options)
        )

    def call(self, method: str, request: Message, answer: type[Answer], timeout: float | None = None) -> Answer:
        """Make a unary call."""
        send: Any = self.channel.unary_unary(f"/{method}", type(request).SerializeToString, answer.FromString)
        ends = time.monotonic() + (DEADLINE if timeout is None else timeout)
        tries = 0
        while True:
            tries += 1
            left = max(ends - time.monotonic(), 0.001)
            try:
                return send(request, timeout=left, metadata=self._metadata())  # type: ignore[no-any-return]
            except grpc.RpcError as failure:
                error = errors.of_call(failure)
                pause = _pause(method, request, error, tries, ends)
                if pause is None:
                    raise error from failure
            time.sleep(pause)

    def stream(
        self, method: str, request: Message, answer: type[Answer], timeout: float | None = None
    ) -> Iterator[Answer]:
        """Yield the responses of a stream. Without a timeout the stream has no deadline."""
        send: Any = self.channel.unary_stream(f"/{method}", type(request).SerializeToString, answer.FromString)
        call = send(request, timeout=timeout, metadata=self._metadata())
        try:
            yield from call
        except grpc.RpcError as failure:
            raise errors.of_call(failure) from failure
        finally:
            call.cancel()

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


def _pause(method: str, request: Message, error: errors.MeshError, tries: int, ends: float) -> float | None:
    return retries.pause_before_next(
        error,
        tries=tries,
        may_repeat=retries.may_repeat(method, request),
        left=ends - time.monotonic(),
        random=random.random,
    )
