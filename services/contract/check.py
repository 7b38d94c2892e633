"""May this server be? The straight line: parameters, model, memory wanted, memory there is, limits, decision.

Invariant: nothing is started, and every answer, yes or no, is recorded before it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from llamesh.v1.model_pb2 import Model
from llamesh.v1.server_pb2 import RuntimeParameters, Switch
from services.contract import parameters as flags
from services.contract.decisions import Decided, Decisions
from services.contract.fit import MemoryEstimate, ModelShape, estimate_memory
from services.contract.inventory import Inventory
from services.contract.policy import Limits, Refusal, limit_refusals, memory_refusals

DEFAULT_NAMESPACE = "default"
DEFAULT_SLOT_CONTEXT = 4096
"""Most tokens of context for each slot where no context is asked for, as the contract says of `ctx_size`."""
DEFAULT_MICRO_BATCH = 512
"""Physical batch where none is asked for."""


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
        free = await self._inventory.free_bytes()
        if wish.replaces_server_uuid:
            free = await self._with_replaced(free, wish.replaces_server_uuid)
        context = context_of(wish.parameters, shape)
        estimate = partial(estimate_for, shape, wish.parameters, wish.replicas)
        memory = estimate(context)
        refusals = [
            *limit_refusals(self._limits, wish.replicas, wish.namespace),
            *memory_refusals(estimate, context, least_context(wish.parameters), free),
        ]
        action = "serve" if wish.serve else "check"
        decided = Decided(subject, action, wish.model_uuid, contract_id, refusals, memory)
        return Outcome(refusals, memory, max(free, default=0), await self._decisions.record(decided))

    async def _with_replaced(self, free: list[int], server_uuid: str) -> list[int]:
        """Count what a server takes as free, on the machine that has the most: where it runs is not known here."""
        server = await self._inventory.server(server_uuid)
        shape = model_shape(await self._inventory.model(server.model_uuid))
        parameters = server.spec.parameters
        taken = estimate_for(shape, parameters, max(server.replicas, 1), context_of(parameters, shape)).total_bytes
        most = max(free, default=0)
        rest = list(free)
        if most in rest:
            rest.remove(most)
        return [most + taken, *rest]


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
    )


def context_of(parameters: RuntimeParameters, shape: ModelShape) -> int:
    """Tokens of context of one engine, all slots together."""
    if parameters.HasField("ctx_size"):
        return parameters.ctx_size
    slot = min(shape.context_length or DEFAULT_SLOT_CONTEXT, DEFAULT_SLOT_CONTEXT)
    return slot if parameters.kv_unified else slot * _slots(parameters)


def least_context(parameters: RuntimeParameters) -> int:
    """The shortest context that could be asked for with as many slots."""
    return flags.MIN_SLOT_CONTEXT * (1 if parameters.kv_unified else _slots(parameters))


def estimate_for(shape: ModelShape, parameters: RuntimeParameters, replicas: int, context: int) -> MemoryEstimate:
    """The memory of engines that are started with these parameters and this context."""
    fields = RuntimeParameters.DESCRIPTOR.fields_by_name
    cache_types = {
        name: flags.written(fields[name], getattr(parameters, name))
        for name in ("cache_type_k", "cache_type_v")
        if parameters.HasField(name)
    }
    return estimate_memory(
        shape,
        context=context,
        slots=1 if parameters.kv_unified else _slots(parameters),
        micro_batch=min(parameters.ubatch_size or DEFAULT_MICRO_BATCH, parameters.batch_size or flags.DEFAULT_BATCH),
        flash_attention=parameters.flash_attn != Switch.SWITCH_OFF,
        prompt_cache_mib=parameters.cache_ram,
        replicas=replicas,
        **cache_types,
    )


def _slots(parameters: RuntimeParameters) -> int:
    return parameters.parallel or flags.DEFAULT_PARALLEL
