"""Measures how much a variant differs from its source: compares their predictions for the same text.

The text is part of llamesh. Its first half is context only, because every model predicts a beginning badly. The predictions of the source
are cached in the job's folder, because they are the same for all types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from llamesh.cores import usable_cores
from llamesh.kit.machine_memory import machine_memory
from llamesh.sizes import size
from services.quant.workspace import finish

MAX_TOKENS = 512
"""Maximum number of tokens of the text that are read."""
_ARRAYS = 10
"""Arrays that exist at once, with a number for each token of the vocabulary and each measured one of the text: llama.cpp's logits of the
whole text, twice, the predictions of both models, and what is computed of them."""
_FLOAT_BYTES = 4
CORPUS = Path(__file__).resolve().parent.parent / "corpus.txt"


class NotMeasurableError(Exception):
    """A model cannot be measured; the message has the reason."""


class NotInstalledError(NotMeasurableError):
    """This installation cannot measure any model."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The predictions of a variant for a text, compared with those of its source."""

    tokens: int
    """Tokens whose predictions were compared."""
    kl_divergence: float
    """Mean Kullback-Leibler divergence from the source, in nats per token."""
    same_top_token: float
    """Share of the tokens with the same most likely next token, 0 to 1."""
    perplexity: float
    source_perplexity: float


def compared(source: Any, variant: Any, tokens: Any) -> Measurement:
    """Compare the log probabilities of two models, one row for each token of the text."""
    wanted = tokens[1:]
    mine, theirs = source[:-1], variant[:-1]
    places = numpy.arange(len(wanted))
    divergence = (numpy.exp(mine) * (mine - theirs)).sum(axis=1)
    return Measurement(
        tokens=len(wanted),
        kl_divergence=float(divergence.mean()),
        same_top_token=float((mine.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        perplexity=float(numpy.exp(-theirs[places, wanted].mean())),
        source_perplexity=float(numpy.exp(-mine[places, wanted].mean())),
    )


def predictions(path: Path) -> tuple[Any, Any]:
    """Return the tokens of the second half of the text, and the model's log probabilities after each. Raises NotMeasurableError."""
    try:
        from cyllama.llama import llama_cpp
    except ImportError as error:
        raise NotInstalledError("the package cyllama is not installed") from error

    # The class lacks a property that its own context reads.
    with_vocabulary: Any = type("ModelWithVocabulary", (llama_cpp.LlamaModel,), {"n_vocab": 0})
    llama_cpp.llama_backend_init()
    llama_cpp.ggml_backend_load_all()
    try:
        model = with_vocabulary(str(path), llama_cpp.LlamaModelParams())
        vocabulary = model.get_vocab()
        with_vocabulary.n_vocab = vocabulary.n_vocab
        length = min(MAX_TOKENS, model.n_ctx_train)
        tokens = vocabulary.tokenize(CORPUS.read_text(encoding="utf-8"), False, False)[:length]
        parameters = llama_cpp.LlamaContextParams()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
        parameters.n_threads = parameters.n_threads_batch = usable_cores()
        context = llama_cpp.LlamaContext(model, parameters)
        batch = llama_cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        batch.set_batch(tokens, 0, True)
        context.decode(batch)
        half = range(len(tokens) // 2, len(tokens))
        logits = numpy.stack([numpy.asarray(context.get_logits_ith(place), numpy.float32) for place in half])
    except MemoryError:
        raise
    except Exception as error:
        raise NotMeasurableError(f"llama.cpp cannot run it: {error}") from error
    return numpy.array(tokens[half.start :]), _log_probabilities(logits)


def memory_missing(paths: Sequence[Path], vocabulary: int) -> str:
    """Return why the memory does not suffice to measure a model in these files, with this number of tokens; empty if it does."""
    needed = sum(path.stat().st_size for path in paths) + _ARRAYS * MAX_TOKENS // 2 * vocabulary * _FLOAT_BYTES
    left = machine_memory().available_bytes
    return f"measuring it needs {size(needed)} of memory, {size(left)} are available" if left < needed else ""


def _log_probabilities(logits: Any) -> Any:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - numpy.log(numpy.exp(shifted).sum(axis=1, keepdims=True))


def cached_predictions(source: Path, cache: Path) -> tuple[Any, Any]:
    """Return `predictions` of the source from the file `cache`, which is written if it does not exist."""
    if not cache.exists():
        tokens, predicted = predictions(source)
        unfinished = cache.with_name("unfinished.npy")
        numpy.save(unfinished, numpy.column_stack([tokens.astype(numpy.float32), predicted]))
        finish(unfinished, cache)
    both = numpy.load(cache)
    return both[:, 0].astype(numpy.int64), both[:, 1:]
