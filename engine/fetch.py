"""`python -m engine.fetch OBJECTS.json CACHE`: brings the objects of an engine's models into the cache of this node, and links them.

It runs before the engine, in the same pod. OBJECTS.json lists key, size and path of each; MINIO_* lead to the store. Invariant: the links
appear only after the bytes of all objects were compared with their SHA-256, and the files stay until this process ends; the engine holds
them from then on. Exit codes are those of the engine, and the last line of the output says why.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.failure import REPORT_PREFIX, EngineError, FailureReason
from llamesh.kit.config import Settings
from llamesh.kit.config_loading import WrongSettingsError, load_settings
from llamesh.kit.objects import StoreError
from llamesh.kit.objects.s3 import S3Store
from llamesh.kit.objects.store import checked_key
from llamesh.kit.own_places import models_place


@dataclass(frozen=True, slots=True)
class WantedObject:
    """An object, and the path under which the engine opens it."""

    key: str
    size_bytes: int
    path: Path

    @classmethod
    def read(cls, file: Path) -> list[WantedObject]:
        """Read the list. Raises EngineError(BAD_SPEC)."""
        try:
            found = json.loads(file.read_bytes())
            return [cls(checked_key(each["key"]), each["size_bytes"], Path(each["path"])) for each in found]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(FailureReason.BAD_SPEC, f"cannot read the list of objects {file}: {error}") from error


async def fetch(wanted: Sequence[WantedObject], settings: Settings, cache: Path) -> None:
    """Fetch and link all objects. Raises EngineError."""
    place = models_place(settings)
    if place is None:
        raise EngineError(FailureReason.BAD_SPEC, "MINIO_ENDPOINT is not set: the pod cannot fetch the model")
    store = S3Store(place, cache, settings.cache_bytes)
    try:
        await store.prepare_cache()
        found = [await store.local_path(each.key, size=each.size_bytes) for each in wanted]
    except StoreError as error:
        raise EngineError(FailureReason.NO_MODEL, str(error)) from error
    finally:
        await store.close()
    for each, target in zip(wanted, found, strict=True):
        each.path.parent.mkdir(parents=True, exist_ok=True)
        each.path.unlink(missing_ok=True)
        each.path.symlink_to(target)


def main(words: list[str]) -> int:
    """Run the command."""
    try:
        if len(words) != 2:
            raise EngineError(FailureReason.BAD_SPEC, "usage: python -m engine.fetch OBJECTS.json CACHE")
        wanted = WantedObject.read(Path(words[0]))
        asyncio.run(fetch(wanted, load_settings(), Path(words[1])))
    except WrongSettingsError as error:
        return _failed(FailureReason.BAD_SPEC, "; ".join(error.problems))
    except EngineError as error:
        return _failed(error.reason, error.message)
    except OSError as error:
        return _failed(FailureReason.NO_MODEL, f"the files of the model cannot be linked: {error}")
    sys.stderr.write(f"{REPORT_PREFIX}fetched {len(wanted)} files\n")
    return 0


def _failed(reason: FailureReason, message: str) -> int:
    sys.stderr.write(f"{REPORT_PREFIX}{message} ({reason.name})\n")
    return reason.value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
