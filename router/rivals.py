"""Owns the rivals of the student: hosted models declared in settings, their registration, and what their answers cost.

A rival is a candidate like any other, with the same shadow, test and certificate; it is only somebody else's model,
so that each of its answers costs money. Must not ask it anything (`router.candidates` does), nor know who is cheaper
(`router.bids` does). Only OpenAI-compatible servers are spoken to.
"""

import hashlib
import json
import logging
import os

import duckdb

from proxy.derive import CHAT
from proxy.errors import BadInput
from proxy.log import Log
from router.bids import passes
from router.candidates import CUT_OFF, MALFORMED
from router.evaluators import JUDGE, evaluator_for, known_labels
from router.registry import CANARY, HOSTED, LIVE, RETIRED, SHADOW, Candidate, Watch, move, register
from router.said import from_log
from router.settings import RivalSettings, RouterSettings, TaskSettings

_log = logging.getLogger("stillroom.rivals")

ANSWERS = 200  # of the teacher, before a task's evaluator and labels can be read from them
READ = 2000  # of them at most, the latest
# How fallbacks begin whose answer the provider is paid for all the same, or may be.
_PAID_FOR = (MALFORMED, CUT_OFF, "answer is longer", "candidate timed out", "candidate's answer is not")
_ANSWERS = """
SELECT ts, answer, tool_calls FROM exchanges
WHERE path = $path AND task = $task AND served_by = 'teacher' AND status = 200 AND NOT partial
  AND (answer IS NOT NULL OR tool_calls IS NOT NULL)
ORDER BY id DESC LIMIT $read
"""
# The price function is the one that ingest registers with the log's connection.
_ANSWERED = f"""
INSERT INTO spend BY NAME
SELECT e.id, now() AS ts, e.task, 'candidate' AS kind, c.id AS model, e.id AS exchange, 1.0 AS quantity,
       'exchange' AS unit, price(c.card ->> 'model', e.prompt_tokens, e.cached_tokens, e.completion_tokens) AS usd
FROM exchanges e JOIN candidates c ON c.id = e.served_by
WHERE c.kind = '{HOSTED}' AND NOT EXISTS (SELECT 1 FROM spend s WHERE s.kind = 'candidate' AND s.exchange = e.id)
"""
# An exchange that fell back does not say from whom: from who answered the task at that time.
_FELL_BACK = f"""
INSERT INTO spend BY NAME
WITH stood AS (
  SELECT t.task, t.candidate, t.stage_to, t.ts AS since,
         lead(t.ts) OVER (PARTITION BY t.candidate ORDER BY t.id) AS until
  FROM transitions t JOIN candidates c ON c.id = t.candidate WHERE c.kind = '{HOSTED}'
)
SELECT e.id, now() AS ts, e.task, 'fallback' AS kind, s.candidate AS model, e.id AS exchange, 1.0 AS quantity,
       'exchange' AS unit, CAST(NULL AS DOUBLE) AS usd
FROM stood s JOIN exchanges e ON e.task = s.task AND e.ts >= s.since AND (s.until IS NULL OR e.ts < s.until)
WHERE s.stage_to IN ('{CANARY}', '{LIVE}') AND e.fallback IS NOT NULL
  AND list_bool_or([starts_with(e.fallback, one) FOR one IN $paid_for])
  AND NOT EXISTS (SELECT 1 FROM spend x WHERE x.kind = 'fallback' AND x.exchange = e.id)
"""


