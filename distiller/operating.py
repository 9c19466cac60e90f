"""Owns what an operator does about a task, as the command line and the dashboard both do it: log first, then policy.

The policy is rewritten at once, so that every worker follows within two seconds. Must not ask or print.
"""

import json
from functools import partial

from distiller.settings import Settings
from proxy.log import Log
from router.lifecycle import promote, publish, rollback
from router.policy import load_policy
from router.registry import Candidate
from router.signing import signed


def promoted(log: Log, settings: Settings, task: str, named: str = "") -> Candidate:
    """The task's newest candidate, or the `named` one, one step on; Refused where `router.lifecycle.promote` is."""
    sign = partial(signed, key_file=settings.certificate_key)
    candidate = promote(log, task, settings.router, sign, named)
    republish(log, settings)
    return candidate


def rolled_back(log: Log, settings: Settings, task: str, reason: str) -> list[Candidate]:
    """The task is the teacher's again; the candidates that answered it until then."""
    moved = rollback(log, task, reason)
    republish(log, settings)
    return moved


def republish(log: Log, settings: Settings) -> None:
    """Rewrite the policy at once; what was served before and is still allowed keeps its place."""
    served = {route.candidate: route.url for route in load_policy(settings.policy).routes.values()} | ready(settings)
    publish(log, settings.router, served, settings.policy)


def ready(settings: Settings) -> dict[str, str]:
    """The students that engines have loaded and checked, with where each can be asked, as the controller last said."""
    served: dict[str, str] = {}
    for place in (settings.engine_state, *settings.more_engine_states, settings.small_state):
        if place.exists():
            state = json.loads(place.read_text())
            served |= dict.fromkeys(state["ready"], state["url"]) if state["state"] == "up" else {}
    return served
