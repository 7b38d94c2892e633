"""The folder of a job, `LLAMESH_HOME/quant/JOB`: its steps pass files to each other here.

Invariant: a file has its final name only if it is complete. Only this module defines the names of the files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamesh.disk_space import free_bytes
from llamesh.durability import sync
from llamesh.kit.config import Settings
from llamesh.names import DOWNLOAD
from llamesh.private_files import write_private
from services.quant.states import StepKind

_BLOCK = 512
"""Unit of st_blocks in bytes."""
_OF_A_JOB = re.compile(r"job_[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class StoredPart:
    """An object in the bucket of the download service: a part of a job's source."""

    key: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The description of a job for the programs of its steps: `job.json`."""

    job_id: str
    name: str
    """What the ids of the variants begin with."""
    model_uuid: str
    source_sha256: str
    allow_requantize: bool
    pure: bool
    importance_matrix: bool
    max_kl_divergence: float
    """0 means the limit of each type."""
    source: str = ""
    """The canonical address of a checkpoint; empty if the source is a model of the catalogue."""
    shown_source: str = ""
    """The same as it may be shown."""
    matrix_source: str = ""
    """The address of the importance matrix that the job was given; empty: it is measured, or there is none."""
    matrix_version: str = ""
    """The version of that file when the job was submitted."""
    objects: tuple[StoredPart, ...] = ()
    """The parts of a model of the catalogue, for a step on another machine than the download service. Empty: ask that service."""

    @classmethod
    def read(cls, text: str) -> JobSpec:
        """Return the description that is written in JSON."""
        values = json.loads(text)
        objects = tuple(StoredPart(**each) for each in values.pop("objects", ()))
        return cls(**values, objects=objects)

    def lists_objects(self, settings: Settings) -> bool:
        """Whether `fetch` asks for the objects of its source and reads them itself: the files of a download service on TCP are not here."""
        is_remote = bool(settings.minio_endpoint) and DOWNLOAD in settings.member_addresses
        return is_remote and not self.source and not self.objects

    def uses_bucket(self, kind: str, settings: Settings) -> bool:
        """Whether a step reads or writes a bucket itself: `publish`, and `fetch` if it has or lists the objects of a model."""
        reads = self.lists_objects(settings) or (bool(self.objects) and not self.source)
        return kind == StepKind.PUBLISH or (kind == StepKind.FETCH and reads)

    def asks_download(self, kind: str, settings: Settings) -> bool:
        """Whether a step asks the download service: `fetch`, unless it has the objects, and `imatrix` if it is given a matrix."""
        if kind == StepKind.FETCH:
            return self.lists_objects(settings) or not self.uses_bucket(kind, settings)
        return kind == StepKind.IMATRIX and bool(self.matrix_source)

    def written(self) -> str:
        """Return the description as JSON."""
        return json.dumps(asdict(self))


class Workspace:
    """The folder of one job."""

    def __init__(self, home: Path, job_id: str) -> None:
        self.folder = root_of(home) / job_id

    def source_part(self, number: int, count: int) -> Path:
        """Path of a part of the source model; llama.cpp finds the other parts by the name of the first."""
        return self.folder / f"source-{number:05d}-of-{count:05d}.gguf"

    @property
    def sources(self) -> list[Path]:
        """Paths of all parts of the source model, in their order. The step `fetch` or `convert` has put them there."""
        return sorted(self.folder.glob("source-*-of-*.gguf"))

    @property
    def checkpoint(self) -> Path:
        """Path of the folder with the files of the checkpoint, from `fetch` to `convert`."""
        return self.folder / "checkpoint"

    @property
    def unfinished_source(self) -> Path:
        """Path of the source model while it is converted."""
        return self.folder / "source.part"

    def variant(self, of_type: str) -> Path:
        """Path of the variant of a type."""
        return self.folder / f"{of_type}.gguf"

    @property
    def calibration(self) -> Path:
        """Path of the text that the importance matrix is measured with."""
        return self.folder / "calibration.txt"

    @property
    def matrix(self) -> Path:
        """Path of the importance matrix."""
        return self.folder / "matrix.gguf"

    @property
    def measured_source(self) -> Path:
        """Path of the source model's predictions for the corpus: the same for all types."""
        return self.folder / "source.npy"

    def lock(self, kind: str, of_type: str) -> Path:
        """Path of the lock of a step: its program holds it while it runs."""
        return self.folder / f"{kind}{of_type and '-'}{of_type}.lock"

    def prepare(self, spec: JobSpec) -> bool:
        """Make the folder and write the description of the job. Return whether the folder is new. Raises OSError."""
        new = not self._spec.exists()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._spec, spec.written().encode())
        return new

    def keep_calibration(self, text: str) -> None:
        """Write the text that the importance matrix is measured with. Raises OSError."""
        write_private(self.calibration, text.encode())

    def spec(self) -> JobSpec:
        """Return the description that `prepare` wrote. Raises OSError."""
        return JobSpec.read(self._spec.read_text(encoding="utf-8"))

    def is_too_large(self) -> bool:
        """Whether the files take more than half of what is free on their disk: then other jobs need the room."""
        try:
            return 2 * self.freed_bytes() > free_bytes(self.folder)
        except OSError:
            return True

    def freed_bytes(self) -> int:
        """Return the bytes that `remove` frees. Files with another link, such as a source in the store, free none. Raises OSError."""
        found = [path.lstat() for path in self.folder.rglob("*") if path.is_file()]
        return sum(each.st_blocks * _BLOCK for each in found if each.st_nlink == 1)

    def remove_sources(self) -> None:
        """Remove all parts of the source model. Raises OSError."""
        for path in self.sources:
            path.unlink()

    def remove(self) -> None:
        """Remove the folder. Idempotent."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def result(self, kind: str, of_type: str) -> dict[str, Any] | None:
        """Return the result of a step that was completed in this folder; None if it was not completed."""
        try:
            found: dict[str, Any] = json.loads(self._result(kind, of_type).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def keep_result(self, kind: str, of_type: str, result: Mapping[str, Any]) -> None:
        """Write the result of a step, so that the step is not repeated if the service misses its end."""
        write_private(self._result(kind, of_type), json.dumps(dict(result)).encode())

    def forget_result(self, kind: str, of_type: str) -> None:
        """Remove the result of a step, so that the step is done again. Raises OSError."""
        self._result(kind, of_type).unlink(missing_ok=True)

    @property
    def _spec(self) -> Path:
        return self.folder / "job.json"

    def _result(self, kind: str, of_type: str) -> Path:
        return self.folder / f"{kind}{of_type and '-'}{of_type}.json"


def root_of(home: Path) -> Path:
    """Return the folder of all jobs."""
    return home / "quant"


def job_folders(home: Path) -> list[str]:
    """Return the ids of the jobs that have a folder. Folders with other names are not ours."""
    try:
        return sorted(path.name for path in root_of(home).iterdir() if path.is_dir() and _OF_A_JOB.fullmatch(path.name))
    except FileNotFoundError:
        return []


def evictable_bytes(home: Path, active: Collection[str]) -> int:
    """Return the bytes in the folders of jobs that are not active, which are removed when the next job begins."""
    left = 0
    for job_id in set(job_folders(home)) - set(active):
        # The worker may be removing the folder.
        with suppress(OSError):
            left += Workspace(home, job_id).freed_bytes()
    return left


def finish(unfinished: Path, path: Path) -> None:
    """Make a complete file durable and give it its name."""
    sync(unfinished)
    unfinished.replace(path)
    sync(path.parent)
