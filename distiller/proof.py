"""Owns the proof of an exported artefact: its engine is asked what the student was, and scored as the student was.

Must not know how the artefact was made, nor which engine serves it. What the student said to its holdout, and what that
was worth, stands in the bundle; the same rows are asked again here, as clients would ask.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from distiller.bundle import Bundle
from distiller.examples import render_prompt
from distiller.scoring import Answered, Score
from proxy.errors import Refused, Unavailable
from proxy.log import Log
from router.calibration import Calibration, calibrate
from router.confidence import confidence, first
from router.evaluators import well_formed
from router.prompt import student_messages
from router.said import Said

Messages = Sequence[Mapping[str, Any]]

_ANSWER_S = 300.0
_AT_ONCE = 500  # ids a query
_IDS = "SELECT id, request FROM exchanges WHERE id IN ({})"


@dataclass(frozen=True, slots=True)
class Case:
    """A holdout row that is still in the log: the request's body, the teacher's answer, the student's, its verdict.

    `text` is None where the student's answer did not end.
    """

    exchange: str
    request: Mapping[str, Any]
    teacher: str
    text: str | None
    verdict: float


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer over the wire; `logprobs` in nats, end of turn included.

    Milliseconds as the engine measured them: `prompt_tokens` were read in `prompt_ms`, `tokens` written in `ms`.
    """

    text: str
    finished: bool
    logprobs: tuple[float, ...]
    prompt_tokens: int
    prompt_ms: float
    tokens: int
    ms: float


@dataclass(frozen=True, slots=True)
class Asking:
    """An engine that runs and has the artefact.

    `ask` sends the messages of a recorded request. `read` gives the token ids that the engine makes of messages as a
    student sees them. `peak` is the memory taken by now at its largest, in bytes, None where the system does not tell.
    """

    ask: Callable[[Messages], Reply]
    read: Callable[[Messages], Sequence[int]]
    peak: Callable[[], int | None]


Serving = Callable[[], AbstractContextManager[Asking]]
"""Starts an engine with the artefact, and stops it; Unavailable where it does not run, with what it said last."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What an artefact showed; scores are means of verdicts in [0, 1] over the same rows.

    `alike` rows got the student's very words, `read_alike` the student's very tokens as their prompt; `gone` holdout
    rows are in the log no more. Speeds are tokens a second, `peak_bytes` the engine's processes at their largest, None
    where the system does not tell.
    """

    rows: int
    gone: int
    student: float
    score: float
    better: int
    worse: int
    alike: int
    read_alike: int
    golden: int
    golden_alike: int
    prompt_speed: float
    speed: float
    peak_bytes: int | None
    calibration: Calibration

    @property
    def kept(self) -> float:
        """The share of the student's score that the artefact keeps; 0 where there is none to keep."""
        return self.score / self.student if self.student else 0.0


def cases(log: Log, bundle: Bundle) -> tuple[list[Case], int]:
    """The student's holdout as far as it is still in the log, and how many rows of it are gone."""
    lines = [json.loads(line) for line in (bundle.path / "holdout.jsonl").read_text(encoding="utf-8").splitlines()]
    requests: dict[str, str] = {}
    for start in range(0, len(lines), _AT_ONCE):
        ids = [line["exchange"] for line in lines[start : start + _AT_ONCE]]
        requests |= dict(log.query(_IDS.format(", ".join("?" * len(ids))), ids))
    found = [
        Case(
            line["exchange"], json.loads(requests[line["exchange"]]), line["teacher"],
            line["text"] if line["finished"] else None, line["verdict"],
        )
        for line in lines
        if line["exchange"] in requests
    ]  # fmt: skip
    return found, len(lines) - len(found)


