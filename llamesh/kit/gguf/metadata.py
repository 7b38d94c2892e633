"""The metadata pairs of a GGUF header: checks all of them, and stores the few that the mesh uses.

Invariant: a malformed value is found under any key. Elements of number arrays are skipped; the offset of an array that may matter is
noted, and `metadata` reads at most one element for each layer of the two arrays that it uses.
"""

import struct

from llamesh.kit.gguf.description import LICENSE_KEY, TAGS_KEY, Describer
from llamesh.kit.gguf.model_metadata import GgufMetadata
from llamesh.kit.gguf.reader import GgufError, Reader
from llamesh.kit.gguf.tensors import Tensors
from llamesh.kit.gguf.types import FILE_TYPES

_MAX_KEY = 1_024
MAX_KEYS_BYTES = 1 << 20
"""Maximum size of all keys together; they are stored to find duplicates. Real files have 5 KiB."""
MAX_TEMPLATE = 1 << 20
"""Maximum size of a chat template. The longest real ones have about 30 KiB."""
_TEXTS = {"general.architecture", "general.name", "general.type", "adapter.type"}
_PROJECTOR_TYPES = ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type")
_PROJECTION_LENGTHS = ("clip.vision.projection_dim", "clip.audio.projection_dim")
_MAX_LAYERS = 4_096
_MAX_HEADS = 65_536
_MAX_WIDTH = 1 << 24
_MAX_INT32 = (1 << 31) - 1
_MAX_ALIGNMENT = 1 << 20

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UINT32 = 4
_LENGTH_BYTES = 8
_INTEGERS = {0, 1, 2, 3, 4, 5, 10, 11}
# Suffixes of the keys that may have an array with one value for each layer.
_PER_LAYER = (".attention.head_count", ".attention.head_count_kv")
# Element types of the tokenizer's parallel arrays, which llama.cpp indexes by token without a check.
_TOKEN_ARRAYS = {
    "tokenizer.ggml.tokens": {_STRING},
    "tokenizer.ggml.scores": {6},
    "tokenizer.ggml.token_type": {4, 5},
}


