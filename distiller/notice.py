"""Owns what a notice is: one thing that a person should know, in words and for machines.

It names tasks, models and keys, and counts; nothing that was recorded is in it, and no text of an error, which might
quote some.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

TEST = "test"
LASTING = ("certificate", "budget_80", "budget_100", "unpriced", "dropped", "sunset", "student_down")
"""The events that are states; all others are moments."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An event of `EVENTS`; `key` tells this one from others of its kind: with the same key it is the same."""

    event: str
    key: str
    text: str
    at: datetime
    facts: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> bytes:
        """As JSON."""
        said = {"event": self.event, "key": self.key, "at": self.at.isoformat(), "text": self.text}
        return json.dumps(said | {"facts": dict(self.facts)}).encode()


def trial(now: datetime) -> Notice:
    """One that only shows that notices arrive."""
    return Notice(TEST, now.isoformat(), "This is a test of Stillroom's notices: nothing happened.", now)
