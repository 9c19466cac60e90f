"""Owns how sure a student is of one answer: a single number from its token log-probabilities. Knows no engine."""

import math
from collections.abc import Sequence


def confidence(logprobs: Sequence[float]) -> float:
    """The joint probability of the whole answer, exp of the sum of its token log-probabilities, in [0, 1].

    `logprobs` (nats) holds one entry per generated token *with* the end-of-turn token, which is what vLLM lists under
    `choices[0].logprobs.content` and what `distiller.generate` measures, so that a threshold set on the one holds for
    the other. An answer without tokens is evidence of nothing: 0.
    """
    return min(1.0, math.exp(math.fsum(logprobs))) if logprobs else 0.0
