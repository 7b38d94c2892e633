"""Decides whether files belong to one model, from their headers. No I/O.

Invariant: files that pass are loaded by llama.cpp as one model. The rules are those of its loader: the first part says how many parts and
tensors there are, each tensor is in exactly one part, a projector makes embeddings of the model's width, and an adapter changes tensors of
the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.gguf import MAX_TENSORS, GgufMetadata, TensorInfo
from services.download.sources import FileRole

PROJECTOR_ARCHITECTURE = "clip"
PROJECTOR_KIND = "mmproj"


_SIDES = {(False, "lora_a"): (0, 0), (False, "lora_b"): (1, 1), (True, "lora_a"): (1, 1), (True, "lora_b"): (1, 0)}
"""Which dimension of a factor must be equal to which one of the tensor. Embeddings are looked up by rows: their factors are flipped."""


class Header(NamedTuple):
    """The header of a GGUF file."""

    metadata: GgufMetadata
    tensors: Sequence[TensorInfo]


def check_part(header: Header, number: int, count: int) -> None:
    """Raise MODEL_INVALID unless a file is part `number` of a model in `count` parts, or with a count of 1 a whole model."""
    metadata = header.metadata
    if metadata.kind != "model":
        raise unusable(f"the file is of the kind {metadata.kind[:40]!r}, which is not a model that can be served")
    if metadata.architecture == PROJECTOR_ARCHITECTURE:
        raise unusable(
            "the file is a projector: give it with the model that it belongs to, as its projector (--mmproj)"
        )
    if metadata.split_count > 1 and count == 1:
        raise unusable(
            f"the file is part {metadata.split_index + 1} of a model split in {metadata.split_count}, and its name does not say so:"
            f" name the parts NAME-00001-of-{metadata.split_count:05d}.gguf and so on, put them beside each other, and give the first"
        )
    if count > 1 and (metadata.split_index + 1, max(metadata.split_count, 1)) != (number, count):
        says = f"part {metadata.split_index + 1} of {metadata.split_count}" if metadata.split_count > 1 else "whole"
        raise _foreign(number, count, f"its header says that it is {says}")


class PartsCheck:
    """Checks the headers of all files of a model, in their order. It keeps names and shapes of the tensors, at most MAX_TENSORS."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._files: list[GgufMetadata] = []
        self._owner: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """The shape of each tensor by its name."""

    def add(self, header: Header) -> None:
        """Check the next header. Raises MODEL_INVALID if it is not of the next part of the model."""
        metadata, number = header.metadata, len(self._files) + 1
        check_part(header, number, self._count)
        self._files.append(metadata)
        first = self._files[0]
        if metadata.architecture not in ("", first.architecture):
            raise self._foreign(
                f"its architecture is {metadata.architecture}, that of the first is {first.architecture}"
            )
        if number > 1 and metadata.split_tensor_count not in (0, first.split_tensor_count):
            raise self._foreign(
                f"its model has {metadata.split_tensor_count} tensors, that of the first has {first.split_tensor_count}"
            )
        for tensor in header.tensors:
            if self._owner.setdefault(tensor.name, number) != number:
                raise self._foreign(f"its tensor {tensor.name} is in file {self._owner[tensor.name]} too")
            self.shapes[tensor.name] = tensor.shape
        if len(self._owner) > MAX_TENSORS:
            raise unusable(f"more than {MAX_TENSORS} tensors")

    def metadata(self) -> GgufMetadata:
        """Return the metadata of the model: what the first file says, with the tensors of all. MODEL_INVALID if tensors are missing."""
        first, tensors = self._files[0], len(self._owner)
        if self._count > 1 and tensors != first.split_tensor_count:
            raise unusable(
                f"the {self._count} files have {tensors} tensors together, and their model has {first.split_tensor_count}: one of them is"
                " of another model"
            )
        return replace(
            first,
            parameter_count=sum(each.parameter_count for each in self._files),
            tensor_count=sum(each.tensor_count for each in self._files),
            tensor_bytes=sum(each.tensor_bytes for each in self._files),
            file_bytes=sum(each.file_bytes for each in self._files),
        )

    def _foreign(self, words: str) -> MeshError:
        return _foreign(len(self._files), self._count, words)


