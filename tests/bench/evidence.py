"""Owns the simulation of the tests: how often they are wrong, and how long they take to be right.

    python -m tests.bench.evidence [--candidates N] [--seed N]

Every candidate is looked at after each of its verdicts. Scores are drawn with a seed, so the tables repeat. Must not
know the log: it feeds the statistics of `router.parity`, `router.drift` and `router.coverage` directly.
"""

import argparse
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import inf, log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from router.coverage import coverage_interval
from router.drift import log_detector
from router.parity import family_alpha, log_wealth, relative_log_wealth

Scores = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Scores]
DrawPairs = Callable[[np.random.Generator, tuple[int, int]], tuple[Scores, Scores]]

MARGIN = ALPHA = 0.05
BAR = 1 - MARGIN
HORIZON = 2_000
CHUNK = 250  # candidates at a time: what fits the caches


def two_values(random: np.random.Generator, shape: tuple[int, int], mean: float = BAR) -> Scores:
    """Right or wrong."""
    return (random.random(shape) < mean).astype(float)


def three_values(random: np.random.Generator, shape: tuple[int, int]) -> Scores:
    """Wrong, half right, right; mean exactly 0.95."""
    return random.choice([0.0, 0.5, 1.0], p=[0.02, 0.06, 0.92], size=shape)


def smooth(random: np.random.Generator, shape: tuple[int, int]) -> Scores:
    """Anything in [0, 1], mostly near 1; mean exactly 0.95."""
    return random.beta(9.5, 0.5, size=shape)


def pairs(
    random: np.random.Generator, shape: tuple[int, int], candidate: float, teacher: float, share: float, together: float
) -> tuple[Scores, Scores]:
    """Verdicts and yardsticks of those means; on a part `together` of exchanges both are right or wrong for one reason.

    The yardstick is measured on a share drawn apart from both.
    """
    reason = random.random(shape)
    own = np.where(random.random(shape) < together, reason, random.random(shape))
    yardstick = np.where(random.random(shape) < share, (reason < teacher).astype(float), np.nan)
    return (own < candidate).astype(float), yardstick


def chunks(candidates: int) -> Iterator[int]:
    """Sizes of the chunks that add up to `candidates`."""
    for start in range(0, candidates, CHUNK):
        yield min(CHUNK, candidates - start)


def ever(wealth: Scores, goal: float) -> int:
    """How many rows reach the goal at any look."""
    return int((wealth.max(axis=1) >= goal).sum())


def first(wealth: Scores, goal: float) -> Scores:
    """Looks until each row reaches the goal, shape (rows,); inf where it does not."""
    hit = wealth >= goal
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1.0, inf)


def false_promotions(seed: int, candidates: int) -> None:
    """Candidates exactly at the margin: how many of them are ever promoted."""
    goal = -log(ALPHA)
    singles: dict[str, Draw] = {"right or wrong": two_values, "three values": three_values, "beta": smooth}
    rows = []
    for name, draw in singles.items():
        random = np.random.default_rng(seed)
        wrong = sum(ever(log_wealth(draw(random, (n, HORIZON)), BAR), goal) for n in chunks(candidates))
        rows.append((f"{name}, no yardsticks", wrong))
    for teacher, share, together in ((1.0, 0.1, 0.0), (0.95, 0.1, 0.5), (0.9, 0.5, 0.8), (0.9, 1.0, 0.0)):
        random = np.random.default_rng(seed)
        draw_pairs = partial(pairs, candidate=teacher - MARGIN, teacher=teacher, share=share, together=together)
        wrong = sum(ever(relative_log_wealth(*draw_pairs(random, (n, HORIZON)), BAR), goal) for n in chunks(candidates))
        rows.append((f"teacher repeats {teacher:g}, asked on {share:.0%}, {together:.0%} for one reason", wrong))
    title = f"False promotions of {candidates:,} candidates exactly at the margin, {HORIZON:,} looks each"
    table(title, ("verdicts", "promoted", "share", "at most"), (
        (name, f"{wrong:,}", percent(wrong, candidates), f"{ALPHA:.1%}") for name, wrong in rows
    ))  # fmt: skip


