"""Owns the simulation of sampling: are fewer verdicts paid for when those that tell most are drawn, and is it true?

    python -m tests.bench.sampling [--candidates N] [--seed N]

A tenth of the exchanges is hard: it holds most of the disagreements. The student's confidence may know that, know
nothing, or be upside down, which must cost exchanges and never the error rate. Shares, weights and bets are the
product's own (`router.sampling`, `router.parity`). Must not know the log.
"""

import argparse
from collections.abc import Iterator
from math import inf, log

import numpy as np

from router.parity import log_wealth
from router.sampling import share_at
from tests.bench.evidence import ALPHA, BAR, CHUNK, MARGIN, Scores, chunks, first, percent, table

LONGEST = 6_000  # exchanges
LOOKED_AT = 2_000  # verdicts of a candidate at the margin
HARD = 0.1
LEAST = (1.0, 0.8, 0.7, 0.5)
"""The least share an exchange is drawn with; at 1.0 all of them are."""
KNOWS = ("knows", "knows nothing", "upside down")


def chances(mean: float, held: float) -> tuple[float, float]:
    """An easy exchange's chance to disagree, and a hard one's, of which all hold the part `held` of disagreements."""
    return mean * (1 - held) / (1 - HARD), mean * held / HARD


def sampled(
    random: np.random.Generator, shape: tuple[int, int], mean: float, held: float, least: float, knows: str
) -> tuple[Scores, Scores]:
    """What each exchange counts as, and whether it was judged; shape (candidates, exchanges)."""
    easy, hard = chances(mean, held)
    told = {"knows": (easy, hard), "knows nothing": (mean, mean), "upside down": (hard, easy)}[knows]
    is_hard = random.random(shape) < HARD
    wrong = random.random(shape) < np.where(is_hard, hard, easy)
    surely, unsurely = (share_at(1 - chance, MARGIN, least) for chance in told)
    share = np.where(is_hard, unsurely, surely)
    judged = random.random(shape) < share
    return 1 - (judged & wrong) / share, judged


def proofs(
    seed: int, candidates: int, mean: float, held: float, least: float, knows: str = "knows", longest: int = LONGEST
) -> tuple[Scores, Scores]:
    """Exchanges until each candidate's proof, inf where there was none, and verdicts paid for until then."""

    def each() -> Iterator[tuple[Scores, Scores]]:
        random = np.random.default_rng(seed)
        for n in chunks(candidates):
            scores, judged = sampled(random, (n, longest), mean, held, least, knows)
            looks = first(log_wealth(scores, BAR, least), -log(ALPHA))
            last = np.minimum(looks, longest).astype(int) - 1
            yield looks, np.where(looks < inf, judged.cumsum(axis=1)[np.arange(n), last], inf)

    looks, paid = zip(*each(), strict=True)
    return np.concatenate(looks), np.concatenate(paid)


def false_proofs(seed: int, candidates: int) -> None:
    """Candidates exactly at the margin, whatever their confidence knows: how many are ever promoted."""
    rows = []
    for least in LEAST:
        for knows in KNOWS if least < 1 else KNOWS[:1]:
            looks, _ = proofs(seed, candidates, MARGIN, 0.9, least, knows, LOOKED_AT)
            rows.append((f"{least:g}", knows, percent(int((looks < inf).sum()), looks.size)))
    table(
        f"False proofs of {candidates:,} sampled candidates at the margin, {LOOKED_AT:,} looks each, alpha {ALPHA:g}",
        ("least share judged", "confidence", "ever promoted"), rows,
    )  # fmt: skip


def costs(seed: int, candidates: int) -> None:
    """What a proof takes, by the least share, the true mean, and what the confidence knows."""
    rows = []
    for held, knows in ((0.75, "knows"), (0.9, "knows"), (0.9, "knows nothing")):
        for mean in (0.005, 0.01, 0.02, 0.03):
            found = [proofs(seed, candidates, mean, held, least, knows) for least in LEAST]
            cells = [f"{np.median(looks):,.0f} / {np.median(paid):,.0f}" for looks, paid in found]
            rows.append((f"{1 - mean:g}", f"{held:.0%}", knows, *cells))
    table(
        f"Exchanges / verdicts paid for until a proof, medians of {candidates:,} candidates",
        ("true mean", f"disagreements in {HARD:.0%} of exchanges", "confidence",
         *("all judged" if least == 1 else f"least share {least:g}" for least in LEAST)),
        rows,
    )  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--candidates", type=int, default=10_000, help="at the margin; a tenth of them for the costs")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    false_proofs(given.seed, given.candidates)
    costs(given.seed, max(CHUNK, given.candidates // 10))


if __name__ == "__main__":
    main()
