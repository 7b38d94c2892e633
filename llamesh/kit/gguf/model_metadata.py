"""What the header of a GGUF file says, as far as the mesh uses it."""

from dataclasses import dataclass

from llamesh.kit.gguf.description import Description


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """The metadata of a model. A number that the file does not have is 0, a text is empty."""

    version: int
    """GGUF version, 2 or 3."""
    architecture: str
    """llama.cpp's name of the architecture, such as `llama`; empty in a part of a split model other than the first."""
    kind: str
    """`model`, or the value of `general.type`: `adapter`, `mmproj`, ..."""
    name: str
    """The model's own name."""
    parameter_count: int
    """Values in all tensors."""
    quantisation: str
    """`general.file_type` by name, such as `Q4_K_M`; without it the type with most bytes."""
    context_length: int
    """Tokens the model was trained for."""
    embedding_length: int
    """Width of the residual stream."""
    layer_count: int
    """Transformer blocks."""
    head_count: int
    """Attention heads of a layer; the maximum if layers differ."""
    kv_head_count: int
    """Key and value heads of a layer; the mean, rounded up, if layers differ."""
    key_length: int
    """Values of one head's key."""
    value_length: int
    """Values of one head's value."""
    sliding_window: int
    """Attention window in tokens; 0 without a window."""
    vocabulary_size: int
    """Tokens in the vocabulary."""
    has_chat_template: bool
    """Whether the file has a chat template."""
    alignment: int
    """Tensors start at multiples of this, in bytes."""
    tensor_count: int
    """Number of tensors."""
    tensor_bytes: int
    """Bytes of all tensors, padding not counted."""
    file_bytes: int
    """Length of the whole file."""
    split_index: int
    """Index of this part of a split model, from 0."""
    split_count: int
    """Number of parts of a split model; 0 or 1 for a whole model."""
    split_tensor_count: int
    """Number of tensors of all parts of a split model."""
    projector_type: str
    """The kind of a projector, such as `mlp` or `qwen2vl_merger`; empty for other files."""
    projection_length: int
    """Width of the embeddings that a projector makes, as its header says."""
    adapter_type: str
    """The kind of an adapter, such as `lora`; empty for other files."""
    description: Description
    """What the file says to people."""
