"""A channel to another member over TCP with mutual TLS, whose certificate may change while it is open.

gRPC's credentials of a client are fixed. So this channel has one gRPC channel for each version of the certificate files and makes each
call through the newest. An earlier one is closed when its last call or stream has ended.

A watch waits for its server without a deadline. If the certificate changes before it has begun, it would wait with credentials that
expire; so it begins again on the newest channel. Other calls do not wait, or have a deadline that ends long before the certificate does.

Invariant: no call is ended because a certificate was replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

from llamesh.kit.member_tls import MemberTls
from llamesh.member_certificates import MemberCertificate, host_name

Options = list[tuple[str, int | str]]

_LOOK_SECONDS = 5.0
"""Seconds between two comparisons of the certificate files while a stream waits for its server."""


@dataclass(slots=True, eq=False)
class _Generation:
    """The channel of one version of the files, and its running calls."""

    certificate: MemberCertificate
    channel: grpc.aio.Channel
    made: dict[_Method, Any] = field(default_factory=dict)
    """The callables of its methods."""
    running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no call runs."""

    def __post_init__(self) -> None:
        self.idle.set()

    def note(self, call: Any) -> Any:
        """Count a call until its end, and return it."""
        self.running += 1
        self.idle.clear()
        call.add_done_callback(self._ended)
        return call

    def _ended(self, _call: object) -> None:
        self.running -= 1
        if not self.running:
            self.idle.set()

    async def retire(self) -> None:
        """Close the channel when its last call has ended."""
        await self.idle.wait()
        await self.channel.close()


class RotatingChannel(grpc.aio.Channel):
    """A channel to the member `service` at `address` (host:port). Only its event loop uses it."""

    def __init__(self, tls: MemberTls, address: str, service: str, options: Options) -> None:
        name = host_name(tls.domain, service)
        # The server's certificate must have this name, wherever the server is.
        named = {"grpc.ssl_target_name_override": name, "grpc.default_authority": name}
        self._options = list((dict(options) | named).items())
        self._tls = tls
        self._address = address
        self._present = self._open(tls.look())
        self._closed = False
        self._earlier: dict[asyncio.Task[None], _Generation] = {}
        """The channels that have calls of earlier certificates."""

    def present(self) -> _Generation:
        """Return the channel of the present files."""
        found = self._tls.look()
        if found is not self._present.certificate and not self._closed:
            retiring = asyncio.create_task(self._present.retire(), name=f"retire a channel to {self._address}")
            self._earlier[retiring] = self._present
            retiring.add_done_callback(self._earlier.pop)
            self._present = self._open(found)
        return self._present

    def _open(self, certificate: MemberCertificate) -> _Generation:
        credentials = grpc.ssl_channel_credentials(certificate.authorities, certificate.key, certificate.chain)
        return _Generation(certificate, grpc.aio.secure_channel(self._address, credentials, options=self._options))

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """Return a callable for a method; so do the other three, as the channels of gRPC."""
        return _Method(self, lambda channel: channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:  # noqa: D102 - as gRPC describes it
        return _Watch(self, lambda channel: channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:  # noqa: D102 - as gRPC describes it
        return _Method(self, lambda channel: channel.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:  # noqa: D102 - as gRPC describes it
        return _Method(self, lambda channel: channel.stream_stream(*arguments, **options))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: D102 - as gRPC describes it
        return self.present().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:  # noqa: D102 - as gRPC describes it
        await self.present().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:  # noqa: D102 - as gRPC describes it
        await self.present().channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Close all channels and end their calls."""
        self._closed = True
        earlier = dict(self._earlier)
        await asyncio.gather(*(each.channel.close(grace) for each in (self._present, *earlier.values())))
        for retiring in earlier:
            retiring.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.close(None)


class _Method:
    """A method that is called on the present channel."""

    def __init__(self, channel: RotatingChannel, make: Callable[[grpc.aio.Channel], Any]) -> None:
        self._channel = channel
        self._make = make

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        generation = self._channel.present()
        return generation.note(self._of(generation)(*arguments, **options))

    def _of(self, generation: _Generation) -> Any:
        if self not in generation.made:
            generation.made[self] = self._make(generation.channel)
        return generation.made[self]


class _Watch(_Method):
    """A method that answers with a stream."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if options.get("wait_for_ready") and options.get("timeout") is None:
            return self._patiently(*arguments, **options)
        return super().__call__(*arguments, **options)

    async def _patiently(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        """Yield the messages of the stream; until it has begun, begin it again whenever the channel is replaced."""
        call: Any = None
        while call is None:
            generation = self._channel.present()
            call = generation.note(self._of(generation)(*arguments, **options))
            try:
                if not await _began(call, generation, self._channel):
                    call.cancel()
                    call = None
            except BaseException:
                call.cancel()
                raise
        try:
            async for message in call:
                yield message
        finally:
            # The reader may have stopped before the end.
            call.cancel()


async def _began(call: Any, generation: _Generation, channel: RotatingChannel) -> bool:
    """Wait for the head of a stream's answer, or its failure. Return False if the channel is replaced before."""
    head = asyncio.ensure_future(call.initial_metadata())
    try:
        while not head.done() and channel.present() is generation:
            await asyncio.wait({head}, timeout=_LOOK_SECONDS)
        return bool(head.done())
    finally:
        head.cancel()
        await asyncio.gather(head, return_exceptions=True)
