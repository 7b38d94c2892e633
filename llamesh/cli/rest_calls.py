"""The REST calls of the mesh, read from the descriptors of its contracts: `llamesh api` lists them, and names the one that was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from google.api import annotations_pb2

from llamesh.nearest import nearest
from llamesh.v1 import contract_pb2, download_pb2, gateway_pb2, options_pb2, quant_pb2

MANAGEMENT_PORT, QUANT_PORT = 8200, 8300
_SERVICES = (
    (gateway_pb2, "GatewayService", MANAGEMENT_PORT),
    (contract_pb2, "ContractService", MANAGEMENT_PORT),
    (download_pb2, "DownloadService", MANAGEMENT_PORT),
    (quant_pb2, "QuantService", QUANT_PORT),
)
"""The public services, each with the port at which its REST calls are by default. The services at 8200 also have ports of their own."""
_VERBS = ("get", "put", "post", "delete", "patch")
_PLACE = re.compile(r"\{[^}]*\}")
_VARIABLE = re.compile(r"\\\{[^}]*\\\}")


@dataclass(frozen=True, slots=True)
class RestCall:
    """One REST form of a method."""

    verb: str
    path: str
    """The template, for instance `/servers/{server_uuid}:scale`."""
    port: int
    """The port of its service, by default."""
    method: str
    """Service and method, as in gRPC."""

    def matches(self, path: str, value: str = "[^/]+") -> bool:
        """Whether a path has this form. `value`: the pattern of a variable's value."""
        return re.fullmatch(_VARIABLE.sub(value, re.escape(self.path)), path) is not None

    def filled(self, path: str) -> str:
        """Return the template with the values that its variables would have in a path."""
        parts = zip_longest(self.path.split("/"), path.split("/"), fillvalue="")
        return "/".join(given.partition(":")[0].join(_PLACE.split(part)) for part, given in parts)

    def __str__(self) -> str:
        port = "" if self.port == MANAGEMENT_PORT else f":{self.port}"
        return f"{self.verb} {port}{self.path}"


def rest_calls() -> Iterator[RestCall]:
    """Yield every REST call that a client may make."""
    for module, service, port in _SERVICES:
        for method in module.DESCRIPTOR.services_by_name[service].methods:
            options = method.GetOptions()
            rule = options.Extensions[annotations_pb2.http]
            if options.Extensions[options_pb2.access].internal:
                continue
            for form in (rule, *rule.additional_bindings):
                verb = form.WhichOneof("pattern")
                if verb in _VERBS:
                    yield RestCall(verb.upper(), getattr(form, verb), port, f"{service}/{method.name}")


def hint_for(verb: str, path: str) -> str:
    """Return what to call in place of a call that the management port does not have; "" if it has the call."""
    asked = path.partition("?")[0].rstrip("/")  # Envoy ignores a / at the end.
    known = list(rest_calls())
    exact = [call for call in known if call.verb == verb and call.matches(asked)]
    if any(call.port == MANAGEMENT_PORT for call in exact):
        return ""
    if exact:
        return f"the call is {exact[0]}: it is at the port of another service, {exact[0].port} unless set otherwise"
    # The word after a colon is a part of the path here: it may be mistyped too.
    meant = [call for call in known if call.matches(asked, "[^/:]+")] or _nearest(asked, known)
    if not meant:
        return "`llamesh api` lists the calls"
    return f"did you mean {' or '.join(map(str, meant))}? `llamesh api` lists the calls"


def _nearest(path: str, known: Sequence[RestCall]) -> list[RestCall]:
    found = nearest(path, [call.filled(path) for call in known])
    return [call for call in known if found and call.filled(path) == found]
