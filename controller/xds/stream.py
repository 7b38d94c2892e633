"""One Envoy's delta xDS stream as a state machine: requests in, responses out, no I/O.

Envoy subscribes to a type of resources: to all of them, or by name. Each response has a nonce. Envoy answers it with the nonce alone (ACK)
or with the nonce and an error (NACK). The state machine therefore stores two versions of each resource: the sent one and the acknowledged
one. After a NACK Envoy keeps the last good version, and the refused version is not sent again. Envoy refuses a response as a whole, so the
resources of a refused response are sent once more, one in each response: a bad resource does not block the others.

Invariant: additions are sent in the order CDS, EDS, LDS, RDS, and removals after all additions. After a cluster has changed, its endpoints
are sent again, because Envoy needs them to finish warming the cluster.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from controller.xds.snapshot import CDS, EDS, TYPES, WHOLE_TYPES, Snapshot
from llamesh.kit import envoy_api


@dataclass(frozen=True)
class Nack:
    """A response that Envoy refused, with Envoy's error message."""

    type_url: str
    names: tuple[str, ...]
    message: str


@dataclass
class _Subscription:
    """One Envoy's subscription to one type of resources, and the versions that it has."""

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    sent: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)
    in_flight: dict[str, dict[str, str]] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)
    unanswered: bool = True

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names


class DeltaStream:
    """The state of one stream.

    Args:
        snapshot: the resources that Envoy should have. The stream only reads it.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._subscriptions: dict[str, _Subscription] = {}
        self._sent_responses = 0
        self.node_id = ""

    def receive(self, request: Any) -> Nack | None:
        """Process one DeltaDiscoveryRequest. Return the NACK if the request is one."""
        self.node_id = request.node.id or self.node_id
        if request.type_url not in TYPES:
            return None
        subscription = self._subscriptions.get(request.type_url)
        if subscription is None:
            subscription = self._open(request)
        self._subscribe(request, subscription)
        if request.response_nonce:
            return self._settle(request, subscription)
        return None

    def change(self, type_url: str, names: Iterable[str]) -> None:
        """Note that these resources were changed or removed in the snapshot."""
        if subscription := self._subscriptions.get(type_url):
            subscription.changed.update(name for name in names if subscription.wants(name))

    def responses(self) -> list[Any]:
        """Return the responses to send now, in order. A request that arrives while they are sent is answered by the next call."""
        made: list[Any] = []
        for type_url in TYPES:
            if subscription := self._subscriptions.get(type_url):
                made += self._additions(type_url, subscription)
        for type_url in reversed(TYPES):
            if subscription := self._subscriptions.get(type_url):
                made += self._removals(type_url, subscription)
        return made

    def has(self, type_url: str, name: str) -> bool:
        """Return whether Envoy has acknowledged the present version of the resource."""
        resource = self._snapshot.of(type_url).get(name)
        subscription = self._subscriptions.get(type_url)
        if resource is None or subscription is None:
            return False
        return subscription.acknowledged.get(name) == resource.version

    def _open(self, request: Any) -> _Subscription:
        subscription = self._subscriptions[request.type_url] = _Subscription()
        subscription.sent = dict(request.initial_resource_versions)
        subscription.acknowledged = dict(subscription.sent)
        if request.type_url in WHOLE_TYPES and not request.resource_names_subscribe:
            subscription.wildcard = True
            self._compare_all(request.type_url, subscription)
        return subscription

    def _subscribe(self, request: Any, subscription: _Subscription) -> None:
        known = request.initial_resource_versions
        for name in request.resource_names_subscribe:
            if name == "*":
                subscription.wildcard = True
                self._compare_all(request.type_url, subscription)
                continue
            subscription.names.add(name)
            subscription.changed.add(name)
            if name not in known:
                # Envoy has no version of it, so it gets one even if the same version was sent before.
                subscription.sent.pop(name, None)
        for name in request.resource_names_unsubscribe:
            if name == "*":
                subscription.wildcard = False
            subscription.names.discard(name)
            if not subscription.wants(name):
                subscription.sent.pop(name, None)
                subscription.acknowledged.pop(name, None)

    def _compare_all(self, type_url: str, subscription: _Subscription) -> None:
        subscription.changed.update(self._snapshot.of(type_url))
        subscription.changed.update(subscription.sent)

    def _settle(self, request: Any, subscription: _Subscription) -> Nack | None:
        offered = subscription.in_flight.pop(request.response_nonce, {})
        if not request.error_detail.code and not request.error_detail.message:
            subscription.acknowledged.update(offered)
            return None
        if len(offered) > 1:
            for name in offered:
                subscription.sent.pop(name, None)
            subscription.alone.update(offered)
            subscription.changed.update(offered)
        return Nack(request.type_url, tuple(sorted(offered)), request.error_detail.message)

    def _additions(self, type_url: str, subscription: _Subscription) -> Iterator[Any]:
        present = self._snapshot.of(type_url)
        fresh = [
            present[name]
            for name in sorted(subscription.changed)
            if name in present and subscription.wants(name) and subscription.sent.get(name) != present[name].version
        ]
        subscription.changed.difference_update(present)
        together = [resource for resource in fresh if resource.name not in subscription.alone]
        groups = [together] if together else []
        groups += [[resource] for resource in fresh if resource.name in subscription.alone]
        subscription.alone.difference_update(resource.name for resource in fresh)
        for group in groups:
            offered = {resource.name: resource.version for resource in group}
            subscription.sent.update(offered)
            yield self._response(type_url, subscription, offered, resources=[resource.message for resource in group])
        if type_url == CDS and fresh and (endpoints := self._subscriptions.get(EDS)):
            for resource in fresh:
                if endpoints.wants(resource.name):
                    endpoints.sent.pop(resource.name, None)
                    endpoints.changed.add(resource.name)
        if subscription.unanswered and not fresh and not subscription.changed and subscription.wildcard:
            # Envoy waits for a first response before it continues, even if there are no resources.
            yield self._response(type_url, subscription, {})

    def _removals(self, type_url: str, subscription: _Subscription) -> Iterator[Any]:
        gone = sorted(subscription.changed)
        subscription.changed.clear()
        for name in gone:
            subscription.acknowledged.pop(name, None)
        if type_url in WHOLE_TYPES:
            gone = [
                name for name in gone if subscription.sent.pop(name, None) is not None or name in subscription.names
            ]
        if gone:
            yield self._response(type_url, subscription, {}, removed_resources=gone)

    def _response(self, type_url: str, subscription: _Subscription, offered: dict[str, str], **content: Any) -> Any:
        subscription.unanswered = False
        self._sent_responses += 1
        nonce = str(self._sent_responses)
        subscription.in_flight[nonce] = offered
        response = envoy_api.message_class("envoy.service.discovery.v3.DeltaDiscoveryResponse")
        return response(type_url=type_url, nonce=nonce, **content)
