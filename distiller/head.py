"""Owns the linear head: multinomial logistic regression on embeddings, for tasks with a closed set of labels.

Must not know servers or the log. Its probabilities are calibrated by one temperature (Guo et al., "On Calibration of
Modern Neural Networks", 2017), fitted on rows that the regression did not see.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from distiller.base import base_identity
from distiller.embedding import Embed, Encoders, load_encoder
from distiller.generate import Generated
from distiller.predict import Predict, Prompt, one_text, read_facts, write_facts
from distiller.scikit import scikit_learn
from proxy.errors import BadInput, Refused
from router.confidence import confidence
from router.evaluators import normalise

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Of the inverse regularisation C, the weakest first: vectors of length one need a large one."""
FOLDS = 5
WEIGHTS = "head.safetensors"
MOST_TOLD = 20  # of the likeliest answers, as OpenAI's `top_logprobs`
_ITERATIONS = 2000
_TEMPERATURES = (0.05, 20.0)
_EMBEDDED_AT_ONCE = 256  # between two reports

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What a training did: rows learned from, of which `cut` were longer than an encoder reads, and in how long.

    `loss` is the mean negative log-probability (nats) of the right label, `agreement` the share of right answers, both
    on rows held out in turn.
    """

    rows: int
    labels: int
    cut: int
    c: float
    temperature: float
    loss: float
    agreement: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Of one C: the scores of rows while they were held out, and what a temperature makes of them."""

    c: float
    temperature: float
    loss: float
    agreement: float


def train_head(
    encoder: Path,
    rows: Sequence[tuple[Prompt, str]],
    folder: Path,
    seed: int,
    threads: int,
    on_progress: Callable[[int, int], None],
    weights: Matrix | None = None,
) -> HeadFacts:
    """Learn prompt -> label from `rows` into `folder`, which is made; the same input and seed give the same bytes.

    `weights`, one a row, are how much each counts in the regression; None: all the same. Refused where a linear head
    makes no sense: a single label, or more labels than half the rows.
    """
    import torch
    from threadpoolctl import threadpool_limits

    started = time.perf_counter()
    names, labels = label_set([answer for _, answer in rows])
    steps = len(rows) + FOLDS * len(STRENGTHS) + 1
    with threadpool_limits(threads):
        torch.set_num_threads(threads)
        vectors, cut = _embedded(load_encoder(encoder), [one_text(prompt) for prompt, _ in rows], steps, on_progress)
        folds = fold_of(labels, seed)
        fitted = []
        for number, c in enumerate(STRENGTHS, 1):
            fitted.append(_cross_validated(vectors, labels, folds, c, weights))
            on_progress(len(rows) + FOLDS * number, steps)
        best = min(fitted, key=lambda one: one.loss)  # of equal ones the more regularised
        weight, bias = _fit(vectors, labels, best.c, weights)
    folder.mkdir(parents=True)
    kept = {"weight": weight, "bias": bias}  # safetensors writes memory as it lies, whatever the strides say
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in kept.items()}, folder / WEIGHTS)
    write_facts(
        folder, "head",
        {"encoder_sha256": base_identity(encoder), "labels": names, "c": best.c, "temperature": best.temperature},
    )  # fmt: skip
    on_progress(steps, steps)
    return HeadFacts(
        len(rows), len(names), cut, best.c, best.temperature, best.loss, best.agreement, time.perf_counter() - started
    )


