"""The resources that Envoy should have, by type and name. Each is serialised once and versioned by a hash of its content.

Invariant: the same content has the same version in every process. So building an unchanged resource again sends nothing, and after a
restart of the controller Envoy receives only the differences.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from llamesh.kit import envoy_api

CDS = envoy_api.TYPE_URL + "envoy.config.cluster.v3.Cluster"
EDS = envoy_api.TYPE_URL + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS = envoy_api.TYPE_URL + "envoy.config.listener.v3.Listener"
RDS = envoy_api.TYPE_URL + "envoy.config.route.v3.RouteConfiguration"

TYPES = (CDS, EDS, LDS, RDS)
"""The order in which additions are sent, so that no resource refers to a missing one (make before break)."""

WHOLE_TYPES = (CDS, LDS)
"""The types that Envoy subscribes to as a whole, and whose removals it applies. It subscribes to the others by name."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource in its wire format."""

    name: str
    version: str
    """A hash of the content."""
    message: Any
    """envoy.service.discovery.v3.Resource."""


class Snapshot:
    """The present resources. The cost of changing one does not depend on their number."""

    def __init__(self) -> None:
        self._by_type: dict[str, dict[str, Resource]] = {type_url: {} for type_url in TYPES}

    def of(self, type_url: str) -> Mapping[str, Resource]:
        """Return the resources of one type by name."""
        return self._by_type[type_url]

    def put(self, name: str, content: Message) -> bool:
        """Set the resource `name` of the content's type. Return whether its content has changed."""
        packed = envoy_api.pack(content)
        version = hashlib.sha256(packed.value).hexdigest()[:16]
        present = self._by_type[packed.type_url]
        if name in present and present[name].version == version:
            return False
        message = envoy_api.message_class("envoy.service.discovery.v3.Resource")(
            name=name, version=version, resource=packed
        )
        present[name] = Resource(name, version, message)
        return True

    def remove(self, type_url: str, name: str) -> bool:
        """Remove a resource. Return whether it existed."""
        return self._by_type[type_url].pop(name, None) is not None
