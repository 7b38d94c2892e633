"""Which member may call what over TCP, as data: each method of each service with the members whose code calls it.

Invariant: a call that is not in the table is refused. Envoy may call what its listeners route and what it calls itself: public methods,
health and reflection at the front door, Admission, its access log and its configuration; never an internal method of a contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from llamesh.kit import health_names, reflection
from llamesh.kit.methods import method_of
from llamesh.names import CONTRACT, CONTROLLER, DOWNLOAD, ENVOY, GATEWAY, QUANT

_ANY = "*"
"""Any method of the service; for Envoy, any that is not internal."""

CALLS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "llamesh.v1.GatewayService": {ENVOY: (_ANY,)},
    "llamesh.v1.SigningKeyService": {CONTROLLER: ("ListSigningKeys",), CONTRACT: ("SignToken",)},
    "llamesh.v1.StandingService": {
        CONTRACT: ("WatchStandings", "CountContractUsers"),
        DOWNLOAD: ("WatchStandings",),
        CONTROLLER: ("WatchStandings",),
        QUANT: ("WatchStandings",),
    },
    "llamesh.v1.ContractService": {
        ENVOY: (_ANY,),
        GATEWAY: ("Check", "GetContract"),
        DOWNLOAD: ("EstimateMemory",),
        CONTROLLER: ("CheckDeclaredServer",),
    },
    "llamesh.v1.AdmissionService": {
        GATEWAY: ("Grant", "WatchRevocations"),
        DOWNLOAD: ("WatchRevocations",),
        CONTROLLER: ("WatchRevocations", "WatchLimitedContracts"),
        QUANT: ("WatchRevocations",),
    },
    "llamesh.v1.DownloadService": {ENVOY: (_ANY,)},
    "llamesh.v1.CatalogueService": {
        GATEWAY: (
            "GetCatalogueModel",
            "ListCatalogueModels",
            "ChangeCatalogueModelAliases",
            "DeleteCatalogueModel",
            "WatchCatalogue",
        ),
        CONTRACT: ("GetCatalogueModel",),
        CONTROLLER: ("LocateModel", "ListModelObjects"),
        QUANT: ("GetCatalogueModel", "LocateModel", "ListModelObjects"),
    },
    "llamesh.v1.CheckpointService": {QUANT: (_ANY,)},
    "llamesh.v1.ControllerService": {
        GATEWAY: (
            "DeclareServer",
            "UpdateDeclaredServer",
            "GetDeclaredServer",
            "FindRequestedServer",
            "ListDeclaredServers",
            "RemoveServer",
            "SleepDeclaredServer",
            "WakeDeclaredServer",
            "WatchServers",
            "GetMeshStatus",
            "ReadEngineLog",
        ),
        CONTRACT: ("GetDeclaredServer", "GetCapacity"),
        DOWNLOAD: ("GetCapacity", "ListDeclaredServers"),
    },
    "llamesh.v1.QuantService": {ENVOY: (_ANY,), DOWNLOAD: ("ListQuantSources", "LocateQuantModel")},
    "llamesh.v1.MetricsService": {GATEWAY: (_ANY,)},
    "envoy.service.auth.v3.Authorization": {ENVOY: (_ANY,)},
    "envoy.service.accesslog.v3.AccessLogService": {ENVOY: (_ANY,)},
    "envoy.service.discovery.v3.AggregatedDiscoveryService": {ENVOY: (_ANY,)},
    health_names.SERVICE: {GATEWAY: (_ANY,)},
    health_names.OF_MESH: {ENVOY: (_ANY,)},
    **{name: {ENVOY: (_ANY,)} for name in reflection.NAMES},
}
"""Services, the members that call each, and the methods that they call."""

FORWARDERS = frozenset({ENVOY, GATEWAY, CONTRACT, DOWNLOAD, QUANT})
"""Members that may forward a caller's identity. The controller calls for itself only."""


@lru_cache(maxsize=4096)
def may_call(caller: str, method: str) -> bool:
    """Whether a member may call a method, which has the form "/llamesh.v1.GatewayService/Serve"."""
    service, _, name = method.strip("/").partition("/")
    allowed = CALLS.get(service, {}).get(caller, ())
    if name in allowed:
        return True
    access = method_of(method).access
    return _ANY in allowed and not (caller == ENVOY and access is not None and access.internal)
