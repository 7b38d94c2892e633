"""Splits GGUF files into parts as llama.cpp's gguf-split does: the metadata is in the first, the numbers of the split in each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.unit.gguf_bytes import I32, U16, File, pair, tensor


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
