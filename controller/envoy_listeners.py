"""Configures Envoy's listeners from the settings and the signing keys: the inference port and the ports of the public services.

Invariant: nothing here depends on the declared servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from controller.xds.clusters import MemberIdentity, ServiceSettings
from controller.xds.inference import InferenceSettings
from controller.xds.management import ManagementSettings, OpenService
from controller.xds.serving import ControlPlane
from controller.xds.tokens import TokenSettings
from llamesh import certificates, envoy_secrets
from llamesh.addresses import listening_addresses
from llamesh.kit import health_names, reflection
from llamesh.kit.config import Settings
from llamesh.locations import expanded
from llamesh.member_certificates import host_name, identity
from llamesh.names import CONTRACT, CONTROLLER, DOWNLOAD, GATEWAY, QUANT, WAKER

_DESCRIPTORS = Path(__file__).resolve().parent.parent / "envoy" / "llamesh.binpb"
_PUBLIC = {
    GATEWAY: "llamesh.v1.GatewayService",
    CONTRACT: "llamesh.v1.ContractService",
    DOWNLOAD: "llamesh.v1.DownloadService",
}
"""The public service of each member. Internal services are never routed."""
_QUANT = ("llamesh.v1.QuantService", QUANT)
"""The Quant service, which is optional. Some of its paths equal paths of the gateway, so its REST API has a port of its own."""


def configure(control: ControlPlane, settings: Settings, jwks: str) -> None:
    """Set the listeners and the clusters of the mesh's own services."""
    tokens = TokenSettings(jwks)
    control.set_static(_services(settings), _inference(settings, tokens), _management(settings, tokens))


def _services(settings: Settings) -> Sequence[ServiceSettings]:
    names = (*_PUBLIC, QUANT) if settings.quant else tuple(_PUBLIC)
    return [*(_service(settings, name, name) for name in names), _service(settings, WAKER, CONTROLLER, http1=True)]


def _service(settings: Settings, name: str, member: str, *, http1: bool = False) -> ServiceSettings:
    """Return what Envoy needs to reach a service of a member."""
    address = settings.member_addresses.get(name)
    if address is None:
        return ServiceSettings(name, str(settings.socket(name)), http1)
    domain, folder = settings.trust_domain, _envoy_files(settings)
    files = envoy_secrets.certificate_file(folder), envoy_secrets.authorities_file(folder)
    proof = MemberIdentity(identity(domain, member), host_name(domain, member), *files)
    return ServiceSettings(name, address, http1, proof)


def _inference(settings: Settings, tokens: TokenSettings) -> InferenceSettings:
    return InferenceSettings(
        addresses=listening_addresses(settings.bind),
        port=settings.inference_port,
        tokens=tokens,
        allow_anonymous=settings.anonymous_allowed,
        allowed_origins=frozenset(settings.allowed_origins),
        allowed_hosts=_hosts(settings),
        secret_file=_secret_file(settings),
        certificate_names=_certificate_names(settings),
        max_body_bytes=settings.max_body_bytes,
        limits=settings.inference_limits,
    )


def _management(settings: Settings, tokens: TokenSettings) -> Sequence[ManagementSettings]:
    services = {member: (service, member) for member, service in _PUBLIC.items()}
    ports = {
        GATEWAY: (settings.gateway_port, tuple(services.values())),
        CONTRACT: (settings.contract_port, (services[CONTRACT],)),
        DOWNLOAD: (settings.download_port, (services[DOWNLOAD],)),
        **({QUANT: (settings.quant_port, (_QUANT,))} if settings.quant else {}),
    }
    return [
        ManagementSettings(
            name=name,
            addresses=listening_addresses(settings.bind),
            port=port,
            tokens=tokens,
            services=served,
            # Health describes the whole mesh, on every port.
            open_methods=() if name == GATEWAY else ((f"{_PUBLIC[GATEWAY]}/GetHealth", GATEWAY),),
            grpc_services=(_QUANT,) if settings.quant and name == GATEWAY else (),
            descriptor_file=_DESCRIPTORS,
            open_services=(
                OpenService(health_names.SERVICE, GATEWAY, health_names.OF_MESH),
                *(OpenService(service, name) for service in (reflection.NAMES if settings.reflection else ())),
            ),
            allowed_origins=frozenset(settings.allowed_origins),
            allowed_hosts=_hosts(settings),
            # Other machines may reach the mesh under host names that it does not know, but it then has no default password. So host names
            # are checked for web pages only, against DNS rebinding. On a loopback mesh, or without tokens, they are checked for all.
            any_host=not settings.loopback and not settings.anonymous_allowed,
            secret_file=_secret_file(settings),
            certificate_names=_certificate_names(settings),
            trusted_proxies=settings.trusted_proxies,
            gateway_port=0 if name == GATEWAY else settings.gateway_port,
        )
        for name, (port, served) in ports.items()
    ]


def _hosts(settings: Settings) -> frozenset[str]:
    return frozenset((*settings.allowed_hosts, settings.public_host.lower()))


def _secret_file(settings: Settings) -> Path | None:
    return certificates.secret_file(_envoy_files(settings)) if settings.tls else None


def _envoy_files(settings: Settings) -> Path:
    """Return the folder of Envoy's files as Envoy finds it; below its home, wherever that is, if members are on TCP."""
    return Path(envoy_secrets.FOLDER) if settings.member_addresses else settings.run_dir


def _certificate_names(settings: Settings) -> frozenset[str]:
    return frozenset(certificates.names(expanded(settings.tls_certificate))) if settings.tls else frozenset()