def check_projector(header: Header) -> None:
    """Raise MODEL_INVALID unless a file is a projector."""
    metadata = header.metadata
    if metadata.architecture != PROJECTOR_ARCHITECTURE:
        raise unusable(
            f"the projector's architecture is {metadata.architecture or 'unknown'}, not {PROJECTOR_ARCHITECTURE}"
        )
    if not metadata.projector_type:
        raise unusable("the projector does not say its type (clip.projector_type)")


def check_adapter(header: Header) -> None:
    """Raise MODEL_INVALID unless a file is a LoRA adapter."""
    metadata = header.metadata
    if (metadata.kind, metadata.adapter_type) != ("adapter", "lora"):
        raise unusable(
            f"the file is no LoRA adapter: its general.type is {metadata.kind[:40]!r} and its adapter.type {metadata.adapter_type[:40]!r}"
        )


def check_fits(adapter: Header, model: GgufMetadata, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise MODEL_INVALID unless each tensor of an adapter changes a tensor of the model: the rules of llama.cpp's loader."""
    if adapter.metadata.architecture != model.architecture:
        raise unusable(
            f"the adapter is for the architecture {adapter.metadata.architecture}, and that of the model is {model.architecture}"
        )
    for tensor in adapter.tensors:
        name, dot, end = tensor.name.rpartition(".")
        if tensor.name.endswith("_norm.weight"):
            continue  # llama.cpp leaves them out
        if not dot or end not in ("lora_a", "lora_b"):
            raise unusable(f"the adapter has a tensor {tensor.name}, which is no part of a LoRA adapter")
        shape = shapes.get(name)
        if shape is None:
            raise unusable(f"the adapter changes the tensor {name}, which the model does not have")
        side, at = _SIDES[name == "token_embd.weight", end]
        if len(shape) < 2 or len(tensor.shape) < 2 or tensor.shape[side] != shape[at]:
            raise unusable(
                f"the adapter's tensor {tensor.name} has the shape {tensor.shape}, and that of the model {shape}"
            )


def check_file(header: Header, role: FileRole, number: int, weights: int) -> None:
    """Raise MODEL_INVALID unless file `number` of a model can have this role. The model has `weights` parts."""
    if role is FileRole.PROJECTOR:
        check_projector(header)
    elif role is FileRole.ADAPTER:
        check_adapter(header)
    else:
        check_part(header, number, weights)


class ModelCheck:
    """Checks the headers of the files of a model with these roles, in their order: parts first."""

    def __init__(self, roles: Sequence[FileRole]) -> None:
        self._roles = iter(roles)
        self._parts = PartsCheck(roles.count(FileRole.WEIGHTS))
        self._projector: GgufMetadata | None = None

    def add(self, header: Header) -> None:
        """Check the next header. Raises MODEL_INVALID if it does not belong to the model."""
        role = next(self._roles)
        if role is FileRole.PROJECTOR:
            check_projector(header)
            self._projector = header.metadata
        elif role is FileRole.ADAPTER:
            check_adapter(header)
            check_fits(header, self._parts.metadata(), self._parts.shapes)
        else:
            self._parts.add(header)

    def metadata(self) -> GgufMetadata:
        """Return the metadata of the model: that of its parts. Raises MODEL_INVALID."""
        model, projector = self._parts.metadata(), self._projector
        if projector is None:
            return model
        # Projectors of earlier converters have no type, and a length of another meaning.
        known = projector.kind == PROJECTOR_KIND and projector.projection_length and model.embedding_length
        if known and projector.projection_length != model.embedding_length:
            raise unusable(
                f"the projector makes embeddings of {projector.projection_length} numbers and the model has {model.embedding_length}: it is"
                " the projector of another model (--mmproj none fetches the model without it)"
            )
        described = model.description
        return replace(model, description=replace(described, modalities=(*described.modalities, "MODALITY_MEDIA")))


def unusable(problem: str) -> MeshError:
    """Return MODEL_INVALID for valid files that are no model that can be served."""
    return MeshError(Reason.ERROR_REASON_MODEL_INVALID, problem, {"offset": "0", "problem": problem})


def _foreign(number: int, count: int, words: str) -> MeshError:
    return unusable(f"file {number} of {count} is not part {number} of the model: {words}")
