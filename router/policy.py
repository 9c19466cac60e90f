"""Owns the policy: which task is answered by which candidate right now, as one small file every worker watches.

Must not know why a stage was reached; `router.lifecycle` does. The file is replaced whole, so a reader sees one policy
or the next, never half of one. A policy that cannot be read means the teacher answers.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy.files import put
from proxy.watched import Watched
from router.calibration import Knots

_log = logging.getLogger("stillroom.policy")

# How the reason of a decision ends where the conversation stays with the teacher for good: others tell it apart.
HELD_BACK = "held back"


@dataclass(frozen=True, slots=True)
class Route:
    """How one task is answered by its candidate; `share` of conversations in [0, 1], `timeout` in seconds.

    `at_once` is how many requests a worker may have with the candidate; an engine's queue would delay all of them.

    `threshold` is the least confidence that was certified; None certifies every well-formed answer. It is one on the
    scale of `calibration`, which turns what the tokens' probabilities say into the probability of a good verdict.
    `held_back` is the share of conversations that stays with the teacher, whatever `share` is. `static` and
    `extra_lines` are what the student knows of the task's instructions (`router.prompt`).

    With a `model` the candidate is a hosted one: `url` is then the base of its API, `/v1` included, and `key_env` names
    the variable with its key, which itself is nowhere but in the environment. It has no `max_tokens` of its own.

    With `first_tokens` the confidence is that of so many tokens, and the only thing an answer is checked for: what
    follows may then flow. Who streams waits `hold` seconds for them. 0: the whole answer is held and checked.
    """

    candidate: str
    url: str
    stage: str
    share: float
    held_back: float
    evaluator: str
    threshold: float | None
    labels: tuple[str, ...]
    static: tuple[str, ...]
    extra_lines: int | None
    max_tokens: int | None
    timeout: float
    at_once: int
    calibration: Knots = ()
    model: str = ""
    key_env: str = ""
    first_tokens: int = 0
    hold: float = 2.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Routes by task; empty sends everything to the teacher."""

    routes: Mapping[str, Route] = field(default_factory=dict)


def save_policy(policy: Policy, path: Path) -> None:
    """Replace the file, atomically; unchanged content is left alone so that watchers do not reload."""
    text = json.dumps({"routes": {task: dataclasses.asdict(route) for task, route in policy.routes.items()}}, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    put(path, text)


def load_policy(path: Path) -> Policy:
    """Read the file; a missing or damaged one is the empty policy: the teacher answers."""
    try:
        routes = json.loads(path.read_text(encoding="utf-8"))["routes"]
        return Policy({task: _route(fields) for task, fields in routes.items()})
    except FileNotFoundError:
        return Policy()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.error("policy %s is damaged (%s): the teacher answers everything", path.name, error)
        return Policy()


class PolicyWatcher(Watched[Policy]):
    """Keeps the newest policy in memory; reading it costs an attribute."""

    def __init__(self, path: Path, seconds: float = 0.5) -> None:
        """Load once; `watching` then looks every `seconds`."""
        super().__init__(path, load_policy, seconds)

    @property
    def policy(self) -> Policy:
        """The newest."""
        return self.value


def _route(fields: dict[str, Any]) -> Route:
    knots = tuple((sure, probability) for sure, probability in fields.get("calibration", ()))
    lists = {"labels": tuple(fields["labels"]), "static": tuple(fields["static"]), "calibration": knots}
    return Route(**{**fields, **lists})
