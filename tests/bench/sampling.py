"""Owns the simulation of sampling: would fewer verdicts be paid for if exchanges were drawn where they tell most?

    python -m tests.bench.sampling [--candidates N] [--seed N]

The best case for it: how likely each exchange is to disagree is known exactly. One is drawn with a share that grows
with the root of that, and a drawn disagreement counts 1 / share (Zrnic & Candes 2024, "Active statistical inference",
ICML), so that the mean stays the same. What it costs: a score can then fall below 0, to 1 - 1 / share, and no bet may
be so large that it could lose everything. Must not know the log.
"""

import argparse
from collections.abc import Iterator
from functools import reduce
from math import inf, log

import numpy as np
from numpy.typing import NDArray

from router.parity import BETS
from tests.bench.evidence import ALPHA, BAR, CHUNK, Scores, chunks, first, table

LONGEST = 6_000  # exchanges
HARD = 0.1  # of exchanges hold most of the disagreements
LEAST = (1.0, 0.5, 0.25)
"""The least share an exchange is drawn with; at 1.0 all of them are."""


def disagreeing(random: np.random.Generator, shape: tuple[int, int], mean: float, held: float) -> Scores:
    """Each exchange's chance to disagree: of all disagreements the hard exchanges hold the part `held`."""
    return np.where(random.random(shape) < HARD, mean * held / HARD, mean * (1 - held) / (1 - HARD))


def wealth(scores: Scores, shares: Scores) -> Scores:
    """`router.parity.log_wealth` against BAR, with no bet that a score of 1 - 1 / share would lose."""
    most = 1 / (1 + (1 / shares - 1) / BAR)
    gain = scores / BAR - 1
    parts = (np.log1p(np.minimum(bet, 0.98 * most) * gain).cumsum(axis=1) + log(part) for bet, part in BETS.items())
    return reduce(np.logaddexp, parts)


def proofs(
    random: np.random.Generator, candidates: int, mean: float, held: float, least: float
) -> Iterator[tuple[Scores, Scores]]:
    """A chunk of candidates: exchanges until the proof, inf where there was none, and verdicts paid for until then."""
    for n in chunks(candidates):
        chance = disagreeing(random, (n, LONGEST), mean, held)
        wrong = random.random(chance.shape) < chance
        shares = np.clip(np.sqrt(chance / chance.max()), least, 1)
        drawn: NDArray[np.bool_] = random.random(chance.shape) < shares
        looks = first(wealth(1 - (drawn & wrong) / shares, shares), -log(ALPHA))
        last = np.minimum(looks, LONGEST).astype(int) - 1
        yield looks, np.where(looks < inf, drawn.cumsum(axis=1)[np.arange(n), last], inf)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--candidates", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rows = []
    for held in (0.75, 0.9):
        for mean in (0.005, 0.01, 0.02, 0.03):
            cells = [f"{1 - mean:g}", f"{held:.0%}"]
            for least in LEAST:
                found = list(proofs(np.random.default_rng(given.seed), given.candidates, mean, held, least))
                looks, paid = (np.median(np.concatenate(each)) for each in zip(*found, strict=True))
                cells.append(f"{looks:,.0f} / {paid:,.0f}")
            rows.append(tuple(cells))
    table(
        f"Exchanges / verdicts paid for until a proof, medians of {max(given.candidates, CHUNK):,} candidates: all "
        f"exchanges compared, and drawn where they tell most",
        ("true mean", f"disagreements in {HARD:.0%} of exchanges",
         *("all compared" if least == 1 else f"least share {least:g}" for least in LEAST)),
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
