"""Records of engines that outlive the controller: one small JSON file for each engine, written before the engine is started.

Invariant: a record is replaced in one step; one that cannot be read counts as none. The directory and each of its files may vanish or be
damaged at any time: what is written next makes them anew.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

from llamesh.kit.logs import log
from llamesh.names import hidden_socket
from llamesh.processes import ProcessId, command_lines
from llamesh.runtime_parameters import DEFAULT_BATCH

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class EngineRecord:
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
    batch: int = DEFAULT_BATCH
    """Tokens of prompt that it computes at once."""

    @property
    def process(self) -> ProcessId:
        """The process that is meant."""
        return ProcessId(self.pid, self.started)


class EngineRecords:
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

    def free_instance(self, server_uuid: str, taken: Container[str] = ()) -> str:
        """A name that no engine has, neither of those `taken` nor on disk. RuntimeError if a server has 1296 engines."""
        prefix = server_uuid[:8]
        for number in range(len(_DIGITS) ** 2):
            name = f"{prefix}-{_DIGITS[number // len(_DIGITS)]}{_DIGITS[number % len(_DIGITS)]}"
            if name not in taken and not self._path(name).exists() and not self.socket(name).exists():
                return name
        raise RuntimeError(f"the server {server_uuid} has too many engines")

    def write(self, record: EngineRecord) -> EngineRecord:
        """Write a record in one step. Raises OSError; then the record before is still there."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = self._path(record.instance).with_suffix(".tmp")
        try:
            unfinished.write_text(_text(record))
            unfinished.replace(self._path(record.instance))
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        return record

    def keep(self, record: EngineRecord) -> None:
        """See to it that the file says what the record does. Raises OSError."""
        try:
            if self._path(record.instance).read_text() == _text(record):
                return
        except (OSError, ValueError):
            pass  # It is written anew, whatever was wrong with it.
        self.write(record)

    def write_spec(self, instance: str, document: Mapping[str, object]) -> None:
        """Write what the engine is told, and remove what an earlier engine of the name said of itself. Raises OSError."""
        self.state(instance).unlink(missing_ok=True)
        self.spec(instance).write_text(json.dumps(document))

    def remove(self, instance: str) -> None:
        """Remove a record and all files beside it, the record last: none is ever an orphan. A retiring engine hides its socket.

        What cannot be removed stays: it is found again when its name is needed, or by the next controller.
        """
        hidden = hidden_socket(self.socket(instance))
        beside = (self.socket(instance), self.hand_over(instance), self.spec(instance), self.state(instance), hidden)
        for path in (*beside, self._path(instance)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def all(self) -> Iterator[EngineRecord]:
        """Every record that can be read; others are removed."""
        for path in sorted(self.directory.glob("*.json")):
            try:
                record = EngineRecord(**json.loads(path.read_text()))
                if (
                    record.instance == path.stem
                    and isinstance(record.pid, int)
                    and isinstance(record.start_seconds, float)
                ):
                    yield record
                    continue
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError):
                pass  # Damaged, or of an older make.
            log.warning("damaged record of an engine removed", file=str(path))
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def running(self) -> dict[str, ProcessId]:
        """The engines of this directory that run, by instance, found by their command lines."""
        found = {}
        for process, words in command_lines():
            for module, argument in pairwise(words):
                path = Path(argument)
                if module == "engine" and path.parent == self.directory and path.suffix == ".spec":
                    found[path.stem] = process
        return found

    def explanation(self, instance: str) -> tuple[str, str] | None:
        """The reason and the message that an engine left behind when it failed; None if it did not fail."""
        said = self._said(instance)
        if said.get("phase") == "failed":
            return str(said.get("reason", "")), str(said.get("message", ""))
        return None

    def was_ready(self, instance: str) -> bool:
        """Whether an engine says that it had become ready. It cannot say that it hangs."""
        return self._said(instance).get("phase") == "ready"

    def _said(self, instance: str) -> Mapping[str, object]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.state(instance).read_text())
            if isinstance(found, dict):
                return found
        return {}

    def _path(self, instance: str) -> Path:
        return self.directory / f"{instance}.json"


def new_record(
    instance: str, server_uuid: str, replica: int, spec_hash: str, batch: int = DEFAULT_BATCH
) -> EngineRecord:
    """The record of an engine that is about to be started."""
    return EngineRecord(instance, server_uuid, replica, spec_hash, time.time(), batch=batch)


def orphan_record(instance: str, process: ProcessId) -> EngineRecord:
    """The record of an engine that runs but has lost its own: it counts as that of a server which nobody declared, so it ends."""
    return with_process(new_record(instance, f"orphan-{instance}", 0, ""), process)


def with_process(record: EngineRecord, process: ProcessId) -> EngineRecord:
    """The record of an engine that runs."""
    return replace(record, pid=process.pid, started=process.started)


def _text(record: EngineRecord) -> str:
    return json.dumps(asdict(record))
