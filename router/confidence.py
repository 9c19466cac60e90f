"""Owns how sure a student is of one answer: a single number from its token log-probabilities. Knows no engine."""

import math
from collections.abc import Sequence


def first(logprobs: Sequence[float], tokens: int) -> Sequence[float]:
    """Those of the tokens that decide: the first `tokens`, which may be fewer, and all where it is 0."""
    return logprobs[:tokens] if tokens else logprobs


def confidence(logprobs: Sequence[float]) -> float:
    """The joint probability of the whole answer, exp of the sum of its token log-probabilities, in [0, 1].

    `logprobs` (nats) holds one entry per generated token *with* the end-of-turn token, which is what vLLM lists under
    `choices[0].logprobs.content` and what `distiller.generate` measures, so that a threshold set on the one holds for
    the other. An answer without tokens, or with one whose probability is no number, is evidence of nothing: 0.
    """
    total = math.fsum(logprobs)
    return math.exp(min(total, 0.0)) if logprobs and not math.isnan(total) else 0.0
