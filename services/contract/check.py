"""The check of a proposed server, in this order: parameters, model, memory needed, memory available, policy, decision.

Invariant: a check starts nothing, and every result is recorded before it is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from llamesh.names import DEFAULT_NAMESPACE
from llamesh.runtime_parameters import (
    DEFAULT_DRAFT_TOKENS,
    DEFAULT_MICRO_BATCH,
    adapters,
    all_parameters,
    batch_size,
    loads_projector,
    slot_share,
    with_defaults,
)
from llamesh.v1.model_pb2 import MODEL_FILE_ROLE_ADAPTER, MODEL_FILE_ROLE_PROJECTOR, Model
from llamesh.v1.server_pb2 import (
    CacheType,
    LoadMode,
    Placement,
    RopeScaling,
    RuntimeParameters,
    SpeculativeType,
    Switch,
)
from services.contract.contradictions import MIN_SLOT_CONTEXT
from services.contract.decisions import Decisions, RecordedDecision
from services.contract.flag_parser import invalid
from services.contract.inventory import Inventory
from services.contract.memory_estimate import MemoryEstimate, ModelShape, estimate_memory
from services.contract.placement_policy import placement_refusals
from services.contract.policy import Policy, limit_refusals, memory_refusals
from services.contract.refusals import PolicyRefusal

MAX_VOCABULARY_DIFFERENCE = 128
"""Maximum difference between the vocabularies of a model and its draft, in tokens: SPEC_VOCAB_MAX_SIZE_DIFFERENCE of llama.cpp."""

_GUESSES = {
    SpeculativeType.SPECULATIVE_TYPE_NGRAM_SIMPLE: 48,
    SpeculativeType.SPECULATIVE_TYPE_NGRAM_MAP_K: 48,
    SpeculativeType.SPECULATIVE_TYPE_NGRAM_MOD: 64,
}
"""Tokens that llama.cpp drafts at once by default, for each kind of speculation without a draft model."""
_MAPPING = (LoadMode.LOAD_MODE_UNSPECIFIED, LoadMode.LOAD_MODE_AUTO, LoadMode.LOAD_MODE_MMAP)


@dataclass(frozen=True, slots=True)
class ProposedServer:
    """A server that a caller wants to declare or to check."""

    model_uuid: str
    replicas: int
    parameters: RuntimeParameters
    namespace: str = DEFAULT_NAMESPACE
    replaces_server_uuid: str = ""
    serve: bool = False
    """Whether the server is declared or changed if the check allows it."""
    placement: Placement = field(default_factory=Placement)
    """Empty: on any node."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check."""

    refusals: list[PolicyRefusal]
    memory: MemoryEstimate
    free_bytes: int
    decision_id: str
    model_name: str
    """Name of the model in the catalogue."""


class Checker:
    """Checks proposed servers."""

    def __init__(self, inventory: Inventory, decisions: Decisions, policy: Policy) -> None:
        self._inventory = inventory
        self._decisions = decisions
        self.policy = policy

    async def check(self, proposed: ProposedServer, subject: str, contract_id: str) -> CheckResult:
        """Check and record. Raises PARAMETER_INVALID, and other members' MODEL_NOT_FOUND, MODEL_NOT_READY and SERVER_NOT_FOUND."""
        model = await self._inventory.model(proposed.model_uuid)
        shape = model_shape(model)
        draft = await self._draft(proposed.parameters)
        check_of_model(proposed.parameters, shape, draft)
        machines = await self._inventory.machines(proposed.model_uuid, proposed.replaces_server_uuid)
        parameters = with_defaults(proposed.parameters, shape.context_length)
        estimate = partial(estimate_for, shape, parameters, proposed.replicas, draft=draft)
        memory = estimate(parameters.ctx_size)
        refusals = [
            *limit_refusals(self.policy, proposed.replicas, proposed.namespace),
            *placement_refusals(self.policy.placement, proposed.placement),
            *memory_refusals(estimate, parameters.ctx_size, MIN_SLOT_CONTEXT * sharing_slots(parameters), machines),
        ]
        action = "serve" if proposed.serve else "check"
        decided = RecordedDecision(subject, action, proposed.model_uuid, contract_id, refusals, memory)
        free = max((machine.free_bytes for machine in machines), default=0)
        return CheckResult(refusals, memory, free, await self._decisions.record(decided), model.name)

    async def estimate(self, model_uuid: str) -> MemoryEstimate:
        """Return the memory of one engine of a model with default parameters. Raises MODEL_NOT_FOUND and MODEL_NOT_READY."""
        shape = model_shape(await self._inventory.model(model_uuid))
        parameters = with_defaults(RuntimeParameters(), shape.context_length)
        return estimate_for(shape, parameters, 1, parameters.ctx_size)

    async def _draft(self, parameters: RuntimeParameters) -> ModelShape | None:
        if not parameters.HasField("model_draft"):
            return None
        return model_shape(await self._inventory.model(parameters.model_draft))


