"""Owns when a student pays for itself: break-even rate and payback. US dollars. Must not know where figures come from.

Of an exchange the teacher answers today, a student that covers the share `coverage` of them avoids

    avoided = coverage * (1 - audit_share) * (1 - holdback_share) * teacher_usd

as audits pay the teacher again and the holdback stays with it. The engine costs 24 * engine_hour a day, idle included;
a training is spread over AMORTISED days, after which the student is expected to be trained anew. So, a day,

    break-even rate = (24 * engine_hour + training_usd / AMORTISED) / avoided         exchanges a day
    payback = training_usd / (7 * (rate * avoided - 24 * engine_hour))                weeks

Shadow comparisons, the teacher's yardsticks and a judge are not in it: they end with the proof.
"""

from dataclasses import dataclass

AMORTISED = 30


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with an interval where there is one, and in words what it rests on; no value: unknown, or `never`.

    An end of an interval is None where it is never reached.
    """

    value: float | None
    basis: str
    low: float | None = None
    high: float | None = None
    never: bool = False


@dataclass(frozen=True, slots=True)
class Prices:
    """What is known beforehand: of one exchange at the teacher, of one training, of an engine's hour."""

    teacher_usd: float | None
    training_usd: float | None
    engine_hour: float
    audit_share: float
    holdback_share: float

    def avoided(self, coverage: float) -> float | None:
        """US dollars an exchange; None where the teacher is unpriced."""
        if self.teacher_usd is None:
            return None
        return coverage * (1 - self.audit_share) * (1 - self.holdback_share) * self.teacher_usd

    @property
    def unknown(self) -> str:
        """What is missing to reckon with money, in words; empty where nothing is."""
        if self.teacher_usd is None:
            return "the teacher is unpriced: set [money.prices]"
        return "" if self.training_usd is not None else "what a training takes is not known before the first one"


def break_even(coverage: Figure, prices: Prices) -> Figure:
    """Exchanges a day at which a student costs as much as it avoids; its interval is that of the coverage."""
    if coverage.value is None or prices.unknown:
        return Figure(None, prices.unknown or f"the coverage is not known: {coverage.basis}")
    cost = 24 * prices.engine_hour + (prices.training_usd or 0.0) / AMORTISED

    def rate(share: float | None) -> float | None:
        avoided = prices.avoided(share or 0.0)
        return cost / avoided if avoided else None

    if rate(coverage.value) is None:
        return Figure(None, "nothing is avoided", never=True)
    basis = (
        f"${24 * prices.engine_hour:,.2f} a day for the engine and ${prices.training_usd or 0.0:,.2f} for a training "
        f"spread over {AMORTISED} days, against ${prices.avoided(coverage.value):,.6f} avoided an exchange"
    )
    return Figure(rate(coverage.value), basis, rate(coverage.high), rate(coverage.low))


def payback(coverage: Figure, per_day: Figure, prices: Prices) -> Figure:
    """Weeks until a training is earned back at today's rate; no value where that is unknown, or never happens."""
    if coverage.value is None or prices.unknown:
        return Figure(None, prices.unknown or f"the coverage is not known: {coverage.basis}")
    if per_day.value is None:
        return Figure(None, f"the rate is not known: {per_day.basis}")
    training, rate = prices.training_usd or 0.0, per_day.value

    def weeks(share: float | None) -> float | None:
        net = rate * (prices.avoided(share or 0.0) or 0.0) - 24 * prices.engine_hour
        return training / (7 * net) if net > 0 else None

    if weeks(coverage.value) is None:
        spared = rate * (prices.avoided(coverage.value) or 0.0)
        told = f"at this rate ${spared:,.2f} a day are avoided, and the engine costs ${24 * prices.engine_hour:,.2f}"
        return Figure(None, told, never=True)
    basis = f"a training of ${training:,.2f}, at {rate:,.1f} exchanges a day, engine idle hours included"
    return Figure(weeks(coverage.value), basis, weeks(coverage.high), weeks(coverage.low))
