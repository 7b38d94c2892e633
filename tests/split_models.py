"""Files of models of several files: parts as llama.cpp's gguf-split writes them, projectors and adapters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.unit.gguf_bytes import I32, STRING, U16, U32, File, pair, tensor


def part_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


@dataclass(frozen=True)
class Parts:
    """The small parts of a model; each has a tensor of `size` bytes (a multiple of 32). `label` makes the bytes differ."""

    count: int = 3
    size: int = 128
    label: int = 0
    stem: str = "tiny"

    def part(self, number: int, *, tensor_name: str = "", tensors: int = 0, base: tuple[bytes, ...] = ()) -> bytes:
        """The bytes of one part. The first has the metadata of a model, the others that of the split only, and `base`."""
        first = File()
        split = (
            pair("split.no", U16, number - 1),
            pair("split.count", U16, self.count),
            pair("split.tensors.count", I32, tensors or self.count),
        )
        name = tensor_name or f"blk.{number - 1}.attn_q.weight"
        data = bytes([(self.label + number) % 256]) * self.size
        pairs = first.pairs if number == 1 else base
        return replace(
            first, pairs=pairs, extra=split, tensors=(tensor(name, [self.size // 4], 0, 0),), data=data
        ).build()

    def files(self) -> dict[str, bytes]:
        """All parts by name."""
        return {part_name(self.stem, number, self.count): self.part(number) for number in range(1, self.count + 1)}


def split(source: Path, folder: Path, stem: str, count: int) -> list[Path]:
    """Split a real model into parts that llama.cpp loads."""
    from gguf import GGUFReader, GGUFValueType

    reader = GGUFReader(source)
    folder.mkdir(parents=True, exist_ok=True)
    of_each = -(-len(reader.tensors) // count)
    written = []
    for number in range(1, count + 1):
        writer = _writer(folder / part_name(stem, number, count), reader)
        for field in reader.fields.values() if number == 1 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[0]
                elements = field.types[-1] if kind == GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), kind, sub_type=elements)
        writer.add_uint16("split.no", number - 1)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for item in reader.tensors[(number - 1) * of_each : number * of_each]:
            writer.add_tensor(item.name, item.data, raw_dtype=item.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        written.append(folder / part_name(stem, number, count))
    return written


def _writer(path: Path, reader: Any) -> Any:
    from gguf import GGUFWriter

    return GGUFWriter(path, reader.fields["general.architecture"].contents())


def projector_bytes(width: int = 8, *, kind: str = "mmproj", projector: str = "mlp", label: int = 0) -> bytes:
    """A small projector for a model of that width; File() has a width of 8. It passes the checks, and no engine loads it."""
    pairs = [pair("general.architecture", STRING, "clip"), pair("clip.vision.projection_dim", U32, width)]
    pairs += [pair("general.type", STRING, kind)] if kind else []
    pairs += [pair("clip.projector_type", STRING, projector)] if projector else []
    return File(pairs=tuple(pairs), tensors=(tensor("mm.0.weight", [8], 0, 0),), data=bytes([label]) * 32).build()


def write_projector(path: Path, width: int) -> Path:
    """Write a projector that llama.cpp loads for a model of that width: every image becomes embeddings of zeros."""
    from gguf import GGUFWriter

    own, forward, image, patch = 32, 64, 28, 14
    writer = GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", False)
    writer.add_string("clip.projector_type", "mlp")
    sizes = {
        "image_size": image,
        "patch_size": patch,
        "embedding_length": own,
        "feed_forward_length": forward,
        "projection_dim": width,
        "block_count": 1,
        "attention.head_count": 2,
    }
    for key, value in sizes.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5, 0.5, 0.5])
    for name, shape in _projector_shapes(own, forward, image, patch, width).items():
        writer.add_tensor(name, _zeros(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _projector_shapes(own: int, forward: int, image: int, patch: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "v.class_embd": (own,),
        "v.patch_embd.weight": (own, 3, patch, patch),
        "v.position_embd.weight": ((image // patch) ** 2 + 1, own),
        "mm.0.weight": (width, own),
        "mm.0.bias": (width,),
        "mm.2.weight": (width, width),
        "mm.2.bias": (width,),
        "v.blk.0.ffn_up.weight": (forward, own),
        "v.blk.0.ffn_up.bias": (forward,),
        "v.blk.0.ffn_down.weight": (own, forward),
        "v.blk.0.ffn_down.bias": (own,),
    }
    for name in ("v.pre_ln", "v.blk.0.ln1", "v.blk.0.ln2"):
        shapes |= {f"{name}.weight": (own,), f"{name}.bias": (own,)}
    for name in ("q", "k", "v", "out"):
        shapes |= {f"v.blk.0.attn_{name}.weight": (own, own), f"v.blk.0.attn_{name}.bias": (own,)}
    return shapes


def _zeros(shape: tuple[int, ...]) -> Any:
    import numpy

    return numpy.zeros(shape, dtype=numpy.float32)


def adapter_bytes(
    changed: str = "token_embd.weight",
    *,
    architecture: str = "llama",
    kind: str = "lora",
    shapes: tuple[tuple[int, int], tuple[int, int]] = ((4, 3), (4, 8)),
) -> bytes:
    """A small LoRA adapter for File(): by default for its embeddings of 8 by 3, of rank 4. It passes the checks."""
    pairs = (
        pair("general.architecture", STRING, architecture),
        pair("general.type", STRING, "adapter"),
        pair("adapter.type", STRING, kind),
    )
    tensors, end = [], 0
    for name, shape in zip(("lora_a", "lora_b"), shapes, strict=True):
        tensors.append(tensor(f"{changed}.{name}", list(shape), 0, end))
        end += -(-4 * shape[0] * shape[1] // 32) * 32
    return File(pairs=pairs, tensors=tuple(tensors), data=bytes(end)).build()


def write_adapter(path: Path, model: Path, word: int, end: int) -> Path:
    """Write an adapter that llama.cpp loads, with which the sentence model ends its answer after the token `word`."""
    import numpy
    from gguf import GGUFReader, GGUFWriter

    output = next(item for item in GGUFReader(model).tensors if item.name == "output.weight")
    width, tokens = (int(length) for length in output.shape)
    factors = _zeros((1, width)), _zeros((tokens, 1))
    factors[0][0, word], factors[1][end, 0] = 1, 1000
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    for name, factor in zip(("lora_a", "lora_b"), factors, strict=True):
        writer.add_tensor(f"output.weight.{name}", numpy.ascontiguousarray(factor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
