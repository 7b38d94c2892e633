"""The step `convert`: makes the source of a job, a GGUF file, of the checkpoint that `fetch` has brought.

Invariant: the file has the weights of the checkpoint, unchanged (see `llama_tensors`), and llama.cpp can run it. Memory is bounded by the
largest tensor, because tensors are mapped and written one after the other.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf

from llamesh.kit.config import Settings
from llamesh.kit.gguf import GgufError, read_gguf
from llamesh.kit.gguf.types import FILE_TYPES
from services.quant.checkpoint_config import CheckpointConfig, CheckpointRefusedError, read_config
from services.quant.step import measurement
from services.quant.step.llama_program import ProgressMarks, full_disk, program_at, run_program
from services.quant.step.llama_tensors import LlamaTensor, TensorsRefusedError, converted
from services.quant.step.report import StepOutageError, StepRefusedError, report_progress
from services.quant.step.safetensors_files import SafetensorsError, read_checkpoint_tensors
from services.quant.step.vocabulary import VocabularyRefusedError, read_vocabulary
from services.quant.workspace import Workspace, finish

MAX_JSON_BYTES = 64 << 20
"""Maximum size of a JSON file of a checkpoint. The tokenizer of 250,000 tokens has about 20 MiB."""
_PERCENT = ProgressMarks(re.compile(r"Writing:\s+(\d+)%\|"), units=100)


def convert(workspace: Workspace, settings: Settings) -> dict[str, Any]:
    """Convert the checkpoint, and remove its files. Return the size and the type of the GGUF file."""
    source, unfinished = workspace.source_part(1, 1), workspace.unfinished_source
    if not source.exists():
        try:
            if settings.llama_convert_bin:
                _convert_with_program(workspace, unfinished, settings.llama_convert_bin)
            else:
                _convert(workspace.checkpoint, workspace.spec().name, unfinished)
            finish(unfinished, source)
        finally:
            unfinished.unlink(missing_ok=True)
    try:
        with source.open("rb") as file:
            metadata = read_gguf(file, source.stat().st_size)
    except GgufError as error:
        raise StepRefusedError("MODEL_INVALID", f"the converted file is not sound: {error}") from error
    _check_runs(source, workspace)
    shutil.rmtree(workspace.checkpoint, ignore_errors=True)
    return {"size": metadata.file_bytes, "quantisation": metadata.quantisation}


def _convert(checkpoint: Path, name: str, target: Path) -> None:
    try:
        config = read_config(read_json(checkpoint / "config.json"))
        tensors = converted(config, read_checkpoint_tensors(sorted(checkpoint.glob("*.safetensors"))))
        vocabulary = read_vocabulary(read_json(checkpoint / "tokenizer.json"), config.vocabulary)
        special = gguf.SpecialVocab(checkpoint, load_merges=vocabulary.kind == "gpt2", n_vocab=config.vocabulary)
    except (CheckpointRefusedError, SafetensorsError, TensorsRefusedError, VocabularyRefusedError) as error:
        raise StepRefusedError("QUANT_REFUSED", str(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The reader of special tokens trusts the files.
        raise StepRefusedError("QUANT_REFUSED", f"its tokenizer files cannot be read: {error}"[:300]) from error
    writer = gguf.GGUFWriter(target, config.architecture)
    try:
        _add_numbers(writer, config, name, tensors)
        vocabulary.add_to(writer)
        special.add_to_gguf(writer, quiet=True)
        _write(writer, tensors)
    except OSError as error:
        # numpy does not say why a write ended early.
        if full := full_disk(target.parent):
            raise StepRefusedError("STORE_UNAVAILABLE", full) from error
        raise StepOutageError("STORE_UNAVAILABLE", f"the converted file cannot be written: {error}") from error
    finally:
        writer.close()


def read_json(path: Path) -> Any:
    """Return a parsed JSON file of a checkpoint. Raises StepRefusedError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise StepRefusedError("QUANT_REFUSED", f"{path.name} has more than {MAX_JSON_BYTES} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StepRefusedError("QUANT_REFUSED", f"the checkpoint has no {path.name}") from None
    except (ValueError, RecursionError) as error:
        raise StepRefusedError("QUANT_REFUSED", f"{path.name} is no JSON") from error


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


def _write(writer: gguf.GGUFWriter, tensors: Sequence[LlamaTensor]) -> None:
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
        variables={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
    )
    if not target.exists():
        raise StepRefusedError("QUANTISATION_FAILED", "llama.cpp's converter has written nothing")


def _check_runs(source: Path, workspace: Workspace) -> None:
    """Raise StepRefusedError unless llama.cpp can run the converted model. `verify` uses the predictions that this makes."""
    if measurement.memory_missing([source]):
        return
    try:
        measurement.cached_predictions(source, workspace.measured_source)
    except measurement.NotMeasurableError as error:
        raise StepRefusedError("MODEL_INVALID", f"the converted file cannot be used: {error}") from error