class Rivals:
    """The declared rivals of one log; `look` is for every round of the controller."""

    def __init__(self, log: Log, settings: RouterSettings, judged: bool) -> None:
        """`judged` is whether there is a judge for free text. BadInput where the variable of a key is not set."""
        for name, rival in settings.rivals.items():
            if rival.key_env and not os.environ.get(rival.key_env):
                raise BadInput(
                    f"router.rivals.{name}.key_env names {rival.key_env}, which is not set: export its key there"
                )
        self._log, self._settings, self._judged = log, settings, judged
        self._watch = Watch(log)
        self._refused: set[str] = set()

    def look(self) -> bool:
        """Register what is declared and can be, retire what no longer is, and charge what rivals answered.

        True where one was retired, so that the policy has to be written again.
        """
        known = {candidate.id: candidate for candidate in self._watch.now()}
        if not self._settings.rivals and all(one.kind != HOSTED for one in known.values()):
            return False
        for name, rival in self._settings.rivals.items():
            for task in rival.tasks:
                if identity(name, task, rival) not in {*known, *self._refused}:
                    self._register(name, task, rival)
        gone = [
            one for one in known.values() if one.kind == HOSTED and one.stage != RETIRED and not self._declared(one)
        ]
        for candidate in gone:
            move(self._log, candidate, RETIRED, "no longer declared in the settings")
        charge_answers(self._log)
        return bool(gone)

    def _declared(self, candidate: Candidate) -> bool:
        rival = self._settings.rivals.get(candidate.card["rival"])
        return rival is not None and candidate.task in rival.tasks

    def _register(self, name: str, task: str, rival: RivalSettings) -> None:
        try:
            if enrol(self._log, name, task, rival, self._settings, self._judged):
                _log.warning("rival %s of task %s is in shadow now", name, task)
        except BadInput as error:  # Such as aliases for an evaluator that the answers do not fit; others must not wait.
            self._refused.add(identity(name, task, rival))
            _log.error("rival %s of task %s is not registered: %s", name, task, error)


def identity(name: str, task: str, rival: RivalSettings) -> str:
    """The candidate's id: the same declaration is the same candidate, any other one is new."""
    declared = json.dumps([task, rival.model, rival.url, rival.key_env])
    return f"rival-{name}-{hashlib.sha256(declared.encode()).hexdigest()[:12]}"


def enrol(log: Log, name: str, task: str, rival: RivalSettings, settings: RouterSettings, judged: bool) -> bool:
    """Register a rival at stage shadow; False where it is known, or the task has not enough answers yet to read.

    It is compared on exchanges after those only: its evaluator and labels were chosen before it was seen to answer.
    """
    rows = log.query(_ANSWERS, {"path": CHAT, "task": task, "read": READ})
    if len(rows) < ANSWERS:
        return False
    declared = settings.tasks.get(task, TaskSettings())
    said = [from_log(answer, calls) for _, answer, calls in rows]
    chosen = evaluator_for(declared, said)
    if chosen == "tools":
        raise BadInput("the task calls tools, and rivals answer in text: drop it from the rival's tasks")
    if chosen == "exact" and judged:
        chosen = JUDGE
    texts = {one.plain for one in said if one.plain is not None}
    card = {
        "rival": name, "model": rival.model, "base": rival.model, "url": rival.url.rstrip("/"),
        "key_env": rival.key_env, "labels": list(known_labels(texts, declared.aliases)) if chosen == "label" else [],
        "static": [], "max_tokens": None, "aliases": dict(declared.aliases), "sets": list(declared.sets),
        "data_until": max(row[0] for row in rows).isoformat(),
    }  # fmt: skip
    return register(
        log, candidate=identity(name, task, rival), task=task, kind=HOSTED, evaluator=chosen, threshold=None,
        margin=settings.margin, alpha=settings.alpha, snapshot=log.snapshot(), bundle="", card=card,
    )  # fmt: skip


def charge_answers(log: Log) -> None:
    """Charge what rivals answered to clients, once each; what fell back is unpriced, as nobody counted it."""

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(_ANSWERED)
        connection.execute(_FELL_BACK, {"paid_for": list(_PAID_FOR)})

    log.transaction(work)


def settled(log: Log, candidate: Candidate, floor: float) -> bool:
    """Whether a rival in shadow passes already: asking it more would be paid for in vain."""
    return candidate.kind == HOSTED and candidate.stage == SHADOW and passes(log, candidate, floor)
