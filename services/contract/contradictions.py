"""Parameters that contradict each other: llama.cpp would fail, or silently ignore one of them.

Invariant: every rule depends on the parameters alone; rules that depend on the model are in `check`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llamesh.runtime_parameters import DEFAULT_DRAFT_TOKENS, DEFAULT_PARALLEL, all_parameters, batch_size
from llamesh.v1.server_pb2 import CacheType, Pooling, RopeScaling, RuntimeParameters, SpeculativeType, Switch

MIN_SLOT_CONTEXT = 64
"""Smallest context of a slot, in tokens."""

FULL_CACHE_TYPES = frozenset({CacheType.CACHE_TYPE_F32, CacheType.CACHE_TYPE_F16, CacheType.CACHE_TYPE_BF16})
"""Cache types that are not quantised. Without flash attention, the value cache must have one of these."""

MAX_TEMPLATE_DEPTH = 8
"""Deepest nesting of a chat template's variables."""

_OF_THE_DRAFT = (
    "spec_draft_n_max",
    "spec_draft_n_min",
    "spec_draft_p_min",
    "gpu_layers_draft",
    "cache_type_k_draft",
    "cache_type_v_draft",
)
_OF_THE_TEMPLATE = ("reasoning", "reasoning_effort", "reasoning_preserve", "chat_template_kwargs")
_VARIABLES = {
    "reasoning": "enable_thinking",
    "reasoning_effort": "reasoning_effort",
    "reasoning_preserve": "preserve_reasoning",
}
"""Parameters that set a variable of the chat template."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A parameter that another parameter contradicts."""

    name: str
    value: str
    problem: str


def contradictions(parameters: RuntimeParameters, names: Mapping[str, str]) -> Iterator[Contradiction]:
    """Yield all contradictions. `names` has the flag of each parameter as the caller spelt it."""

    def found(name: str, problem: str) -> Contradiction:
        value = getattr(parameters, name)
        shown = "" if isinstance(value, bool) else str(all_parameters()[name].value(value))
        return Contradiction(name, shown, problem)

    has = parameters.HasField
    for cache in ("cache_type_v", "cache_type_v_draft"):
        if (
            has(cache)
            and getattr(parameters, cache) not in FULL_CACHE_TYPES
            and parameters.flash_attn == Switch.SWITCH_OFF
        ):
            yield found(cache, f"needs flash attention, and {names['flash_attn']} is off")
    batch = batch_size(parameters)
    if parameters.ubatch_size > batch:
        yield found("ubatch_size", f"must not be above {names['batch_size']}, which is {batch}")
    parallel = parameters.parallel or DEFAULT_PARALLEL
    if has("ctx_size") and not parameters.kv_unified and parameters.ctx_size // parallel < MIN_SLOT_CONTEXT:
        yield found(
            "ctx_size",
            f"is shared by {parallel} slots ({names['parallel']}); each needs at least {MIN_SLOT_CONTEXT} tokens",
        )
    for problem in (_of_positions, _of_embeddings, _of_the_template, _of_drafts):
        for name, words in problem(parameters, names):
            yield found(name, words)


def _of_positions(parameters: RuntimeParameters, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if parameters.HasField("rope_scale") and parameters.HasField("rope_freq_scale"):
        yield "rope_scale", f"says the same as {names['rope_freq_scale']}, which is given too"
    if parameters.rope_scaling == RopeScaling.ROPE_SCALING_NONE:
        for name in ("rope_scale", "rope_freq_scale"):
            if parameters.HasField(name):
                yield name, f"has no effect, because {names['rope_scaling']} is none"


def _of_embeddings(parameters: RuntimeParameters, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    pooling = Pooling.POOLING_RANK if parameters.reranking else parameters.pooling
    if parameters.reranking and parameters.pooling not in (Pooling.POOLING_UNSPECIFIED, Pooling.POOLING_RANK):
        yield "reranking", f"needs pooling rank, and {names['pooling']} is given"
    if not parameters.HasField("embd_normalize"):
        return
    if not parameters.embeddings and not parameters.reranking:
        yield "embd_normalize", f"has no effect without {names['embeddings']}"
    elif pooling in (Pooling.POOLING_NONE, Pooling.POOLING_RANK):
        yield "embd_normalize", f"has no effect with pooling {all_parameters()['pooling'].value(pooling)}"


def _of_the_template(parameters: RuntimeParameters, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if parameters.HasField("jinja") and not parameters.jinja:
        for name in _OF_THE_TEMPLATE:
            if name in _given(parameters):
                yield name, f"is for the model's chat template, which {all_parameters()['jinja'].negative} switches off"
    if not parameters.HasField("chat_template_kwargs"):
        return
    try:
        variables = json.loads(
            parameters.chat_template_kwargs, object_pairs_hook=_distinct, parse_constant=_refuse_constant
        )
        depth = _depth(variables)
    except (ValueError, RecursionError) as error:
        yield "chat_template_kwargs", f"must be a JSON object, and cannot be read: {error}"
        return
    if not isinstance(variables, dict):
        yield "chat_template_kwargs", "must be a JSON object"
    elif depth > MAX_TEMPLATE_DEPTH:
        yield "chat_template_kwargs", f"is nested deeper than {MAX_TEMPLATE_DEPTH}"
    else:
        for name, variable in _VARIABLES.items():
            if variable in variables and name in _given(parameters):
                yield "chat_template_kwargs", f"sets {variable}, and so does {names[name]}, which is given too"


def _of_drafts(parameters: RuntimeParameters, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    simple = SpeculativeType.SPECULATIVE_TYPE_DRAFT_SIMPLE
    if parameters.HasField("model_draft"):
        if parameters.HasField("spec_type") and parameters.spec_type != simple:
            yield "spec_type", f"leaves the model of {names['model_draft']} unused"
    else:
        if parameters.spec_type == simple:
            yield "spec_type", f"needs {names['model_draft']}"
        for name in _OF_THE_DRAFT:
            if name in _given(parameters):
                yield name, f"needs {names['model_draft']}"
    most = parameters.spec_draft_n_max or DEFAULT_DRAFT_TOKENS
    if parameters.spec_draft_n_min > most:
        yield "spec_draft_n_min", f"must not be above {names['spec_draft_n_max']}, which is {most}"
    speculates = parameters.HasField("model_draft") or parameters.spec_type > SpeculativeType.SPECULATIVE_TYPE_NONE
    if speculates and (parameters.embeddings or parameters.reranking):
        name = "model_draft" if parameters.HasField("model_draft") else "spec_type"
        other = "reranking" if parameters.reranking else "embeddings"
        yield name, f"is for text, and {names[other]} serves none"


def _given(parameters: RuntimeParameters) -> set[str]:
    return {field.name for field, _ in parameters.ListFields()}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)
