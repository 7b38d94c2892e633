"""A service manager is told in systemd's datagrams; without one, or with one that is gone, nothing happens."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamesh.cli.mesh.service_manager import ServiceManager, without_service_manager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    if request.param == "abstract":
        name = f"@llamesh-test-{os.getpid()}"
        address = "\0" + name[1:]
    else:
        name = address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(address)
        end.settimeout(5)
        yield name, end


def test_it_is_told_each_step(manager: tuple[str, socket.socket]) -> None:
    name, end = manager
    told = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())})
    assert told.alive_every == 30
    told.ready("ready")
    told.alive()
    told.stopping()
    assert [end.recv(200).decode().split("\n")[0] for _ in range(3)] == ["READY=1", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "never"},
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_listener_nothing_happens(environment: dict[str, str]) -> None:
    told = ServiceManager(environment)
    assert told.alive_every == 0
    told.ready("ready")
    told.stopping()


def test_children_do_not_speak_for_the_mesh() -> None:
    kept = without_service_manager({"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1", "PATH": "/bin"})
    assert kept == {"PATH": "/bin"}
