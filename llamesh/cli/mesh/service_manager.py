"""Notifies systemd (sd_notify(3), Type=notify): ready, stopping, watchdog. Without NOTIFY_SOCKET nothing is sent.

Invariant: nothing here raises, because a mesh serves even if its service manager does not listen.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """The service manager that started this process, or none."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watchdog = _watchdog_seconds(environment) if self._address else 0.0

    @property
    def alive_every(self) -> float:
        """Interval in seconds of watchdog notifications; 0: none."""
        return self._watchdog / 2

    def ready(self, words: str) -> None:
        """Notify that the mesh is ready."""
        self._send(f"READY=1\nSTATUS={words}")

    def stopping(self) -> None:
        """Notify that the mesh is stopping."""
        self._send("STOPPING=1\nSTATUS=finishing running requests")

    def alive(self) -> None:
        """Send the watchdog notification."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the zero byte of an abstract socket.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), address)


def without_service_manager(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables of the service manager: only the supervisor notifies it, no child."""
    return {name: value for name, value in environment.items() if name not in _VARIABLES}


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return int(environment.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return 0.0
