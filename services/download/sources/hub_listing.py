"""The listing of a Hugging Face repository: the files that are read at one commit, from the Hub's answer without trust. No I/O.

Everything that depends on all files is worked out here, once: a model in parts has hundreds of files, and each is looked up in the listing.

Invariant: a listing is bounded, in the number of its files and in the letters of their names, and each name keeps the rule of
`object_names`. A repository that breaks a bound or the rule is refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llamesh.part_names import whole_name
from services.download.sources.checkpoint_files import is_of_checkpoint, is_pickle
from services.download.sources.object_names import MAX_NAME_BYTES, is_usable
from services.download.sources.source import MAX_OBJECT_BYTES, SourceRefusedError, is_projector_name

MAX_FILES = 2_000
"""Maximum number of GGUF files of a repository. Real ones have up to some hundreds."""
MAX_NAME_CHARACTERS = 512 << 10
"""Maximum number of characters of all their names together, and so at most 2 MiB of memory."""
_PROJECTOR_TYPES = ("F16", "BF16", "Q8_0", "F32")
_TYPE = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+(?:_(?:K|\d|XXS|XS|S|M|L|XL|XXL|NL))*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4(?:_MOE)?))(?=$|[-._/])",
    re.IGNORECASE,
)
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_GIT_BLOB = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. `size` is in bytes, None if the Hub does not give it; `sha256` is "" if the file is not in Git LFS.

    `git_blob` is then Git's id of its bytes, "" if the Hub does not give it.
    """

    path: str
    size: int | None
    sha256: str
    git_blob: str = ""

    @property
    def type(self) -> str:
        """The type in the file's name, in capitals; "" if the name has none."""
        found = _TYPE.findall(whole_name(self.path).removesuffix(".gguf"))
        return found[-1].upper() if found else ""

    @property
    def folder(self) -> str:
        """The folder of the file in the repository; "" if it is in none."""
        return self.path.rpartition("/")[0]

    @property
    def is_projector(self) -> bool:
        """Whether the name is that of a projector."""
        return is_projector_name(self.path)


@dataclass(frozen=True, slots=True)
class HubListing:
    """The GGUF files of a repository at one commit, by path. `projectors` has the best projector of each folder, the best of all first.

    `checkpoint` has the files that a conversion may read, by name. `gated`: the files are for accounts that have accepted its terms.
    """

    commit: str
    files: Mapping[str, HubFile]
    projectors: Mapping[str, HubFile]
    checkpoint: Mapping[str, HubFile]
    has_safetensors: bool
    has_pickles: bool
    gated: bool

    def projector_for(self, weights: HubFile) -> HubFile | None:
        """Return the projector for a model, if there is one: in the folder of the model, else in the first one of all."""
        if weights.is_projector or not self.projectors:
            return None
        return self.projectors.get(weights.folder) or next(iter(self.projectors.values()))


def read_listing(document: Any, repository: str) -> HubListing:
    """Read the Hub's answer about a repository. Raises ValueError if it is not a listing, and SourceRefusedError.

    The answer may be long: the caller does not wait for this on an event loop.
    """
    try:
        commit, siblings = document["sha"], document["siblings"]
        items = [item for item in siblings if item["rfilename"].lower().endswith(".gguf")]
        if len(items) > MAX_FILES:
            words = f"{repository} has {len(items)} GGUF files; a repository has at most {MAX_FILES}"
            raise SourceRefusedError(words, rule="files")
        files = [_file(item) for item in items]
        gated = bool(document.get("gated"))
        checkpoint = [_file(item) for item in siblings if is_of_checkpoint(item["rfilename"])][:MAX_FILES]
        safetensors = any(item["rfilename"].endswith(".safetensors") for item in siblings)
        pickles = any(is_pickle(item["rfilename"]) for item in siblings)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a listing of a repository") from error
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise ValueError("a listing without a commit")
    _check_names(files, repository)
    return HubListing(
        commit=commit,
        files={file.path: file for file in files},
        projectors=_projectors(files),
        checkpoint={file.path: file for file in checkpoint},
        has_safetensors=safetensors,
        has_pickles=pickles,
        gated=gated,
    )


def _file(item: Any) -> HubFile:
    path, size, lfs = item["rfilename"], item.get("size"), item.get("lfs") or {}
    digest, blob = lfs.get("sha256", ""), "" if lfs else item.get("blobId", "")
    if not isinstance(path, str) or ".." in path.split("/"):
        raise TypeError("no path")
    return HubFile(
        path,
        size if isinstance(size, int) and 0 <= size <= MAX_OBJECT_BYTES else None,
        digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else "",
        blob if isinstance(blob, str) and _GIT_BLOB.fullmatch(blob) else "",
    )


def _check_names(files: Iterable[HubFile], repository: str) -> None:
    if sum(len(file.path) for file in files) > MAX_NAME_CHARACTERS:
        words = f"the names of the GGUF files of {repository} have more than {MAX_NAME_CHARACTERS} characters together"
        raise SourceRefusedError(words, rule="files")
    if not all(is_usable(file.path) for file in files):
        raise SourceRefusedError(
            f"{repository} has a GGUF file whose name is not UTF-8, is longer than {MAX_NAME_BYTES} bytes, or has control or format"
            " characters",
            rule="file name",
        )


def _projectors(files: Iterable[HubFile]) -> dict[str, HubFile]:
    """Return the best projector of each folder, the best of all first. Of several the type decides: F16, BF16, Q8_0, F32, then any."""
    order = {name: at for at, name in enumerate(_PROJECTOR_TYPES)}
    found = sorted(
        (file for file in files if file.is_projector),
        key=lambda file: (file.path.count("/"), order.get(file.type, len(order)), file.path),
    )
    best: dict[str, HubFile] = {}
    for file in found:
        best.setdefault(file.folder, file)
    return best