def families(seed: int, count: int, retrains: int = 20) -> None:
    """Tasks whose retrains are all exactly at the margin: how many tasks ever promote one."""
    random = np.random.default_rng(seed)
    wrong = np.zeros(count, dtype=bool)
    for k in range(1, retrains + 1):
        goal = -log(family_alpha(ALPHA, k))
        best = [log_wealth(two_values(random, (n, HORIZON)), BAR).max(axis=1) for n in chunks(count)]
        wrong |= np.concatenate(best) >= goal
    title = f"Tasks with {retrains} retrains exactly at the margin, {HORIZON:,} looks each, of {count:,} tasks"
    row = (f"{wrong.sum():,}", percent(int(wrong.sum()), count), f"{ALPHA:.1%}")
    table(title, ("promoted any", "share", "at most"), [row])


def fixed_n(mean: float, power: float) -> int:
    """Fewest verdicts at which one look of the exact binomial test at ALPHA has this power."""
    n = 1
    while True:
        allowed = int(binom.ppf(ALPHA, n, MARGIN))
        allowed -= binom.cdf(allowed, n, MARGIN) > ALPHA
        if allowed >= 0 and binom.cdf(allowed, n, 1 - mean) >= power:
            return n
        n += 1


def fixed_n_pairs(spread: float, power: float) -> float:
    """The same for the difference of equally good pairs, by the normal approximation; `spread` is its deviation."""
    return float(((norm.ppf(1 - ALPHA) + norm.ppf(power)) * spread / MARGIN) ** 2)