def prove(
    serving: Serving,
    bundle: Bundle,
    rows: Sequence[Case],
    gone: int,
    score: Score,
    tokenizer: Any,
    on_progress: Callable[[int, int], None],
) -> Proof:
    """Ask the engine that `serving` starts the golden prompts and all `rows`; `tokenizer` is the student's own.

    Refused without rows, Unavailable where the engine does not run or answer.
    """
    if not rows:
        raise Refused(f"none of the {gone} holdout exchanges of {bundle.id} is in the log: distill the task again")
    card = bundle.manifest["card"]
    golden = [(one["messages"], one["text"]) for one in card["golden"]]
    asked = [messages for messages, _ in golden] + [row.request["messages"] for row in rows]
    with serving() as engine:
        replies = []
        for messages in asked:
            replies.append(engine.ask(messages))
            on_progress(len(replies), len(asked))
        read = [_read_alike(engine, tokenizer, row, frozenset(card["static"])) for row in rows]
        peak = engine.peak()
    first_said, said = replies[: len(golden)], replies[len(golden) :]
    verdicts = _verdicts(rows, said, score)
    return Proof(
        rows=len(rows),
        gone=gone,
        student=sum(row.verdict for row in rows) / len(rows),
        score=sum(verdicts) / len(rows),
        better=sum(now > row.verdict for row, now in zip(rows, verdicts, strict=True)),
        worse=sum(now < row.verdict for row, now in zip(rows, verdicts, strict=True)),
        alike=sum(_same(row, one) for row, one in zip(rows, said, strict=True)),
        read_alike=sum(read),
        golden=len(golden),
        golden_alike=sum(one.text == text for one, (_, text) in zip(first_said, golden, strict=True)),
        prompt_speed=_speed([(one.prompt_tokens, one.prompt_ms) for one in replies]),
        speed=_speed([(one.tokens, one.ms) for one in replies]),
        peak_bytes=peak,
        calibration=_calibrated(bundle, said, verdicts),
    )


def post(url: str, body: Mapping[str, Any], engine: str, advice: str) -> Any:
    """What `engine` answers, from JSON; Unavailable with what it said, and `advice` where it declined."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode(errors="replace")[:300]
        raise Unavailable(f"{engine} answered {error.code}: {said}; {advice}") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"{engine} does not answer: {error}") from None


def _same(row: Case, reply: Reply) -> bool:
    return reply.finished and reply.text == row.text


def _verdicts(rows: Sequence[Case], said: Sequence[Reply], score: Score) -> list[float]:
    """The same words are worth the same, and nobody is asked again; an answer that did not end is wrong."""
    verdicts = {place: row.verdict for place, row in enumerate(rows) if _same(row, said[place])}
    open_ = [place for place, one in enumerate(said) if one.finished and place not in verdicts]
    asked = [
        Answered(rows[place].exchange, rows[place].request, rows[place].teacher, said[place].text) for place in open_
    ]
    verdicts |= zip(open_, score(asked), strict=True)
    return [verdicts.get(place, 0.0) for place in range(len(rows))]


def _calibrated(bundle: Bundle, said: Sequence[Reply], verdicts: Sequence[float]) -> Calibration:
    """As the student's own: over the answers that may go out at all, or over all where the first tokens decide."""
    card, evaluator = bundle.manifest["card"], bundle.manifest["evaluator"]
    tokens, labels = card.get("first_tokens", 0), frozenset(card["labels"])
    fit = [bool(tokens) or (one.finished and well_formed(evaluator, Said(one.text), labels)) for one in said]
    pairs = [
        (confidence(first(one.logprobs, tokens)), verdict)
        for one, verdict, out in zip(said, verdicts, fit, strict=True)
        if out
    ]
    return calibrate([sure for sure, _ in pairs], [verdict for _, verdict in pairs])


def _speed(parts: Sequence[tuple[int, float]]) -> float:
    tokens, milliseconds = (sum(column) for column in zip(*parts, strict=True))
    return 1000 * tokens / milliseconds if milliseconds else 0.0


def _read_alike(engine: Asking, tokenizer: Any, row: Case, static: frozenset[str]) -> bool:
    """Whether the engine reads a request as the tokens that the student read in training."""
    messages = student_messages(row.request["messages"], static)
    ours = list(tokenizer(render_prompt(tokenizer, messages), add_special_tokens=False)["input_ids"])
    return list(engine.read(messages)) == ours
