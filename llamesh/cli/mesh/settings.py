"""Reads the settings in force through the mesh's own program.

The command may not import the kit, so it runs `python -m llamesh.kit.config_loading`: there is one table of settings and one reader. This
also finds an invalid setting before anything starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from llamesh import envoy_secrets
from llamesh.addresses import LOCALHOST, listening_addresses
from llamesh.cli.failure import CommandError, Exit
from llamesh.installation import install_command
from llamesh.local_mesh import Addresses
from llamesh.names import ENVOY, MEMBERS, QUANT


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """The settings that the supervisor uses."""

    home: Path
    run_dir: Path
    bind: str
    public_host: str
    inference_port: int
    gateway_port: int
    contract_port: int
    download_port: int
    drain_seconds: float
    member_patience_seconds: float
    quant: bool = False
    quant_port: int = 8300
    tls_certificate: str = ""
    tls_key: str = ""
    llama_server_bin: str = ""
    member_addresses: Mapping[str, str] = field(default_factory=dict)
    """Where members listen on TCP, by name."""
    member_certificates: Path | None = None
    trust_domain: str = ""
    probe_port: int = 0
    runtime: str = "process"
    minio_endpoint: str = ""
    only: frozenset[str] = frozenset()
    """The members that run on this machine, of `llamesh up --only`; empty: all of them."""
    wrong: tuple[str, ...] = ()
    """Problems of invalid settings, one sentence each; only if `tolerant`."""
    warnings: tuple[str, ...] = ()
    """Variables of the environment that look like settings and are not."""
    has_secret: bool = False
    """Whether JWT_SECRET is set, so that the secret in the home is not used."""

    @property
    def members(self) -> tuple[str, ...]:
        """The members of this mesh, Envoy among them, wherever they run."""
        return tuple(name for name in MEMBERS if name != QUANT or self.quant)

    def runs(self, member: str) -> bool:
        """Whether a member runs on this machine."""
        return member in (self.only or self.members)

    @property
    def logs(self) -> Path:
        """Folder of the log files, one for each component."""
        return self.home / "logs"

    @property
    def listens_on(self) -> tuple[str, ...]:
        """The addresses that Envoy listens on."""
        return listening_addresses(self.bind)

    @property
    def host(self) -> str:
        """Address under which this machine reaches Envoy."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.bind.strip("[]"), self.listens_on[0])  # noqa: S104

    @property
    def engine_environment(self) -> dict[str, str]:
        """The variable by which an engine learns which llama-server to use."""
        return {"LLAMA_SERVER_BIN": self.llama_server_bin} if self.llama_server_bin else {}

    @property
    def tls(self) -> bool:
        """Whether Envoy speaks TLS."""
        return bool(self.tls_certificate or self.tls_key)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach Envoy."""
        try:
            return all(ip_address(address).is_loopback for address in self.listens_on)
        except ValueError:
            return False

    @property
    def ports(self) -> dict[str, int]:
        """Each port that Envoy listens on, by the setting that moves it."""
        return {
            "LLAMESH_INFERENCE_PORT": self.inference_port,
            "LLAMESH_GATEWAY_PORT": self.gateway_port,
            "LLAMESH_CONTRACT_PORT": self.contract_port,
            "LLAMESH_DOWNLOAD_PORT": self.download_port,
            **({"LLAMESH_QUANT_PORT": self.quant_port} if self.quant else {}),
        }

    @property
    def envoy_files(self) -> Path:
        """Folder of the files in which Envoy finds certificates. With members on TCP it is a fixed one below Envoy's home, because the
        controller, which names the files to Envoy, may be on another machine."""
        return self.home / envoy_secrets.FOLDER if self.member_addresses else self.run_dir

    @property
    def addresses(self) -> Addresses:
        """Where this mesh answers, for people and programs on this machine; empty if its Envoy is elsewhere."""
        if not self.runs(ENVOY):
            return Addresses("", "")
        return Addresses(self.url(self.gateway_port), self.url(self.inference_port))

    def url(self, port: int) -> str:
        """Address of one of the ports, for people and programs on this machine."""
        # `localhost` only if Envoy listens on every address of that name.
        return self.url_at(LOCALHOST if self.bind == LOCALHOST else self.host, port)

    def url_at(self, host: str, port: int) -> str:
        """Address of one of the ports under one of this machine's names."""
        return f"{'https' if self.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def read_settings(environment: Mapping[str, str], *, tolerant: bool = False) -> MeshSettings:
    """Return the settings in force. CommandError naming the setting if one is wrong, or the extra if it is missing.

    `tolerant`: defaults take the place of what is wrong, which `wrong` then names.
    """
    result = subprocess.run(
        [sys.executable, "-P", "-m", "llamesh.kit.config_loading", *(("--tolerant",) if tolerant else ())],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 0:
        found = json.loads(result.stdout)
        return MeshSettings(
            home=Path(found["home"]),
            run_dir=Path(found["run_dir"]),
            bind=found["bind"],
            public_host=found["public_host"],
            inference_port=found["inference_port"],
            gateway_port=found["gateway_port"],
            contract_port=found["contract_port"],
            download_port=found["download_port"],
            drain_seconds=found["drain_seconds"],
            member_patience_seconds=found["member_patience_seconds"],
            quant=found["quant"],
            quant_port=found["quant_port"],
            tls_certificate=found["tls_certificate"],
            tls_key=found["tls_key"],
            llama_server_bin=found["llama_server_bin"],
            member_addresses=found["member_addresses"],
            member_certificates=Path(found["member_certificates"]) if found["member_certificates"] else None,
            trust_domain=found["trust_domain"],
            probe_port=found["probe_port"],
            runtime=found["runtime"],
            minio_endpoint=found["minio_endpoint"],
            wrong=tuple(found["wrong"]),
            warnings=tuple(found["warnings"]),
            has_secret=found["has_secret"],
        )
    lines = result.stderr.strip().splitlines() or ["it wrote nothing"]
    if "ModuleNotFoundError" in lines[-1]:
        raise CommandError(
            "this installation is the client only: it cannot run a mesh",
            parts=[lines[-1]],
            hint=install_command("mesh", "engine"),
        )
    if result.returncode == 2:
        raise CommandError("a setting is wrong", parts=lines, code=Exit.USAGE)
    raise CommandError("the settings could not be read", parts=lines[-3:])
