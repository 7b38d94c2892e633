"""The step `convert`: makes the source of a job, a GGUF file, of the checkpoint that `fetch` has brought.

Invariant: the file has the weights of the checkpoint, unchanged (see `llama_tensors`), and llama.cpp can run it, if that can be found out
here. Memory is bounded by the largest tensor, because tensors are mapped and written one after the other.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf

from llamesh.kit.config import Settings
from llamesh.kit.gguf import GgufError, read_gguf
from llamesh.kit.gguf.types import FILE_TYPES
from services.quant.checkpoint_config import CheckpointConfig, shown
from services.quant.step import measurement
from services.quant.step.checkpoint_texts import CheckpointTexts, converted_here, read_texts
from services.quant.step.llama_program import ProgressMarks, full_disk, program_at, run_program
from services.quant.step.llama_tensors import LlamaTensor, converted
from services.quant.step.report import StepOutageError, StepRefusedError, report_progress
from services.quant.step.safetensors_files import read_checkpoint_tensors
from services.quant.workspace import Workspace, finish

_PERCENT = ProgressMarks(re.compile(r"Writing:\s+(\d+)%\|"), units=100)


def convert(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Convert the checkpoint, and remove its files. Return the size and the type of the GGUF file."""
    source, unfinished = workspace.source_part(1, 1), workspace.unfinished_source
    program = settings.llama_convert_bin
    own = converted_here(workspace.checkpoint, program)
    if not source.exists():
        try:
            if own:
                _convert(workspace.checkpoint, workspace.spec().name, unfinished)
            else:
                _convert_with_program(workspace, unfinished, program)
            finish(unfinished, source)
        finally:
            unfinished.unlink(missing_ok=True)
    try:
        with source.open("rb") as file:
            metadata = read_gguf(file, source.stat().st_size)
    except GgufError as error:
        raise StepRefusedError("MODEL_INVALID", f"the converted file is not sound: {error}") from error
    if own:
        _check_runs(source, metadata.vocabulary_size, workspace)
    shutil.rmtree(workspace.checkpoint, ignore_errors=True)
    return {"size": metadata.file_bytes, "quantisation": metadata.quantisation}


def _convert(checkpoint: Path, name: str, target: Path) -> None:
    texts = read_texts(checkpoint)
    try:
        tensors = converted(texts.config, read_checkpoint_tensors(sorted(checkpoint.glob("*.safetensors"))))
        _write(target, texts, name, tensors)
    except OSError as error:
        # numpy does not say why a write ended early.
        if full := full_disk(target.parent):
            raise StepRefusedError("STORE_UNAVAILABLE", full) from error
        words = error.strerror or "a write ended early"
        raise StepOutageError("STORE_UNAVAILABLE", f"the converted file cannot be written: {words}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        # Also SafetensorsError and TensorsRefusedError; the writer trusts what it is given, and packs numbers that may not fit.
        raise StepRefusedError("QUANT_REFUSED", shown(error, longest=300)) from error


def _write(target: Path, texts: CheckpointTexts, name: str, tensors: Sequence[LlamaTensor]) -> None:
    writer = gguf.GGUFWriter(target, texts.config.architecture)
    try:
        _add_numbers(writer, texts.config, name, tensors)
        texts.vocabulary.add_to(writer)
        texts.special.add_to_gguf(writer, quiet=True)
        _write_tensors(writer, tensors)
    finally:
        writer.close()


def _add_numbers(writer: gguf.GGUFWriter, config: CheckpointConfig, name: str, tensors: Sequence[LlamaTensor]) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.rms_epsilon)
    writer.add_vocab_size(config.vocabulary)
    writer.add_file_type(_file_type(tensors))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_scaling(writer, config.rope.kind, config.rope.numbers)


def _add_scaling(writer: gguf.GGUFWriter, kind: str, numbers: Mapping[str, float]) -> None:
    """Write how positions are scaled. That of Llama 3.1 is a tensor (`llama_tensors.rope_factors`)."""
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(numbers["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(numbers["factor"])
        writer.add_rope_scaling_orig_ctx_len(int(numbers["original_max_position_embeddings"]))


def _file_type(tensors: Sequence[LlamaTensor]) -> int:
    """Return llama.cpp's number of the type that most matrices have."""
    names = [tensor.type.name for tensor in tensors if len(tensor.shape) > 1]
    most = max(set(names), key=names.count)
    return next(number for number, name in FILE_TYPES.items() if name == most)


def _write_tensors(writer: gguf.GGUFWriter, tensors: Sequence[LlamaTensor]) -> None:
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, tensor.stored, tensor.byte_count, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, tensor in enumerate(tensors, 1):
        writer.write_tensor_data(tensor.load())
        report_progress(number, len(tensors))


def _convert_with_program(workspace: Workspace, target: Path, program: str) -> None:
    """Convert with llama.cpp's own converter. It gets the files of the checkpoint that are data, and no access to the Hub."""
    words = [program_at(program), "--outtype", "auto", "--outfile", str(target), str(workspace.checkpoint)]
    run_program(
        "llama.cpp's converter",
        "services.quant.step.llama_program",
        words,
        _PERCENT,
        folder=workspace.folder,
        # Nothing that this user has fetched from the Hub is taken for a part of the checkpoint.
        variables={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(workspace.folder / "hub")},
    )
    if not target.exists():
        raise StepRefusedError("QUANTISATION_FAILED", "llama.cpp's converter has written nothing")


def _check_runs(source: Path, vocabulary: int, workspace: Workspace) -> None:
    """Raise StepRefusedError unless llama.cpp can run the converted model, if this machine can find it out.

    `verify` uses the predictions that this makes.
    """
    if measurement.memory_missing([source], vocabulary):
        return
    try:
        measurement.cached_predictions(source, workspace.measured_source)
    except measurement.NotInstalledError:
        return
    except measurement.NotMeasurableError as error:
        raise StepRefusedError("MODEL_INVALID", "llama.cpp cannot use the converted file: see the log") from error
