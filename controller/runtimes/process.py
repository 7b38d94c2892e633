"""Runs engines as processes of this machine: `python -m engine`, each in its own session and with its own Unix socket.

Engines outlive a killed controller. The next controller adopts them by their records or finds them by their command lines. They end with
the supervisor of the mesh, whose lifeline they inherit.

Invariant: each record has one process, and every engine of this run directory is watched while the runtime is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Literal

from google.protobuf import json_format

from controller.launch import engine_document
from controller.model_files import Availability, ModelFile, ModelFiles
from controller.runtimes import Engine, EngineLoad, EnginePhase, LaunchSpec, probe
from controller.runtimes.backlogs import Backlogs
from controller.runtimes.engine_process import EngineProcess
from controller.runtimes.enginelog import EngineLogs
from controller.runtimes.environment import engine_environment
from controller.runtimes.liveness import ProbeSettings
from controller.runtimes.records import EngineRecord, EngineRecords, new_record, orphan_record, with_process
from controller.runtimes.start_limit import default_limit
from llamesh.background import BackgroundTask
from llamesh.cores import usable_cores
from llamesh.kit.config import Settings
from llamesh.kit.lifeline import inherited_lifeline
from llamesh.kit.logs import log, report_failure
from llamesh.kit.machine_memory import MachineMemory, RecentMemory
from llamesh.kit.occupancy import ConnectionTable
from llamesh.kit.redaction import redactor
from llamesh.locations import make_private
from llamesh.processes import ProcessId
from llamesh.runtime_parameters import batch_size
from llamesh.v1.server_pb2 import RuntimeParameters

_TRIM_SECONDS = 10.0
_KEEP_SECONDS = 2.0
PROBE_SECONDS = 1.0
"""Seconds between two liveness probes of a ready engine."""


class ProcessRuntime:
    """Runtime of the engines of this machine. All methods belong to one event loop."""

    scales: Literal[False] = False
    decides = True

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str] | None = None,
        probe_seconds: float = PROBE_SECONDS,
        *,
        models: ModelFiles | None = None,
    ) -> None:
        """`probe_seconds`: see PROBE_SECONDS. Without `models` no model is located; engines use the paths in their specs."""
        self._models = models
        self._memory = RecentMemory(time.monotonic, settings.memory_bytes)
        self._grace = settings.drain_seconds
        self._probing = ProbeSettings(probe_seconds, settings.engine_stall_seconds)
        self._environment = engine_environment(os.environ if environment is None else environment)
        if settings.llama_server_bin:
            self._environment["LLAMA_SERVER_BIN"] = settings.llama_server_bin
        self._records = EngineRecords(settings.run_dir / "engines")
        self._logs = EngineLogs(settings.home / "logs" / "engines")
        self._hide = redactor(settings)
        self._engines: dict[str, EngineProcess] = {}
        self._backlogs = Backlogs()
        self._table = ConnectionTable()
        self._on_change: Callable[[str], None] = lambda _: None
        self._housekeeping = (
            BackgroundTask(
                "shorten engine logs", self._trim_logs, report_failure, every=_TRIM_SECONDS, immediately=False
            ),
            BackgroundTask(
                "keep engine records", self._keep_records, report_failure, every=_KEEP_SECONDS, immediately=False
            ),
        )

    async def open(self, on_change: Callable[[str], None], on_model_change: Callable[[str], None]) -> None:
        """Adopt the running engines, probe their readiness, and clean up after engines that ended in the meantime."""
        self._make_directory()
        self._on_change = on_change
        if self._models is not None:
            self._models.open(on_model_change)
        running = self._records.running()
        records = list(self._records.all())
        await asyncio.gather(*(self._adopt(record, running.pop(record.instance, None)) for record in records))
        for instance, process in running.items():
            await self._end_orphan(instance, process)
        for task in self._housekeeping:
            task.start()

    async def close(self) -> None:
        """Stop watching. The engines keep running."""
        await asyncio.gather(*(task.close() for task in self._housekeeping))
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))
        await self._backlogs.close()
        if self._models is not None:
            await self._models.close()

    async def stop_all(self, grace: float) -> None:
        """Stop every engine of this machine and wait until all are gone, because the mesh stops."""
        engines = dict(self._engines)
        for engine in engines.values():
            engine.stop(grace)
        await asyncio.gather(*(engine.ended() for engine in engines.values()))
        for instance in engines:
            self.forget(instance)

    def memory(self) -> MachineMemory:
        """Return the memory of this machine, or of the container that the controller runs in."""
        return self._memory.read()

    def start_limit(self) -> int:
        """Return one start for each usable core, because loading a model keeps a core busy."""
        return default_limit(usable_cores())

    def model(self, model_uuid: str) -> ModelFile:
        """Return the cached entry of a model's file on this machine."""
        return self._models.get(model_uuid) if self._models is not None else ModelFile(Availability.UNKNOWN)

    def locate(self, model_uuid: str) -> None:
        """Request a model's file from the download service."""
        if self._models is not None:
            self._models.locate(model_uuid)

    def servers(self) -> Collection[str]:
        """Return every server that has an engine here, declared or not."""
        return {engine.record.server_uuid for engine in self._engines.values()}

    def engines(self, server_uuid: str) -> Sequence[Engine]:
        """Return a server's engines, oldest first, including ended engines that were not forgotten."""
        found = [engine for engine in self._engines.values() if engine.record.server_uuid == server_uuid]
        return [_snapshot(engine) for engine in sorted(found, key=lambda engine: engine.record.start_seconds)]

    async def start(self, spec: LaunchSpec) -> None:
        """Start an engine and return before it is ready. Never fails: an engine that cannot be started shows as ENDED."""
        try:
            instance, problem = self._records.free_instance(spec.server_uuid, self._engines), ""
        except (OSError, RuntimeError) as error:
            instance, problem = f"{spec.server_uuid[:8]}-no-name-{spec.replica}", str(error)
        record = new_record(instance, spec.server_uuid, spec.replica, spec.spec_hash, _batch(spec))
        engine = self._engines[instance] = self._new_engine(record)
        if problem:
            engine.fail(problem)
        else:
            engine.start(lambda: self._spawn(record, spec))

    def stop(self, instance: str, grace: float) -> None:
        """Stop an engine, by force after `grace` seconds. Returns at once; idempotent."""
        if engine := self._engines.get(instance):
            engine.stop(grace)

    def end_server(self, server_uuid: str, grace: float) -> None:
        """Stop the engines of a server that is not declared, and forget those that have ended."""
        for engine in self.engines(server_uuid):
            if engine.phase is EnginePhase.ENDED:
                self.forget(engine.instance)
            else:
                self.stop(engine.instance, grace)

    def forget(self, instance: str) -> None:
        """Remove the record and the files of an ended engine."""
        engine = self._engines.get(instance)
        if engine is not None and engine.phase is EnginePhase.ENDED:
            del self._engines[instance]
            self._records.remove(instance)

    async def load(self, instance: str) -> EngineLoad | None:
        """Return the load of an engine; None if it does not answer."""
        engine = self._engines.get(instance)
        return await engine.load() if engine else None

    async def metrics(self, instance: str) -> bytes | None:
        """Return llama.cpp's metrics of an engine in Prometheus' text format; None if it does not answer. Raises OSError."""
        engine = self._engines.get(instance)
        return await probe.metrics(str(engine.socket)) if engine else None

    def read_log(self, server_uuid: str, replica: int, tail: int, *, follow: bool) -> AsyncIterator[Sequence[str]]:
        """Yield the last lines of a replica's log and, with `follow`, new lines as they come."""
        return self._shown(self._logs.read(server_uuid, replica, tail, follow=follow))

    async def _shown(self, batches: AsyncGenerator[Sequence[str], None]) -> AsyncIterator[Sequence[str]]:
        async with aclosing(batches):
            async for lines in batches:
                yield [self._hide(line) for line in lines]

    def drop_logs(self, server_uuid: str) -> None:
        """Remove the logs of a removed server."""
        self._logs.drop(server_uuid)

    def _new_engine(self, record: EngineRecord) -> EngineProcess:
        return EngineProcess(
            record,
            self._records,
            self._backlogs,
            self._table,
            self._probing,
            lambda server_uuid: self._on_change(server_uuid),
        )

    async def _adopt(self, record: EngineRecord, found: ProcessId | None) -> None:
        """Adopt a running engine. `found` is the process with the engine's command line; the record may not have its id yet."""
        if found is not None and not record.process.alive:
            record = with_process(record, found)
        if not record.process.alive:
            self._records.remove(record.instance)
            return
        engine = self._engines[record.instance] = self._new_engine(record)
        await engine.adopt(self._grace)
        log.info("engine adopted", server=record.server_uuid, instance=record.instance, pid=record.pid)

    async def _end_orphan(self, instance: str, process: ProcessId) -> None:
        """Stop an engine whose record is lost. Its spec is unknown, so the reconciler replaces it."""
        log.warning("an engine without a record is stopped", instance=instance, pid=process.pid)
        engine = self._engines[instance] = self._new_engine(orphan_record(instance, process))
        await engine.adopt(self._grace)
        engine.stop(self._grace)

    def _make_directory(self) -> None:
        make_private(self._records.directory.parent)
        make_private(self._records.directory)

    async def _keep_records(self) -> None:
        self._make_directory()
        for engine in list(self._engines.values()):
            engine.keep_record()

    async def _trim_logs(self) -> None:
        self._logs.trim()

    async def _spawn(self, record: EngineRecord, spec: LaunchSpec) -> asyncio.subprocess.Process:
        self._records.write(record)
        self._records.write_spec(record.instance, self._document(record.instance, spec))
        lifeline = inherited_lifeline()
        output = self._logs.open(spec.server_uuid, spec.replica)
        try:
            return await asyncio.create_subprocess_exec(
                # -P ignores a folder called `engine` in the working directory; -m finds the package through PYTHONPATH.
                *(sys.executable, "-P", "-m", "engine", str(self._records.spec(record.instance))),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
                pass_fds=() if lifeline is None else (lifeline,),
            )
        finally:
            os.close(output)

    def _document(self, instance: str, spec: LaunchSpec) -> dict[str, object]:
        return {
            **engine_document(spec, str(self._records.socket(instance)), self._grace),
            "state_file": str(self._records.state(instance)),
            "hand_over": str(self._records.hand_over(instance)),
        }


def _batch(spec: LaunchSpec) -> int:
    parameters = RuntimeParameters()
    # The engine refuses unreadable parameters itself and reports the reason.
    with contextlib.suppress(json_format.ParseError):
        json_format.ParseDict(dict(spec.parameters), parameters)
    return batch_size(parameters)


def _snapshot(engine: EngineProcess) -> Engine:
    record = engine.record
    return Engine(
        record.instance,
        record.server_uuid,
        record.replica,
        record.spec_hash,
        engine.phase,
        str(engine.socket),
        str(record.pid or ""),
        datetime.fromtimestamp(record.start_seconds, UTC),
        engine.ready_since,
        engine.exit,
        engine.assessment.liveness,
        engine.assessment.message,
    )
