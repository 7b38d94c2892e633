"""What survives the controller: one small JSON file an engine, written before the engine is started.

Invariant: an engine that runs has a record. A record is replaced in one step; one that cannot be read counts as none.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llamesh.processes import ProcessId

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Record:
    """One engine."""

    instance: str
    server_uuid: str
    replica: int
    spec_hash: str
    start_seconds: float
    """When it was started, in seconds since 1970."""
    pid: int = 0
    """0: it was about to be started when this was written."""
    started: str = ""
    """The process's start time in the system's own words: see `identity`."""
    stopping: bool = False
    """It was told to end."""

    @property
    def process(self) -> ProcessId:
        """The process that is meant."""
        return ProcessId(self.pid, self.started)


class Records:
    """The records of one directory, and the names of the files beside them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def socket(self, instance: str) -> Path:
        """Where the engine answers. The name is as long as it may be: see llamesh.locations."""
        return self.directory / f"{instance}.sock"

    def hand_over(self, instance: str) -> Path:
        """Where the engine hands over its listening socket."""
        return self.directory / f"{instance}.hand"

    def spec(self, instance: str) -> Path:
        """What the engine is told."""
        return self.directory / f"{instance}.spec"

    def state(self, instance: str) -> Path:
        """What the engine says of itself."""
        return self.directory / f"{instance}.state"

    def free_instance(self, server_uuid: str) -> str:
        """A name that no engine has. RuntimeError where a server has 1296 engines."""
        prefix = server_uuid[:8]
        for number in range(len(_DIGITS) ** 2):
            name = f"{prefix}-{_DIGITS[number // len(_DIGITS)]}{_DIGITS[number % len(_DIGITS)]}"
            if not self._path(name).exists():
                return name
        raise RuntimeError(f"the server {server_uuid} has too many engines")

    def write(self, record: Record) -> Record:
        """Write a record in one step."""
        unfinished = self._path(record.instance).with_suffix(".tmp")
        unfinished.write_text(json.dumps(asdict(record)))
        unfinished.replace(self._path(record.instance))
        return record

    def remove(self, instance: str) -> None:
        """Remove a record and all files beside it, the record last: none is ever an orphan. A retiring engine hides its socket."""
        hidden = self.directory / f"~{instance[1:]}.sock"
        beside = (self.socket(instance), self.hand_over(instance), self.spec(instance), self.state(instance), hidden)
        for path in (*beside, self._path(instance)):
            path.unlink(missing_ok=True)

    def all(self) -> Iterator[Record]:
        """Every record that can be read; those of an older make are removed."""
        for path in sorted(self.directory.glob("*.json")):
            try:
                yield Record(**json.loads(path.read_text()))
            except FileNotFoundError:
                continue
            except (ValueError, TypeError):
                path.unlink(missing_ok=True)

    def explanation(self, instance: str) -> tuple[str, str] | None:
        """The reason and the message that an engine left behind when it failed; None where it did not."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(self.state(instance).read_text())
            if state["phase"] == "failed":
                return str(state["reason"]), str(state["message"])
        return None

    def _path(self, instance: str) -> Path:
        return self.directory / f"{instance}.json"


def new_record(instance: str, server_uuid: str, replica: int, spec_hash: str) -> Record:
    """The record of an engine that is about to be started."""
    return Record(instance, server_uuid, replica, spec_hash, time.time())


def with_process(record: Record, process: ProcessId) -> Record:
    """The record of an engine that runs."""
    return replace(record, pid=process.pid, started=process.started)
