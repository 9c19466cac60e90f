"""Owns a cheap text classifier: multinomial logistic regression on hashed runs of words and of characters.

It stands in for a student where training one would cost too much: to doubt a label, or to guess before any training
what can be learned. Must not know the log, nor what its labels mean. Fits on a few thousand rows take seconds on one
core, and the same rows give the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distiller.curate import Recorded, user_text
from distiller.scikit import scikit_learn
from proxy.errors import BadInput
from router.prompt import static_lines, student_messages

BUCKETS = 2**13  # of each kind of run; twice as many cost twice the time and were no better on 77 labels
LONGEST = 4000  # characters read of a text, half from its start and half from its end
STRENGTH = 30.0  # inverse of the ridge penalty, in scikit-learn's units
STEPS = 100  # of L-BFGS at most: the last of them move probabilities by less than a point

Vectors = Any
"""A sparse matrix, shape (texts, 2 * BUCKETS)."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """Fitted; `labels` name the columns of what `probabilities` returns."""

    labels: tuple[str, ...]
    _weigh: Any
    _model: Any

    def probabilities(self, vectors: Vectors) -> NDArray[np.float64]:
        """Shape (rows, labels); each row adds up to 1."""
        if self._model is None:
            return np.ones((vectors.shape[0], 1))
        with scikit_learn():
            found: NDArray[np.float64] = self._model.predict_proba(self._weigh.transform(vectors))
        return found


def readings(rows: Sequence[Recorded]) -> list[str]:
    """What varies of each row's prompt, as a student would read it; its user's text where a student could not."""
    static = static_lines([row.messages for row in rows])
    return [_reading(row, static) for row in rows]


def vectorise(texts: Sequence[str]) -> Vectors:
    """Counts of hashed runs of 1 to 2 words and 2 to 4 characters; needs no fitting, so nothing leaks through it."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    kinds = (("word", (1, 2), r"(?u)\b\w+\b"), ("char_wb", (2, 4), None))
    makers = [
        HashingVectorizer(
            analyzer=kind, ngram_range=run, token_pattern=token, n_features=BUCKETS, alternate_sign=False, norm=None
        )
        for kind, run, token in kinds
    ]
    with scikit_learn():
        counts = [one.transform([_cut(text) for text in texts]) for one in makers]
    return hstack(counts, format="csr")


def fit(vectors: Vectors, labels: Sequence[str]) -> Classifier:
    """Fit to one label a row; a single label is answered with certainty. BadInput without rows."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    if not labels:
        raise BadInput("no rows to fit a classifier to")
    if len(set(labels)) == 1:
        return Classifier((labels[0],), None, None)
    weigh = TfidfTransformer(sublinear_tf=True)
    model = LogisticRegression(C=STRENGTH, max_iter=STEPS, tol=1e-3)
    with scikit_learn(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # STEPS is where more of them stop to matter.
        model.fit(weigh.fit_transform(vectors), np.array(labels, dtype=object))
    return Classifier(tuple(map(str, model.classes_)), weigh, model)


def _reading(row: Recorded, static: frozenset[str]) -> str:
    try:
        return "\n".join(message["content"] for message in student_messages(row.messages, static))
    except BadInput:
        return user_text(row)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}\n{text[-LONGEST // 2 :]}"
