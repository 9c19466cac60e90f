"""Owns how trainings spend of a task's learning budget. Must not know how that is kept: `router.learning` does."""

import contextlib
from collections.abc import Iterator
from decimal import Decimal

from distiller.settings import Settings
from distiller.task_money import training_usd
from proxy.errors import Refused
from proxy.log import Log
from router.learning import Learning


def learning_of(log: Log, settings: Settings) -> Learning:
    """The budgets, as all processes of this home see them."""
    return Learning(log, settings.router, settings.learning_lock)


@contextlib.contextmanager
def training_paid(log: Log, settings: Settings, task: str) -> Iterator[None]:
    """Set aside what a training takes, until its hours are charged; Refused where the month has no room for it.

    Expected are the hours that earlier ones took, before the first one those it may take at most: without a limit, all
    that is left.
    """
    learning = learning_of(log, settings)
    account = learning.account(task)
    if account is None:
        yield
        return
    earlier = training_usd(log, task, settings.money).value
    hour, hours = settings.money.training_hour, settings.distiller.hours
    first = account.left if hour and not hours else Decimal(repr(hours * hour))
    wanted = first if earlier is None else Decimal(repr(earlier))
    with learning.up_to(task, wanted, wanted) as granted:
        if granted < wanted or (hour and not account.left):
            raise Refused(
                f"{task} is not trained this month: of its learning budget of ${account.budget:,.2f} "
                f"${account.left:,.4f} are left, and a training takes ${wanted:,.4f}; raise "
                f"[router.tasks.{task!r}] learning_budget"
            )
        yield
