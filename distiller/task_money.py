"""Owns what the log says of a task's money and pace: queries only. US dollars. What is unpriced is unknown, never 0."""

from distiller.payback import Figure, Prices
from distiller.settings import Settings
from proxy.derive import CHAT
from proxy.log import Log
from router.settings import MoneySettings

WINDOW = 28  # days before the newest exchange that the pace is taken from
_DOLLARS = "TRY_CAST(usd AS DECIMAL(38, 15))"
# As the ledger has it: an unpriced exchange says nothing about the others.
_TEACHER = f"""
SELECT CAST(sum({_DOLLARS}) AS DOUBLE) / count({_DOLLARS}), count({_DOLLARS}), count(*) FROM spend
WHERE kind = 'teacher' AND task = $task AND path = $path
"""
_PACE = """
WITH own AS (SELECT ts FROM exchanges WHERE task = $task AND path = $path AND served_by <> 'stillroom')
SELECT count(*), date_diff('second', min(ts), max(ts)) / 86400
FROM own WHERE ts >= (SELECT max(ts) FROM own) - to_days(CAST($days AS INTEGER))
"""
_TRAINING = """
SELECT avg(quantity) FILTER (task = $task), count(*) FILTER (task = $task), avg(quantity), count(*)
FROM spend WHERE kind = 'training' AND unit = 'hour'
"""


def teacher_usd(log: Log, task: str) -> Figure:
    """What the teacher is paid for one exchange of the task, on average over those with a price."""
    ((mean, priced, all_of_them),) = log.query(_TEACHER, {"task": task, "path": CHAT})
    if not priced:
        why = f"none of {all_of_them:,} exchanges has a price: set [money.prices]" if all_of_them else "nothing charged"
        return Figure(None, f"unpriced: {why}")
    unpriced = f", {all_of_them - priced:,} more are unpriced" if priced < all_of_them else ""
    return Figure(mean, f"the ledger: {priced:,} exchanges{unpriced}")


def per_day(log: Log, task: str) -> Figure:
    """Exchanges of the task a day, whoever answered; unknown from less than a day."""
    ((count, days),) = log.query(_PACE, {"task": task, "path": CHAT, "days": WINDOW})
    if not count or days < 1:
        return Figure(None, f"{count:,} exchanges within less than a day say nothing of the days to come")
    return Figure((count - 1) / days, f"{count:,} exchanges in {days:.1f} days, the newest {WINDOW} at most")


def training_usd(log: Log, task: str, money: MoneySettings) -> Figure:
    """What one training takes, from the hours that earlier ones took, of this task where there are any."""
    ((own, times, whole, all_times),) = log.query(_TRAINING, {"task": task})
    if not all_times:
        return Figure(None, "nothing was trained yet, so nobody knows how long it takes here")
    hours, basis = (own, f"{times} trainings of it") if times else (whole, f"{all_times} trainings of other tasks")
    return Figure(hours * money.training_hour, f"{hours:.2f} h by {basis}, at ${money.training_hour:,.2f} an hour")


def prices(teacher: Figure, training: Figure, settings: Settings) -> Prices:
    """What is known beforehand, with what is declared."""
    router = settings.router
    return Prices(teacher.value, training.value, settings.money.engine_hour, router.audit_share, router.holdback_share)