def check_of_model(parameters: RuntimeParameters, shape: ModelShape, draft: ModelShape | None) -> None:
    """Raise PARAMETER_INVALID if llama.cpp would silently ignore a parameter with this model."""
    trained, share = shape.context_length, slot_share(parameters, shape.context_length)
    if parameters.rope_scaling == RopeScaling.ROPE_SCALING_LINEAR and trained and share > trained:
        raise invalid(
            all_parameters()["rope_scaling"].flag,
            "linear",
            f"llama.cpp gives a slot at most the {trained} tokens that the model was trained for, and {share} are reserved; "
            "yarn lifts that",
        )
    _check_adapters(parameters, shape)
    if parameters.mmproj_auto and not shape.projector_bytes:
        raise invalid(
            all_parameters()["mmproj_auto"].flag,
            "on",
            "the model has no projector: fetch it again with one, `llamesh pull SOURCE --mmproj SOURCE`",
        )
    if draft is None or not draft.vocabulary_size or not shape.vocabulary_size:
        return
    if abs(draft.vocabulary_size - shape.vocabulary_size) > MAX_VOCABULARY_DIFFERENCE:
        raise invalid(
            all_parameters()["model_draft"].flag,
            parameters.model_draft,
            f"has a vocabulary of {draft.vocabulary_size} tokens and the model one of {shape.vocabulary_size}; "
            f"llama.cpp uses it only if they differ by at most {MAX_VOCABULARY_DIFFERENCE}",
        )


def _check_adapters(parameters: RuntimeParameters, shape: ModelShape) -> None:
    named = [item.partition(":")[0] for item in parameters.lora.split(",") if item]
    for name in named:
        if name not in shape.adapter_bytes:
            has = ", ".join(shape.adapter_bytes) or "none"
            words = f"the model has no adapter {name} (it has {has}): fetch it again with one, `llamesh pull SOURCE --lora {name}=SOURCE`"
            raise invalid(all_parameters()["lora"].flag, parameters.lora, words)
        if named.count(name) > 1:
            raise invalid(all_parameters()["lora"].flag, parameters.lora, f"names the adapter {name} twice")


def model_shape(model: Model) -> ModelShape:
    """Return the properties of a model that the estimate uses."""
    gguf = model.gguf
    return ModelShape(
        tensor_bytes=gguf.tensor_bytes or model.size_bytes,
        context_length=gguf.context_length,
        layer_count=gguf.layer_count,
        head_count=gguf.head_count,
        kv_head_count=gguf.kv_head_count,
        key_length=gguf.key_length,
        value_length=gguf.value_length,
        embedding_length=gguf.embedding_length,
        vocabulary_size=gguf.vocabulary_size,
        quantisation=gguf.quantisation,
        sliding_window=gguf.sliding_window,
        projector_bytes=sum(file.size_bytes for file in model.files if file.role == MODEL_FILE_ROLE_PROJECTOR),
        adapter_bytes={file.name: file.size_bytes for file in model.files if file.role == MODEL_FILE_ROLE_ADAPTER},
    )


def sharing_slots(parameters: RuntimeParameters) -> int:
    """Return the number of slots that share an engine's context; defaults must be filled in."""
    return 1 if parameters.kv_unified else parameters.parallel


def estimate_for(
    shape: ModelShape, parameters: RuntimeParameters, replicas: int, context: int, draft: ModelShape | None = None
) -> MemoryEstimate:
    """Return the memory of engines with these parameters, defaults filled in, and this context."""
    estimate = partial(
        estimate_memory,
        context=context,
        slots=sharing_slots(parameters),
        requests=parameters.parallel,
        micro_batch=min(parameters.ubatch_size or DEFAULT_MICRO_BATCH, batch_size(parameters)),
        flash_attention=parameters.flash_attn != Switch.SWITCH_OFF,
        mapped=parameters.load_mode in _MAPPING,
        checkpoints=0 if parameters.swa_full else parameters.ctx_checkpoints,
        replicas=replicas,
    )
    engine = estimate(
        shape,
        prompt_cache_mib=parameters.cache_ram,
        guesses=guesses(parameters),
        ngram_table=parameters.spec_type == SpeculativeType.SPECULATIVE_TYPE_NGRAM_MOD,
        cache_type_k=_cache_type(parameters.cache_type_k),
        cache_type_v=_cache_type(parameters.cache_type_v),
    )
    if loads_projector(parameters):
        engine = engine.with_projector(shape.projector_bytes)
    engine = engine.with_adapters(sum(shape.adapter_bytes.get(name, 0) for name in adapters(parameters)))
    if draft is None:
        return engine
    return engine.with_draft(
        estimate(
            draft,
            cache_type_k=_cache_type(parameters.cache_type_k_draft),
            cache_type_v=_cache_type(parameters.cache_type_v_draft),
        )
    )


def guesses(parameters: RuntimeParameters) -> int:
    """Return the number of tokens that are verified at once for one request if speculation is used."""
    if parameters.spec_type == SpeculativeType.SPECULATIVE_TYPE_DRAFT_SIMPLE:
        return parameters.spec_draft_n_max or DEFAULT_DRAFT_TOKENS
    return _GUESSES.get(parameters.spec_type, 0)


def _cache_type(value: CacheType.ValueType) -> str:
    return str(all_parameters()["cache_type_k"].value(value or CacheType.CACHE_TYPE_F16))
