"""Owns the A/B of rationales: two students of the same rows, steps and seed, with and without, on rows neither saw.

Must not know where rationales come from, nor what is done with the outcome. The rows are a task's training rows: the
later ones judge. Where answers reason in a text of their own, verdicts are on everything but that text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from distiller.ab import Compared, compare
from distiller.curate import Recorded, split
from distiller.dataset import Dataset
from distiller.examples import Encoded, encode
from distiller.explained import BEFORE, NONE, SECOND, Lesson, contradicts, explained, reasoning, reasoning_keys, without
from distiller.generate import Generated, generate
from distiller.recipes import Report
from distiller.scoring import Answered, Score
from distiller.train import TrainSettings, train
from proxy.errors import Refused

RESULT = "ab_rationale.json"
ALPHA = 0.5
"""What answers count of the loss, the rest being that of rationales as a second task (Hsieh et al. 2023)."""
JUDGES = 0.2  # share of the training rows
FEWEST = 20  # rows that judge, and rationales to learn from


@dataclass(frozen=True, slots=True)
class Why:
    """The rationales of a task's rows, by exchange, that do not contradict their answer, and how many do.

    `keys` are those of JSON answers they stand under; none where the teacher was asked.
    """

    texts: Mapping[str, str]
    contradicting: frozenset[str]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """One A/B: students taught `how` and without rationales; `compared` has the one without first.

    `rows` both learned from, `rationales` of them only one did; `contradicting` were not used. `tokens` are those of an
    answer on average, without and with: what serving pays. `keep` says whether rationales paid.
    """

    how: str
    keys: tuple[str, ...]
    rows: int
    rationales: int
    contradicting: int
    steps: int
    tokens: tuple[float, float]
    compared: Compared
    keep: bool


def whys(data: Dataset, asked: Mapping[str, str]) -> Why:
    """The rationales of the training rows: those in the answers where these have any, else those that were `asked`."""
    keys = reasoning_keys([row.answer for row in data.train])
    texts = {row.exchange_id: reasoning(row.answer, keys) for row in data.train} if keys else asked
    answers = {row.exchange_id: without(row.answer, keys) for row in data.train}
    texts = {name: text for name, text in texts.items() if text and name in answers}
    wrong = {
        name for name, text in texts.items() if contradicts(text, answers[name], data.labels, data.declared.aliases)
    }
    return Why({name: text for name, text in texts.items() if name not in wrong}, frozenset(wrong), keys)


def trials(
    base: Path, data: Dataset, why: Why, settings: TrainSettings, score: Score, scratch: Path, on_progress: Report
) -> list[Trial]:
    """Every way of learning from these rationales against none, in `scratch`; Refused where there are too few.

    The students without are the same for all, so they are trained once. A judge is paid for each verdict.
    """
    # What contradicts itself is no lesson where it stands in the answer; what was asked for is left out alone.
    sound = [row for row in data.train if not why.keys or row.exchange_id not in why.contradicting]
    parts = split(sound, JUDGES)
    learned = sum(row.exchange_id in why.texts for row in parts.train)
    if len(parts.holdout) < FEWEST or learned < FEWEST:
        raise Refused(
            f"{learned} rationales to learn from and {len(parts.holdout)} rows to judge are too few for an A/B: "
            f"{FEWEST} are needed of each"
        )
    ways = (BEFORE, SECOND) if why.keys else (SECOND,)
    bench = _Bench(base, data, why, settings, score, scratch, on_progress)
    rows = bench.fitting(parts.train, ways)
    plain = bench.student(rows, parts.holdout, NONE, 0)
    return [bench.trial(rows, parts.holdout, how, plain) for how in ways]


@dataclass(frozen=True, slots=True)
class _Student:
    steps: int
    answers: Sequence[Generated]
    verdicts: Sequence[float]


@dataclass(frozen=True, slots=True)
class _Bench:
    base: Path
    data: Dataset
    why: Why
    settings: TrainSettings
    score: Score
    scratch: Path
    report: Report

    def trial(self, rows: Sequence[Recorded], judging: Sequence[Recorded], how: str, plain: _Student) -> Trial:
        told = self.student(rows, judging, how, plain.steps)
        sure = [[each.confidence for each in one.answers] for one in (plain, told)]
        compared = compare(plain.verdicts, told.verdicts, self.settings.seed, *sure)
        tokens = [sum(len(each.logprobs) for each in one.answers) / len(one.answers) for one in (plain, told)]
        return Trial(
            how=how,
            keys=self.why.keys,
            rows=len(rows),
            rationales=sum(row.exchange_id in self.why.texts for row in rows),
            contradicting=len(self.why.contradicting),
            steps=told.steps,
            tokens=(tokens[0], tokens[1]),
            compared=compared,
            keep=compared.better,
        )

    def fitting(self, rows: Sequence[Recorded], ways: Sequence[str]) -> list[Recorded]:
        """Those that are short enough whichever way they are taught: both students learn from the same."""
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        return [
            row
            for row in rows
            if all(
                len(_encode(tokenizer, lesson).input_ids) <= self.settings.max_tokens
                for how in ways
                for lesson in self._lessons([row], how)
            )
        ]

    def student(self, rows: Sequence[Recorded], judging: Sequence[Recorded], how: str, steps: int) -> _Student:
        """Trained for so many steps (0: as many as the settings' epochs take), and judged."""
        encoded, limit = self._encoded(rows, how)
        name = f"A/B of rationales, {how}"
        out = self.scratch / how
        trained = train(
            self.base, encoded, replace(self.settings, steps=steps), out, lambda i, n, _: self.report(name, i, n)
        )
        answers = generate(
            self.base, out, self.data.asked(judging), limit, self.settings.threads,
            lambda i, n: self.report(f"{name}, judged", i, n),
        )  # fmt: skip
        keys = self.why.keys
        given = [
            Answered(row.exchange_id, row.request, without(row.answer, keys), without(answer.text, keys))
            for row, answer in zip(judging, answers, strict=True)
            if answer.finished
        ]
        scored = iter(self.score(given))
        return _Student(trained.steps, answers, [next(scored) if one.finished else 0.0 for one in answers])

    def _lessons(self, rows: Sequence[Recorded], how: str) -> list[Lesson]:
        return explained(rows, self.data.asked(rows), self.why.texts, how, self.why.keys)

    def _encoded(self, rows: Sequence[Recorded], how: str) -> tuple[list[Encoded], int]:
        """The lessons' tokens, weighed, and how many an answer that is served may have."""
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        lessons = self._lessons(rows, how)
        encoded = taught(tokenizer, lessons)
        longest = max(_taught(one) for one, lesson in zip(encoded, lessons, strict=True) if not lesson.aside)
        return encoded, longest + longest // 2 + 2


def write(folder: Path, found: Sequence[Trial]) -> None:
    """Put the outcome into a student's folder, as RESULT."""
    (folder / RESULT).write_text(json.dumps([asdict(one) for one in found], indent=2, sort_keys=True) + "\n")


def taught(tokenizer: Any, lessons: Sequence[Lesson]) -> list[Encoded]:
    """The lessons' tokens, in their order, with rationales as a second task `weighed`."""
    encoded = [_encode(tokenizer, lesson) for lesson in lessons]
    return weighed(encoded, [lesson.aside for lesson in lessons])


def weighed(encoded: Sequence[Encoded], aside: Sequence[bool], alpha: float = ALPHA) -> list[Encoded]:
    """The rows, with those `aside` weighing 1 - `alpha` of all in sum; as they are where there are none."""
    answers = sum(_taught(one) for one, other in zip(encoded, aside, strict=True) if not other)
    others = sum(_taught(one) for one, other in zip(encoded, aside, strict=True) if other)
    if not others:
        return list(encoded)
    weight = (1 - alpha) / alpha * answers / others
    return [replace(one, weight=weight) if other else one for one, other in zip(encoded, aside, strict=True)]


def _taught(one: Encoded) -> int:
    return len(one.input_ids) - one.prompt_length


def _encode(tokenizer: Any, lesson: Lesson) -> Encoded:
    return encode(tokenizer, lesson.messages, lesson.answer)
