"""Records of engines that outlive the controller: one small JSON file for each engine, written before the engine is started.

Invariant: a record is replaced atomically, and an unreadable record counts as missing. The directory and its files may vanish or be damaged
at any time; the next write restores them.
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
from llamesh.private_files import write_private
from llamesh.processes import ProcessId, command_lines
from llamesh.runtime_parameters import DEFAULT_BATCH

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """Record of one engine."""

    instance: str
    server_uuid: str
    replica: int
    spec_hash: str
    start_seconds: float
    """Start time of the engine, in seconds since 1970."""
    pid: int = 0
    """Process id; 0 if the record was written before the engine was started."""
    started: str = ""
    """Start time of the process as the system reports it: see `identity`."""
    stopping: bool = False
    """Whether a stop of the engine was requested."""
    batch: int = DEFAULT_BATCH
    """Number of prompt tokens that the engine computes in one batch."""

    @property
    def process(self) -> ProcessId:
        """Identity of the engine's process."""
        return ProcessId(self.pid, self.started)


class EngineRecords:
    """Records in one directory, and the paths of the other files of each engine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def socket(self, instance: str) -> Path:
        """Socket on which the engine answers. Its path uses the full length allowed: see llamesh.locations."""
        return self.directory / f"{instance}.sock"

    def hand_over(self, instance: str) -> Path:
        """Socket on which the engine hands over its listening socket."""
        return self.directory / f"{instance}.hand"

    def spec(self, instance: str) -> Path:
        """Spec file of the engine."""
        return self.directory / f"{instance}.spec"

    def state(self, instance: str) -> Path:
        """State file that the engine writes."""
        return self.directory / f"{instance}.state"

    def free_instance(self, server_uuid: str, taken: Container[str] = ()) -> str:
        """Return a free instance name, neither `taken` nor on disk. Raises RuntimeError if a server has 1296 engines."""
        prefix = server_uuid[:8]
        for number in range(len(_DIGITS) ** 2):
            name = f"{prefix}-{_DIGITS[number // len(_DIGITS)]}{_DIGITS[number % len(_DIGITS)]}"
            if name not in taken and not self._path(name).exists() and not self.socket(name).exists():
                return name
        raise RuntimeError(f"the server {server_uuid} has too many engines")

    def write(self, record: EngineRecord) -> EngineRecord:
        """Write a record atomically. Raises OSError and then keeps the previous record."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._path(record.instance), _text(record).encode(), durable=False)
        return record

    def keep(self, record: EngineRecord) -> None:
        """Write the record if its file differs. Raises OSError."""
        try:
            if self._path(record.instance).read_text(encoding="utf-8") == _text(record):
                return
        except (OSError, ValueError):
            pass  # Rewrite the file, independent of the cause.
        self.write(record)

    def write_spec(self, instance: str, document: Mapping[str, object]) -> None:
        """Write the spec file, and remove the state file of an earlier engine of this name. Raises OSError."""
        self.state(instance).unlink(missing_ok=True)
        self.spec(instance).write_text(json.dumps(document), encoding="utf-8")

    def remove(self, instance: str) -> None:
        """Remove an engine's files and last its record, so that no file is orphaned. A retiring engine has renamed its socket.

        A file that cannot be removed stays until its name is needed or the next controller finds it.
        """
        hidden = hidden_socket(self.socket(instance))
        beside = (self.socket(instance), self.hand_over(instance), self.spec(instance), self.state(instance), hidden)
        for path in (*beside, self._path(instance)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def all(self) -> Iterator[EngineRecord]:
        """Return every readable record and remove the others."""
        for path in sorted(self.directory.glob("*.json")):
            try:
                record = EngineRecord(**json.loads(path.read_text(encoding="utf-8")))
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
                pass  # The record is damaged or has an older format.
            log.warning("damaged record of an engine removed", file=str(path))
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def running(self) -> dict[str, ProcessId]:
        """Return the running engines of this directory by instance, found by their command lines."""
        found = {}
        for process, words in command_lines():
            for module, argument in pairwise(words):
                path = Path(argument)
                if module == "engine" and path.parent == self.directory and path.suffix == ".spec":
                    found[path.stem] = process
        return found

    def explanation(self, instance: str) -> tuple[str, str] | None:
        """Return the reason and the message of an engine's failure; None if it did not fail."""
        report = self._report(instance)
        if report.get("phase") == "failed":
            return str(report.get("reason", "")), str(report.get("message", ""))
        return None

    def was_ready(self, instance: str) -> bool:
        """Return whether the engine had become ready according to its state file. The file cannot show that the engine hangs."""
        return self._report(instance).get("phase") == "ready"

    def _report(self, instance: str) -> Mapping[str, object]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.state(instance).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def _path(self, instance: str) -> Path:
        return self.directory / f"{instance}.json"


def new_record(
    instance: str, server_uuid: str, replica: int, spec_hash: str, batch: int = DEFAULT_BATCH
) -> EngineRecord:
    """Build the record of an engine that is about to be started."""
    return EngineRecord(instance, server_uuid, replica, spec_hash, time.time(), batch=batch)


def orphan_record(instance: str, process: ProcessId) -> EngineRecord:
    """Build a record for an engine without one. It belongs to a server that is not declared, so the engine is stopped."""
    return with_process(new_record(instance, f"orphan-{instance}", 0, ""), process)


def with_process(record: EngineRecord, process: ProcessId) -> EngineRecord:
    """Return the record with the process of the started engine."""
    return replace(record, pid=process.pid, started=process.started)


def _text(record: EngineRecord) -> str:
    return json.dumps(asdict(record))
