"""Real nginx and Caddy with the configurations of docs/guide/proxies.md, in a folder, on a free port of loopback."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.mesh.running import ROOT, until
from tests.ports import free_ports
from tools.packages import program

NAME = "llm.example.com"
"""The host name of the page."""
_PAGE = ROOT / "docs" / "guide" / "proxies.md"
_NGINX = """
error_log {folder}/error.log; pid {folder}/nginx.pid; daemon off; {user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {site}
}}
"""
_CADDY = """
{{
    admin off
    auto_https disable_redirects
    storage file_system {folder}/storage
}}
{site}
"""


@dataclass(frozen=True)
class Certificate:
    """What `llamesh tls init` made for the page's host name and localhost."""

    folder: Path

    @classmethod
    def make(cls, home: Path) -> Certificate:
        environment = {**os.environ, "LLAMESH_HOME": str(home)}
        words = [sys.executable, "-m", "llamesh.cli.main", "tls", "init", "--name", NAME]
        subprocess.run(words, env=environment, check=True, capture_output=True, timeout=60)
        return cls(home / "tls")

    @property
    def authority(self) -> Path:
        return self.folder / "ca.pem"


def blocks(language: str) -> tuple[str, str]:
    """The page's configuration of a proxy, and its lines for a path prefix."""
    site, prefix = re.findall(
        rf"^```{language}\n(.*?)^```", _PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return site, prefix


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """The text with other values. AssertionError if the page has no such value, so that no change is lost."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def _nginx(folder: Path, port: int, certificate: Certificate, upstreams: Mapping[str, str]) -> tuple[Path, list[str]]:
    site, prefix = blocks("nginx")
    head, end = site.rstrip().rsplit("}", 1)
    changes = {"listen 443": f"listen 127.0.0.1:{port}", **upstreams}
    changes |= {f"/etc/ssl/llm.{kind}": str(certificate.folder / f"server.{kind}") for kind in ("pem", "key")}
    # Below root the worker would be a user who may not read the folder.
    user = "user root;" if os.geteuid() == 0 else ""
    written = _NGINX.format(folder=folder, user=user, site=replaced(f"{head}{prefix}}}{end}", changes))
    file = folder / "nginx.conf"
    file.write_text(written)
    return file, ["-p", str(folder), "-e", str(folder / "error.log"), "-c", str(file)]


def _caddy(folder: Path, port: int, certificate: Certificate, upstreams: Mapping[str, str]) -> tuple[Path, list[str]]:
    site, prefix = blocks("caddyfile")
    head, end = site.rstrip().rsplit("}", 1)
    addresses = ", ".join(f"https://{name}:{port}" for name in (NAME, "localhost"))
    shown = (
        f"{addresses} {{\n    bind 127.0.0.1\n    tls {certificate.folder}/server.pem {certificate.folder}/server.key"
    )
    changes = {f"{NAME} {{": shown, **upstreams}
    file = folder / "Caddyfile"
    file.write_text(_CADDY.format(folder=folder, site=replaced(f"{head}{prefix}}}{end}", changes)))
    return file, ["run", "--adapter", "caddyfile", "--config", str(file)]


_KINDS = {"nginx": _nginx, "caddy": _caddy}


@contextmanager
def running_proxy(name: str, certificate: Certificate, inference: int, gateway: int) -> Iterator[int]:
    """The port of a proxy, with TLS, in front of a mesh at two ports of loopback."""
    binary = program(name)
    assert binary is not None
    folder, (port,) = Path(tempfile.mkdtemp(prefix=f"{name}-")), free_ports(1)
    upstreams = {"127.0.0.1:8080": f"127.0.0.1:{inference}", "127.0.0.1:8200": f"127.0.0.1:{gateway}"}
    file, words = _KINDS[name](folder, port, certificate, upstreams)
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    log = folder / "error.log"
    with log.open("ab") as output:
        process = subprocess.Popen([binary, *words], env=environment, stdout=output, stderr=output)
    try:

        def listens() -> bool:
            assert process.poll() is None, f"{log.read_text()}\n{file.read_text()}"
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        until(listens, 30, name)
        yield port
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