class MetadataReader:
    """Reads the metadata pairs one by one."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._seen: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._places: dict[str, tuple[struct.Struct, int, int]] = {}
        """Element form, offset of the first element and number of elements of arrays that may be read later."""
        self._texts: dict[str, str] = {}
        self._describer = Describer()
        self._lengths: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        self._key_bytes = 0

    def read_pair(self) -> None:
        """Read one key, its type and its value."""
        reader = self._reader
        start = reader.offset
        key = reader.name(_MAX_KEY)
        if key in self._seen:
            raise reader.error(f"the key {key!r} appears twice", offset=start)
        self._seen.add(key)
        self._key_bytes += len(key)
        if self._key_bytes > MAX_KEYS_BYTES:
            raise reader.error(f"more than {MAX_KEYS_BYTES} bytes of keys", offset=start)
        reader.what = f"metadata {key!r}"
        self._offsets[key] = reader.offset
        kind = reader.u32()
        if kind == _ARRAY:
            self._read_array(key)
        elif kind == _STRING:
            self._read_string(key)
        elif kind == _BOOL:
            self._read_bools(1)
        elif kind in _NUMBERS:
            self._read_number(key, kind)
        else:
            raise reader.error(f"unknown value type {kind}", offset=reader.offset - 4)

    def _read_string(self, key: str) -> None:
        reader = self._reader
        if key in _TEXTS or key in _PROJECTOR_TYPES:
            # These texts are shown and stored, and control characters would break terminals and databases.
            self._texts[key] = "".join(filter(str.isprintable, reader.label(_MAX_KEY)))
        elif key == LICENSE_KEY:
            self._describer.read_license(reader)
        elif key == "tokenizer.chat_template":
            start = reader.offset
            self._describer.see_template(reader.text(MAX_TEMPLATE))
            self._lengths[key] = reader.offset - start - _LENGTH_BYTES
        else:
            reader.skip_string()

    def _read_number(self, key: str, kind: int) -> None:
        reader = self._reader
        value = reader.number(_NUMBERS[kind])
        if kind in _INTEGERS:
            self._numbers[key] = int(value)
        if key == "general.alignment" and kind != _UINT32:
            raise reader.error("the alignment must be an unsigned 32-bit number", offset=self._offsets[key])

    def _read_bools(self, count: int) -> None:
        reader = self._reader
        while count:
            step = min(count, 1 << 16)
            if reader.take(step).strip(b"\0\1"):
                raise reader.error("a truth value other than 0 and 1", offset=reader.offset - step)
            count -= step

    def _read_array(self, key: str) -> None:
        reader = self._reader
        start = reader.offset
        kind = reader.u32()
        count = reader.u64()
        self._lengths[key] = count
        allowed = _TOKEN_ARRAYS.get(key)
        if allowed is not None and kind not in allowed:
            raise reader.error(f"elements of type {kind} where llama.cpp reads another type", offset=start)
        if kind == _ARRAY:
            raise reader.error("an array of arrays, which llama.cpp does not read", offset=start)
        if kind == _STRING:
            reader.require(8 * count)
            if key == TAGS_KEY:
                self._describer.read_tags(reader, count)
            else:
                reader.skip_strings(count)
        elif kind == _BOOL:
            reader.require(count)
            self._read_bools(count)
        elif kind in _NUMBERS:
            form = _NUMBERS[kind]
            reader.require(form.size * count)
            if kind in _INTEGERS and key.endswith(_PER_LAYER):
                self._places[key] = form, reader.offset, count
            reader.skip(form.size * count)
        else:
            raise reader.error(f"unknown element type {kind}", offset=start)

    def alignment(self) -> int:
        """Return the file's alignment or the default of 32. Raises GgufError unless it is a power of two within bounds."""
        key = "general.alignment"
        alignment = self._number(key, 32)
        if alignment < 1 or alignment & (alignment - 1) or alignment > _MAX_ALIGNMENT:
            raise self._error(key, f"an alignment of {alignment}; it must be a power of two up to {_MAX_ALIGNMENT}")
        return alignment

    def metadata(self, version: int, tensors: Tensors) -> GgufMetadata:
        """Return the metadata that was read. Raises GgufError if values contradict each other."""
        split_index, split_count = self._size("split.no", 65_535), self._size("split.count", 65_535)
        architecture = self._architecture(required=split_index == 0 or split_count < 2)
        layers = self._size(f"{architecture}.block_count", _MAX_LAYERS)
        embedding = self._size(f"{architecture}.embedding_length", _MAX_WIDTH)
        heads = max(self._per_layer(f"{architecture}.attention.head_count", layers, default=0), default=0)
        kv_heads = self._per_layer(f"{architecture}.attention.head_count_kv", layers, default=heads)
        head_length = embedding // heads if heads else 0
        kind = self._texts.get("general.type", "model")
        if not tensors.count and split_count < 2:
            raise GgufError("a file without tensors", offset=8, what="header")
        return GgufMetadata(
            version=version,
            architecture=architecture,
            kind=kind,
            name=self._texts.get("general.name", ""),
            parameter_count=tensors.elements,
            quantisation=FILE_TYPES.get(self._number("general.file_type", -1), tensors.main_type()),
            context_length=self._size(f"{architecture}.context_length", _MAX_INT32),
            embedding_length=embedding,
            layer_count=layers,
            head_count=heads,
            kv_head_count=-(-sum(kv_heads) // layers) if layers else 0,
            key_length=self._size(f"{architecture}.attention.key_length", _MAX_WIDTH, head_length),
            value_length=self._size(f"{architecture}.attention.value_length", _MAX_WIDTH, head_length),
            sliding_window=self._size(f"{architecture}.attention.sliding_window", _MAX_INT32),
            vocabulary_size=self._vocabulary(architecture),
            has_chat_template=self._lengths.get("tokenizer.chat_template", 0) > 0,
            alignment=tensors.alignment,
            tensor_count=tensors.count,
            tensor_bytes=tensors.bytes,
            file_bytes=self._reader.size,
            split_index=split_index,
            split_count=split_count,
            split_tensor_count=self._size("split.tensors.count", _MAX_INT32),
            projector_type=next((self._texts[key] for key in _PROJECTOR_TYPES if key in self._texts), ""),
            adapter_type=self._texts.get("adapter.type", ""),
            projection_length=max(self._size(key, _MAX_WIDTH) for key in _PROJECTION_LENGTHS),
            description=self._describer.description(architecture, kind, self._numbers),
        )

    def _architecture(self, *, required: bool) -> str:
        architecture = self._texts.get("general.architecture")
        if architecture is None and not required:
            return ""
        if architecture is None:
            raise GgufError("'general.architecture' is missing or not a text", offset=24, what="metadata")
        if not (architecture.isascii() and architecture.replace("-", "").replace("_", "").isalnum()):
            raise self._error("general.architecture", f"not the name of an architecture: {architecture[:40]!r}")
        return architecture

    def _vocabulary(self, architecture: str) -> int:
        tokens = self._lengths.get("tokenizer.ggml.tokens", 0)
        for key in _TOKEN_ARRAYS:
            length = self._lengths.get(key, tokens)
            if length != tokens:
                raise self._error(key, f"{length} elements for {tokens} tokens")
        return self._size(f"{architecture}.vocab_size", _MAX_WIDTH, tokens) or tokens

    def _size(self, key: str, limit: int, default: int = 0) -> int:
        value = self._number(key, default)
        if not 0 <= value <= limit:
            raise self._error(key, f"{value} is not between 0 and {limit}")
        return value

    def _number(self, key: str, default: int) -> int:
        value = self._numbers.get(key)
        if value is not None:
            return value
        if key in self._seen:
            raise self._error(key, "not a whole number")
        return default

    def _per_layer(self, key: str, layers: int, default: int) -> tuple[int, ...]:
        place = self._places.get(key)
        if place is None:
            return (self._size(key, _MAX_HEADS, default),) * layers
        form, offset, count = place
        if count != layers:
            raise self._error(key, f"{count} values for {layers} layers")
        values = tuple(int(value) for (value,) in form.iter_unpack(self._reader.peek(offset, form.size * count)))
        if any(not 0 <= value <= _MAX_HEADS for value in values):
            raise self._error(key, f"a value that is not between 0 and {_MAX_HEADS}")
        return values

    def _error(self, key: str, reason: str) -> GgufError:
        return GgufError(reason, offset=self._offsets.get(key, 0), what=f"metadata {key!r}")
