"""May this server be? The straight line: parameters, model, memory wanted, memory there is, limits, decision.

Invariant: nothing is started, and every answer, yes or no, is recorded before it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from llamesh.parameters import DEFAULT_MICRO_BATCH, all_parameters, batch_size, with_defaults
from llamesh.v1.model_pb2 import Model
from llamesh.v1.server_pb2 import LoadMode, RuntimeParameters, Switch
from services.contract.contradictions import MIN_SLOT_CONTEXT
from services.contract.decisions import Decided, Decisions
from services.contract.fit import MemoryEstimate, ModelShape, estimate_memory
from services.contract.inventory import Inventory
from services.contract.policy import Limits, Refusal, limit_refusals, memory_refusals

DEFAULT_NAMESPACE = "default"
_MAPPING = (LoadMode.LOAD_MODE_UNSPECIFIED, LoadMode.LOAD_MODE_AUTO, LoadMode.LOAD_MODE_MMAP)


@dataclass(frozen=True, slots=True)
class Wish:
    """A server that someone would like."""

    model_uuid: str
    replicas: int
    parameters: RuntimeParameters
    namespace: str = DEFAULT_NAMESPACE
    replaces_server_uuid: str = ""
    serve: bool = False
    """Whether the server is declared or changed where this is allowed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found about a wish."""

    refusals: list[Refusal]
    memory: MemoryEstimate
    free_bytes: int
    decision_id: str


class Checker:
    """Decides about wishes."""

    def __init__(self, inventory: Inventory, decisions: Decisions, limits: Limits) -> None:
        self._inventory = inventory
        self._decisions = decisions
        self._limits = limits

    async def check(self, wish: Wish, subject: str, contract_id: str) -> Outcome:
        """Decide and record; the siblings' errors where the model or the replaced server is not there."""
        shape = model_shape(await self._inventory.model(wish.model_uuid))
        machines = await self._inventory.machines(wish.model_uuid, wish.replaces_server_uuid)
        parameters = with_defaults(wish.parameters, shape.context_length)
        estimate = partial(estimate_for, shape, parameters, wish.replicas)
        memory = estimate(parameters.ctx_size)
        refusals = [
            *limit_refusals(self._limits, wish.replicas, wish.namespace),
            *memory_refusals(estimate, parameters.ctx_size, MIN_SLOT_CONTEXT * sharing_slots(parameters), machines),
        ]
        action = "serve" if wish.serve else "check"
        decided = Decided(subject, action, wish.model_uuid, contract_id, refusals, memory)
        free = max((machine.free_bytes for machine in machines), default=0)
        return Outcome(refusals, memory, free, await self._decisions.record(decided))


def model_shape(model: Model) -> ModelShape:
    """What the estimate needs of a model."""
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
    )


def sharing_slots(parameters: RuntimeParameters) -> int:
    """How many slots an engine's context is divided among; `parameters` have their defaults."""
    return 1 if parameters.kv_unified else parameters.parallel


def estimate_for(shape: ModelShape, parameters: RuntimeParameters, replicas: int, context: int) -> MemoryEstimate:
    """The memory of engines that are started with these parameters, which have their defaults, and this context."""
    cache_types = {
        name: str(all_parameters()[name].value(getattr(parameters, name)))
        for name in ("cache_type_k", "cache_type_v")
        if parameters.HasField(name)
    }
    return estimate_memory(
        shape,
        context=context,
        slots=sharing_slots(parameters),
        micro_batch=min(parameters.ubatch_size or DEFAULT_MICRO_BATCH, batch_size(parameters)),
        flash_attention=parameters.flash_attn != Switch.SWITCH_OFF,
        prompt_cache_mib=parameters.cache_ram,
        mapped=parameters.load_mode in _MAPPING,
        replicas=replicas,
        **cache_types,
    )
