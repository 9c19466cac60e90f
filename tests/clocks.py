"""A clock that tests set: ours is handed in, and APScheduler's is put in the place of the one it reads."""

from dataclasses import dataclass
from datetime import datetime, tzinfo

import apscheduler.schedulers.base
import pytest

import distiller.clockwork


@dataclass
class Clock:
    now: datetime

    def __call__(self) -> datetime:
        return self.now


def set_clock(monkeypatch: pytest.MonkeyPatch, now: datetime) -> Clock:
    """A clock that APScheduler reads from now on."""
    clock = Clock(now)

    class Read(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return clock.now.astimezone(tz)

    monkeypatch.setattr(apscheduler.schedulers.base, "datetime", Read)
    monkeypatch.setattr(distiller.clockwork, "datetime", Read)
    return clock
