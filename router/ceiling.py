"""Owns the ceiling: asking the teacher the same again, and how well it then agrees with itself.

It must not know what a candidate said: which exchanges are asked again is drawn by their id, so that yardsticks are
measured without regard to verdicts, as `router.parity` needs it.
A teacher at temperature 0, or with a fixed seed, mostly repeats itself: its yardsticks are then near 1 and the claim is
plain agreement. A provider's prompt cache makes asking again cheaper, but does not store answers; a cache of answers
between Stillroom and the teacher does, and makes the ceiling look like 1.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from proxy.derive import CHAT, Derived, derive
from proxy.log import Log
from proxy.relay import Upstream
from proxy.sunset import GONE, is_gone
from proxy.teachers import Teachers
from router.registry import Candidate

_DRAWN = """
SELECT id FROM (SELECT unnest(CAST($ids AS VARCHAR[])) AS id)
WHERE hash('ceiling' || id) / 18446744073709551615 < $share
"""
# What an earlier candidate paid for is as good where answers were scored alike: it says nothing of either candidate.
_MEASURED = """
SELECT v.exchange, arg_min(v.yardstick, v.id), arg_min(v.yardstick_answer, v.id)
FROM verdicts v JOIN candidates c ON c.id = v.candidate
WHERE v.yardstick IS NOT NULL AND list_contains($ids, v.exchange) AND c.evaluator = $evaluator
  AND (c.card -> 'aliases', c.card -> 'sets') IS NOT DISTINCT FROM
      (CAST($card AS JSON) -> 'aliases', CAST($card AS JSON) -> 'sets')
GROUP BY v.exchange
"""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Whom to ask again, each exchange's own teacher, on which share of the exchanges."""

    teachers: Teachers
    share: float
    ended: Collection[str] = ()
    """The usual teacher's models that nobody answers for any more: their yardsticks are those there are."""

    def of(self, teacher: str | None, model: object) -> Upstream | None:
        """Whom to ask about an exchange of this teacher and model; None where there is nobody."""
        return None if teacher is None and model in self.ended else self.teachers.of(teacher)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """How the teacher agreed with its recorded answer, in [0, 1], and what it said."""

    agreement: float
    answer: str | None


def drawn(log: Log, exchanges: Sequence[str], share: float) -> set[str]:
    """Those of the exchanges that are asked again: always the same, and the more the larger the share."""
    return {row[0] for row in log.query(_DRAWN, {"ids": list(exchanges), "share": share})}


def measured(log: Log, exchanges: Sequence[str], candidate: Candidate) -> dict[str, Yardstick]:
    """Yardsticks that earlier candidates' verdicts have already, by the evaluator as it is declared for this one."""
    asked = {"ids": list(exchanges), "evaluator": candidate.evaluator, "card": json.dumps(candidate.card)}
    rows = log.query(_MEASURED, asked)
    return {exchange: Yardstick(agreement, answer) for exchange, agreement, answer in rows}


async def teacher_answer(teacher: Upstream, request: str) -> tuple[int, Derived]:
    """What the teacher says now, a refusal too, as it was paid for; no finish reason where it gave no answer.

    The status is GONE where it says that it has no such model.
    """
    body = {key: value for key, value in json.loads(request).items() if key not in ("stream", "stream_options")}
    headers = [(b"content-type", b"application/json")]
    try:
        response = await teacher.forward("POST", CHAT, headers, json.dumps(body).encode())
        text = b"".join([piece async for piece in response.pieces()])
        response.close()
        status = GONE if is_gone(response.status, text) else response.status
    except OSError:
        status, text = 503, b""
    return status, derive(CHAT, None, request, status, False, text.decode("utf-8", "replace"))
