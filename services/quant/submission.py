"""Decides whether a job may be submitted: rules over the request, the source's header and the machine.

Invariant: a job that is known to fail is refused here, before any work.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Collection, Sequence

from llamesh.disk_space import RESERVE_BYTES, DiskSpace, disk_space
from llamesh.installation import install_command
from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason, invalid_field
from llamesh.sizes import size
from llamesh.v1.model_pb2 import Model
from llamesh.v1.quant_pb2 import QuantOptions
from services.quant.quantisations import QUANTISATIONS, UNQUANTISED, nearest
from services.quant.variant_sizes import falls_back, variant_bytes
from services.quant.workspace import evictable_bytes

_ARGO_PACKAGES = ("hera", "kubernetes")
_PACKAGES = ("cyllama", "numpy", "gguf", "xllamacpp")
_UNKNOWN_ROWS = 1.3
"""Factor for a model some of whose rows may not divide into blocks of 256: it becomes larger than its type suggests, by a quarter where
measured."""
_KNOWN_ROWS = 1.15
"""Factor for a model whose fallbacks are estimated: at most a tenth is missing where measured."""
_HEADER_BYTES = 16 << 20
"""Bytes reserved for the header, which is not quantised."""


def check_known(types: Sequence[str]) -> None:
    """Raise INVALID_FIELD for an unknown type; the message names the nearest types."""
    for each in types:
        if each not in QUANTISATIONS:
            raise invalid_field("types", f"there is no type {each!r}; perhaps {', '.join(nearest(each))}")


def check_types(types: Sequence[str], *, importance_matrix: bool) -> None:
    """Raise INVALID_FIELD for an unknown type, and QUANT_REFUSED for one that needs an importance matrix and has none."""
    check_known(types)
    for each in types:
        if QUANTISATIONS[each].needs_matrix and not importance_matrix:
            words = f"{each} needs an importance matrix: set importance_matrix, or use Q2_K, IQ3_S or a larger type"
            raise _refused("matrix", words, each)


def uses_matrix(options: QuantOptions) -> bool:
    """Return whether variants are made with an importance matrix, which is measured or given."""
    return options.importance_matrix or bool(options.importance_matrix_source)


def check_installation(options: QuantOptions, settings: Settings) -> None:
    """Raise QUANT_REFUSED if this installation cannot run the jobs that are asked for.

    INVALID_FIELD for a text without a matrix, and for a matrix that is given and measured.
    """
    check_engine(settings)
    if options.importance_matrix_source:
        _check_given_matrix(options, settings)
    elif options.importance_matrix:
        if missing := missing_for_matrix(settings):
            raise _refused("matrix", missing)
    elif options.calibration_text:
        raise invalid_field("options.calibration_text", "it is for an importance matrix: set importance_matrix too")


def _check_given_matrix(options: QuantOptions, settings: Settings) -> None:
    for field in ("importance_matrix", "calibration_text"):
        if getattr(options, field):
            words = f"this matrix is used, so none is measured: leave out {field}"
            raise invalid_field("options.importance_matrix_source", words)
    if settings.quant_engine != "embedded":
        words = "pods cannot read an importance matrix of this machine: let the job measure one with importance_matrix"
        raise _refused("engine", words)
    if missing := missing_for_matrix(settings, given=True):
        raise _refused("matrix", missing)


def check_engine(settings: Settings) -> None:
    """Raise QUANT_REFUSED if the engine that runs jobs lacks something here."""
    if settings.quant_engine == "embedded":
        _check_quantiser(settings.llama_quantize_bin)
        return
    missing = [name for name in _ARGO_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise _refused(
            "engine", f"{', '.join(missing)} not installed: `{install_command('argo')}` on the mesh's machine"
        )
    unset = [
        name
        for name, value in (("MINIO_ENDPOINT", settings.minio_endpoint), ("LLAMESH_ARGO_IMAGE", settings.argo_image))
        if not value
    ]
    if unset:
        raise _refused(
            "engine", f"QUANT_ENGINE=argo needs {' and '.join(unset)}: pods share models through an S3 server"
        )


def missing_for_matrix(settings: Settings, *, given: bool = False) -> str:
    """Say everything that importance matrices lack here, and how to add it; empty if they lack nothing.

    A matrix that is `given` is not measured.
    """
    problems = []
    programs = [("LLAMA_QUANTIZE_BIN", settings.llama_quantize_bin)]
    if not given:
        programs.insert(0, ("LLAMA_IMATRIX_BIN", settings.llama_imatrix_bin))
    for name, path in programs:
        if not path:
            problems.append(f"{name} is not set")
        # On a cluster it is a path in the image.
        elif settings.quant_engine == "embedded" and shutil.which(path) is None:
            problems.append(f"{name} is {path}, which is not a program")
    if not problems:
        return ""
    needed, rest = ("llama-imatrix and llama-quantize", "build them (docs/guide/quantise.md), set both to their paths")
    if given:
        needed, rest = "llama-quantize", "build it (docs/guide/quantise.md), set this to its path"
    return f"an importance matrix needs llama.cpp's {needed}: {', '.join(problems)}; {rest} and start the mesh again"


def check_source(model: Model, *, allow_requantize: bool) -> None:
    """Raise QUANT_REFUSED if the source is already quantised, unless that is allowed; MODEL_CORRUPT if it is damaged."""
    if model.problem:
        raise MeshError(Reason.ERROR_REASON_MODEL_CORRUPT, model.problem, {"modelUuid": model.model_uuid})
    if model.gguf.quantisation not in UNQUANTISED and not allow_requantize:
        raise _refused(
            "quantised",
            f"{model.model_uuid} is quantised to {model.gguf.quantisation or 'an unknown type'} already: start from its F16 or"
            " BF16 file, or set allow_requantize and accept a worse result",
        )


def _check_quantiser(llama_quantize_bin: str) -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if llama_quantize_bin:
        if shutil.which(llama_quantize_bin) is None:
            raise _refused("quantiser", f"LLAMA_QUANTIZE_BIN is {llama_quantize_bin}, which is not a program")
        missing = [name for name in missing if name != "cyllama"]
    if missing:
        installs = f"`{install_command('engine', 'quant')}` on the mesh's machine"
        program = ", or a llama-quantize in LLAMA_QUANTIZE_BIN" if "cyllama" in missing else ""
        raise _refused("quantiser", f"{', '.join(missing)} not installed: {installs}{program}")


def space_for_jobs(settings: Settings, active: Collection[str]) -> int | None:
    """Return the bytes that the files of a new job may fill; None on a cluster, which makes a volume for each job.

    `active` are the ids of the jobs that have not ended: the files of all others are removed before a new job begins. Raises OSError.
    """
    if settings.quant_engine != "embedded":
        return None
    space = disk_space(settings.home)
    return DiskSpace(space.free + evictable_bytes(settings.home, active), space.total).usable


def check_space(needed: int, free: int | None) -> None:
    """Raise QUANT_REFUSED if the files of a job do not fit."""
    if free is not None and needed > free:
        raise _refused(
            "disk",
            f"the job needs {size(needed)} on the disk of LLAMESH_HOME, where {size(free)} are free for jobs"
            f" ({size(RESERVE_BYTES)} stay free): free some space or ask for fewer types",
        )


def needed_bytes(model: Model, types: Sequence[str], *, converted: bool = False, matrix_bytes: int = 0) -> int:
    """Return the maximum disk space of a job: all variants, the largest one twice while it is published, and a copy of the source.

    A source that is `converted` is there twice: as a checkpoint and as a GGUF file. So is an importance matrix that is given, of
    `matrix_bytes`: as it came and as it is used.
    """
    sizes = [_variant_bytes(model, each) for each in types]
    return sum(sizes) + max(sizes) + model.size_bytes * (2 if converted else 1) + 2 * matrix_bytes


def _variant_bytes(model: Model, of_type: str) -> int:
    weights = variant_bytes(model.gguf, of_type)
    if of_type not in UNQUANTISED:
        weights = int(weights * (_KNOWN_ROWS if falls_back(of_type, model.gguf.embedding_length) else _UNKNOWN_ROWS))
    return weights + _HEADER_BYTES


_OWN_TYPE = re.compile(r"[-._]?(?:f32|f16|bf16|fp16|fp32)$", re.IGNORECASE)


def default_name(model_uuid: str) -> str:
    """Return the beginning of the variants' ids: the source's id without its suffix and its own type."""
    stem = model_uuid.removesuffix(".gguf")
    return (_OWN_TYPE.sub("", stem) or stem)[:111]


def _refused(rule: str, message: str, of_type: str = "") -> MeshError:
    metadata = {"rule": rule, "type": of_type} if of_type else {"rule": rule}
    return MeshError(Reason.ERROR_REASON_QUANT_REFUSED, message, metadata)