def load(folder: Path, encoders: Encoders) -> Predict:
    """The head in `folder`; BadInput where it cannot be read, or none of the encoders is its own."""
    facts = read_facts(folder)
    try:
        weights = load_file(folder / WEIGHTS)
        names, temperature = [str(name) for name in facts["labels"]], float(facts["temperature"])
        weight, bias = weights["weight"].astype(np.float64), weights["bias"].astype(np.float64)
        embed = encoders.get(facts["encoder_sha256"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise BadInput(f"{folder} holds a head that cannot be read ({type(error).__name__}): distill again") from None
    if weight.shape[:1] != (len(names),) or bias.shape != (len(names),):
        raise BadInput(f"{folder} holds a head whose weights do not fit its labels: distill again")

    def predict(prompts: Sequence[Prompt]) -> list[Generated]:
        embedded = embed([one_text(prompt) for prompt in prompts])
        scores = _log_softmax((embedded.vectors.astype(np.float64) @ weight.T + bias) / temperature)
        return [_answer(names, row, tokens) for row, tokens in zip(scores, embedded.tokens, strict=True)]

    return predict


def label_set(answers: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Each label as it is served, and the label's number for each answer; Refused where nobody could learn to choose.

    Answers are one label when they are equal through `router.evaluators.normalise`; served is the spelling that the
    teacher used most, of equally frequent ones the first in order of characters.
    """
    spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        spellings[normalise(answer)][answer] += 1
    if len(spellings) < 2:
        raise Refused(f"a choice needs two labels or more, and the teacher gave {len(spellings)}")
    if len(spellings) > len(answers) / 2:
        raise Refused(
            f"{len(spellings)} different labels in {len(answers)} answers are no closed set to choose from: "
            "record more exchanges, or distill a student that writes"
        )
    order = sorted(spellings)
    numbers = {label: number for number, label in enumerate(order)}
    names = [min(spellings[label].items(), key=lambda item: (-item[1], item[0]))[0] for label in order]
    return names, np.array([numbers[normalise(answer)] for answer in answers])


def fold_of(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The fold in which each row is held out, in turns within each label; -1 for a label's only row: it always trains.

    So every label stands in every training part.
    """
    folds = np.full(len(labels), -1)
    turn = 0
    for label in np.unique(labels):
        rows = np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            folds[rows] = (turn + np.arange(len(rows))) % FOLDS
            turn += len(rows)
    return folds


def _embedded(
    embed: Embed, texts: Sequence[str], steps: int, on_progress: Callable[[int, int], None]
) -> tuple[Matrix, int]:
    parts = []
    for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
        parts.append(embed(texts[start : start + _EMBEDDED_AT_ONCE]))
        on_progress(min(start + _EMBEDDED_AT_ONCE, len(texts)), steps)
    return np.concatenate([part.vectors for part in parts]).astype(np.float64), sum(part.cut for part in parts)


def _fit(vectors: Matrix, labels: NDArray[np.int64], c: float, weights: Matrix | None) -> tuple[Matrix, Matrix]:
    """Weight (labels, dimensions) and bias (labels) of the regression; of two labels it gives only the second's."""
    from sklearn.linear_model import LogisticRegression

    with scikit_learn():
        model = LogisticRegression(C=c, max_iter=_ITERATIONS).fit(vectors, labels, weights)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        return np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])
    return weight, bias


def _cross_validated(
    vectors: Matrix, labels: NDArray[np.int64], folds: NDArray[np.int64], c: float, weights: Matrix | None
) -> _Fitted:
    scores, right = [], []
    for fold in range(FOLDS):
        held = folds == fold
        if held.any():
            weight, bias = _fit(vectors[~held], labels[~held], c, None if weights is None else weights[~held])
            scores.append(vectors[held] @ weight.T + bias)
            right.append(labels[held])
    scored, wanted = np.concatenate(scores), np.concatenate(right)
    temperature = _temperature(scored, wanted)
    loss = _loss(scored / temperature, wanted)
    return _Fitted(c, temperature, loss, float((scored.argmax(1) == wanted).mean()))


def _temperature(scores: Matrix, labels: NDArray[np.int64]) -> float:
    """The one under which the rows are likeliest, each label being certain only to (n + 1) / (n + 2).

    That is Platt's remedy ("Probabilistic Outputs for Support Vector Machines", 1999): rows that are all answered right
    would otherwise promise that no row ever will be answered wrong.
    """
    from scipy.optimize import minimize_scalar

    rest = 1 / (len(labels) + 2)
    wanted = np.full(scores.shape, rest / (scores.shape[1] - 1))
    wanted[np.arange(len(labels)), labels] = 1 - rest
    found = minimize_scalar(
        lambda log: -(wanted * _log_softmax(scores / np.exp(log))).sum(), bounds=np.log(_TEMPERATURES), method="bounded"
    )
    return float(np.exp(found.x))


def _loss(scores: Matrix, labels: NDArray[np.int64]) -> float:
    return float(-_log_softmax(scores)[np.arange(len(labels)), labels].mean())


def _log_softmax(scores: Matrix) -> Matrix:
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: Matrix = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _answer(names: Sequence[str], scores: NDArray[np.float64], tokens: int) -> Generated:
    """One label is one token: its log-probability is the label's."""
    order = np.argsort(-scores, kind="stable")[:MOST_TOLD]
    likeliest = tuple((names[index], float(scores[index])) for index in order)
    text, best = likeliest[0]
    return Generated(text, confidence([best]), True, (best,), tokens, likeliest)