def power(seed: int, candidates: int) -> None:
    """Verdicts until the proof of good candidates, against the best test that looks once."""
    goal, rows = -log(ALPHA), []
    for mean in (1.0, 0.99, 0.98, 0.97):
        random = np.random.default_rng(seed)
        x = two_values(random, (candidates, 4 * HORIZON if mean < 0.98 else HORIZON), mean)
        found = np.concatenate([first(log_wealth(part, BAR), goal) for part in np.array_split(x, candidates // CHUNK)])
        told = np.log1p((mean - BAR) / MARGIN * (x / BAR - 1)).cumsum(axis=1)  # Wald's test, told the true mean.
        oracle = np.median(first(told, goal)) if mean < 1 else fixed_n(1.0, 0.5)
        half, most = fixed_n(mean, 0.5), fixed_n(mean, 0.8)
        middle, late = np.median(found), np.quantile(found, 0.8)
        rows.append((
            f"{mean:.2f}", f"{middle:,.0f}", f"{late:,.0f}", f"{half:,}", f"{most:,}", f"{middle / most:.2f}",
            f"{middle / half:.2f}", f"{late / most:.2f}", f"{oracle:,.0f}",
        ))  # fmt: skip
    table(
        f"Verdicts to a proof, no yardsticks (the teacher repeats itself always), {candidates:,} candidates; one look: "
        "the exact binomial test with that power",
        ("true mean", "median", "80 % by", "one look, power 0.5", "one look, 0.8", "median / one look 0.8",
         "median / one look 0.5", "80 % by / one look 0.8", "median of Wald's test told the mean"),
        rows,
    )  # fmt: skip


def power_of_pairs(seed: int, candidates: int) -> None:
    """The same for candidates that agree with the teacher exactly as often as it agrees with itself."""
    goal, rows = -log(ALPHA), []
    for mean, share, together in (
        (1.0, 0.1, 0.0), (0.99, 0.1, 0.5), (0.98, 0.1, 0.5), (0.97, 0.1, 0.5), (0.97, 1.0, 0.5),
        (0.9, 0.1, 0.5), (0.9, 0.5, 0.5), (0.9, 1.0, 0.5), (0.9, 1.0, 0.9),
    ):  # fmt: skip
        random = np.random.default_rng(seed)
        length = HORIZON * (8 if mean * share < 0.95 * 0.5 and mean <= 0.97 else 2)
        draw = partial(pairs, candidate=mean, teacher=mean, share=share, together=together)
        found = [
            first(relative_log_wealth(*draw(random, (n, length)), BAR), goal)
            for n in chunks(candidates)
        ]  # fmt: skip
        middle, late = np.median(np.concatenate(found)), np.quantile(np.concatenate(found), 0.8, method="lower")
        spread = sqrt(2 * (1 - together) * mean * (1 - mean))
        one = fixed_n_pairs(spread, 0.8)
        rows.append((
            f"{mean:.2f}", f"{share:.0%}", f"{together:.0%}", f"{middle:,.0f}", f"{late:,.0f}",
            f"{one / share:,.0f}" if one > 59 else "-", f"{middle * share / one:.2f}" if one > 59 else "-",
        ))  # fmt: skip
    table(
        f"Exchanges to a proof, with yardsticks, of candidates as good as the teacher, {candidates:,} candidates; one "
        "look: the normal test of the measured differences (- where too few for it)",
        (
            "both agree",
            "asked again",
            "for one reason",
            "median",
            "80 % by",
            "one look, power 0.8",
            "median / one look",
        ),
        rows,
    )


def naive(seed: int, candidates: int) -> None:
    """What happens with tests made for one look that are looked at after every verdict."""
    random = np.random.default_rng(seed)
    n = np.arange(1, HORIZON + 1)
    allowed = binom.ppf(ALPHA, n, MARGIN)
    allowed -= binom.cdf(allowed, n, MARGIN) > ALPHA
    exact = normal = once = 0
    for size in chunks(candidates):
        failures = (1 - two_values(random, (size, HORIZON))).cumsum(axis=1)
        exact += int((failures <= allowed).any(axis=1).sum())
        z = (MARGIN - failures / n) / sqrt(MARGIN * BAR) * np.sqrt(n)
        normal += int((z[:, 29:] > norm.ppf(1 - ALPHA)).any(axis=1).sum())
        once += int((failures[:, -1] <= allowed[-1]).sum())
    tests = {"exact binomial": exact, "normal, from the 30th on": normal, "exact binomial, one look at the end": once}
    table(
        f"Tests made for one look, looked at after every verdict: {candidates:,} candidates exactly at the margin",
        ("test", "promoted", "share", "declared"),
        [(name, f"{wrong:,}", percent(wrong, candidates), f"{ALPHA:.1%}") for name, wrong in tests.items()],
    )


def demotions(seed: int, candidates: int) -> None:
    """Audit verdicts from a fall to the demotion, by the e-detector and by the bound on the whole history."""
    calm, rows = 500, []
    for after, length in ((0.93, 8_000), (0.88, 3_000), (0.78, 1_000)):
        random = np.random.default_rng(seed)
        means = np.concatenate([np.full(calm, 0.98), np.full(length, after)])
        x = (random.random((candidates, means.size)) < means).astype(float)
        parts = np.array_split(x, max(1, candidates // 50))
        detector = np.concatenate([log_detector(part, BAR) for part in parts])
        whole = np.concatenate([first(log_wealth(1 - part, MARGIN), -log(ALPHA)) for part in parts])
        times = [np.median(first(detector, log(every))) for every in (1_000, 10_000)] + [np.median(whole)]
        rows.append((f"0.98 to {after:.2f}", *(f"{time - calm:,.0f}" if time < inf else "later" for time in times)))
    table(f"Median audit verdicts to a demotion after a fall (bar 0.95, after {calm} at 0.98), {candidates} candidates",
        ("fall", "e-detector, 1 false in 1,000", "in 10,000 (ours)", "bound on the whole history"), rows)  # fmt: skip
    rows = []
    for mean in (0.95, 0.96, 0.97, 0.98):
        random, alarms = np.random.default_rng(seed), 0
        for _ in range(max(1, candidates // 50)):
            alarms += ever(log_detector(two_values(random, (50, 10_000), mean), BAR), log(10_000))
        tried = max(1, candidates // 50) * 50
        rows.append((f"{mean:.2f}", percent(alarms, tried)))
    table("Candidates demoted within 10,000 audit verdicts without any fall", ("true mean", "demoted"), rows)


def coverage(seed: int, candidates: int) -> None:
    """Whether the true mean ever leaves the bounds, and the true coverage its interval."""
    goal, rows = -log(ALPHA), []
    for mean in (0.5, 0.9, 0.98):
        random, low, high = np.random.default_rng(seed), 0, 0
        for n in chunks(candidates):
            x = two_values(random, (n, HORIZON), mean)
            low += ever(log_wealth(x, mean), goal)
            high += ever(log_wealth(1 - x, 1 - mean), goal)
        rows.append((f"{mean:.2f}", percent(low, candidates), percent(high, candidates), f"{ALPHA:.1%} each"))
    table(f"Runs in which the true mean ever leaves its bounds, of {candidates:,} with {HORIZON:,} looks",
        ("true mean", "below the lower", "above the upper", "at most"), rows)  # fmt: skip
    rows, n = [], np.arange(1, HORIZON + 1)
    for share in (0.3, 0.8, 0.97):
        counts = (np.random.default_rng(seed).random((candidates, HORIZON)) < share).cumsum(axis=1, dtype=np.int32)
        within = np.array([counts_that_hold(share, look) for look in range(1, HORIZON + 1)])
        left = (counts < within[:, 0]) | (counts > within[:, 1])
        exact = (counts < binom.ppf(ALPHA / 2, n, share)) | (counts > binom.isf(ALPHA / 2, n, share))
        rows.append((
            f"{share:.2f}", *(percent(int(found.any(axis=1).sum()), candidates) for found in (left, exact)),
            f"{ALPHA:.1%}", f"{width(500, share):.3f}", f"{np.ptp(binom.interval(1 - ALPHA, 500, share)) / 500:.3f}",
        ))  # fmt: skip
    table(f"Runs in which the true coverage ever leaves its interval, of {candidates:,} with {HORIZON:,} looks",
        ("true coverage", "ours", "Clopper & Pearson's, made for one look", "at most", "width of ours at 500 exchanges",
         "of an exact one"), rows)  # fmt: skip


def counts_that_hold(share: float, n: int) -> tuple[int, int]:
    """The fewest and the most covered exchanges of n whose interval has the true share in it."""
    counts = range(n + 1)
    fewest = bisect_left(counts, True, key=lambda k: coverage_interval(k, n, ALPHA)[1] >= share)
    return fewest, bisect_left(counts, True, key=lambda k: coverage_interval(k, n, ALPHA)[0] > share) - 1


def width(n: int, share: float) -> float:
    """Of the interval that the expected count gives."""
    low, high = coverage_interval(round(n * share), n, ALPHA)
    return high - low


def percent(count: int, of: int) -> str:
    """The share with its standard error."""
    share = count / of
    return f"{share:.2%} ± {sqrt(max(share * (1 - share), 1 / of) / of):.2%}"


def table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print one Markdown table."""
    lines = [head, ("---", *["--:"] * (len(head) - 1)), *rows]
    print(f"\n{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    few = max(CHUNK, given.candidates // 10)
    false_promotions(given.seed, given.candidates)
    families(given.seed, max(CHUNK, given.candidates // 5))
    naive(given.seed, given.candidates)
    power(given.seed, few)
    power_of_pairs(given.seed, few)
    demotions(given.seed, few // 5)
    coverage(given.seed, few * 2)


if __name__ == "__main__":
    main()
