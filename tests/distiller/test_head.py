import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.embedding import Encoders
from distiller.head import FOLDS, STRENGTHS, WEIGHTS, fold_of, label_set, load, train_head
from distiller.predict import FACTS
from proxy.errors import BadInput, Refused
from router.confidence import confidence
from router.evaluators import normalise
from tests.distiller.queues import QUEUES, asking, queue_rows, toy_encoder, toy_head


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_encoder(tmp_path_factory.mktemp("encoder") / "toy")


@pytest.fixture(scope="module")
def head(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head") / "small"
    facts = toy_head(encoder, folder)
    assert (facts.rows, facts.labels, facts.cut) == (72, 3, 0)
    assert facts.c in STRENGTHS
    assert facts.agreement > 0.8
    assert 0 < facts.loss < math.log(3)
    return folder


def test_it_answers_what_it_learned_with_the_probability_of_the_label(head: Path, encoder: Path) -> None:
    rows = queue_rows()
    answers = load(head, Encoders([encoder]))([prompt for prompt, _ in rows])
    assert [answer.text for answer in answers] == [label for _, label in rows]
    for answer in answers:
        assert answer.finished
        assert answer.prompt_tokens > 2
        assert answer.confidence == confidence(answer.logprobs)
        assert len(answer.logprobs) == 1
        assert answer.likeliest[0] == (answer.text, answer.logprobs[0])
        assert {label for label, _ in answer.likeliest} == set(QUEUES)
        assert math.fsum(math.exp(logprob) for _, logprob in answer.likeliest) == pytest.approx(1)


def test_an_answer_does_not_depend_on_its_company(head: Path, encoder: Path) -> None:
    predict = load(head, Encoders([encoder]))
    prompts = [prompt for prompt, _ in queue_rows()] + [asking("hello " * 300)]
    for prompt, answer in zip(prompts, predict(prompts), strict=True):
        (alone,) = predict([prompt])
        assert alone.text == answer.text
        assert alone.logprobs == pytest.approx(answer.logprobs, abs=1e-4)


def test_equal_rows_give_equal_bytes_and_another_order_of_folds_the_same_labels(
    head: Path, encoder: Path, tmp_path: Path
) -> None:
    toy_head(encoder, tmp_path / "again")
    assert {path.name for path in head.iterdir()} == {FACTS, WEIGHTS}
    assert all((tmp_path / "again" / path.name).read_bytes() == path.read_bytes() for path in head.iterdir())
    train_head(encoder, queue_rows(), tmp_path / "other", seed=1, threads=1, on_progress=lambda done, of: None)
    facts = [json.loads((folder / FACTS).read_text()) for folder in (head, tmp_path / "other")]
    assert facts[0]["labels"] == facts[1]["labels"] == sorted(QUEUES)
    assert facts[0]["temperature"] != facts[1]["temperature"]


def test_it_learns_where_pandas_is_marked_as_absent(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # As a process has it that opened the log.
    assert toy_head(encoder, tmp_path / "small").labels == 3
    assert sys.modules["pandas"] is None


def test_two_labels_are_a_choice_too(encoder: Path, tmp_path: Path) -> None:
    rows = [(prompt, label) for prompt, label in queue_rows() if label != "login"]
    seen: list[tuple[int, int]] = []
    train_head(encoder, rows, tmp_path / "two", 0, 1, lambda done, of: seen.append((done, of)))
    answers = load(tmp_path / "two", Encoders([encoder]))([prompt for prompt, _ in rows])
    assert [answer.text for answer in answers] == [label for _, label in rows]
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_it_is_as_sure_as_it_is_right(head: Path, encoder: Path, tmp_path: Path) -> None:
    """Where the teacher itself is right in two of three answers, nobody can be surer than that."""
    noise = np.random.default_rng(0)
    rows = [
        (prompt, label if noise.random() < 0.5 else str(noise.choice(list(QUEUES)))) for prompt, label in queue_rows()
    ]
    facts = train_head(encoder, rows, tmp_path / "noise", 0, 1, lambda done, of: None)
    prompts = [prompt for prompt, _ in rows]
    unsure, sure = (
        np.mean([answer.confidence for answer in load(folder, Encoders([encoder]))(prompts)])
        for folder in (tmp_path / "noise", head)
    )
    assert unsure == pytest.approx(facts.agreement, abs=0.15)
    assert sure > 0.9


def test_what_is_no_closed_set_is_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="two labels or more, and the teacher gave 1"):
        label_set(["a", "A", "a."])
    with pytest.raises(Refused, match="3 different labels in 5 answers are no closed set"):
        label_set(["a", "b", "c", "a", "b"])
    with pytest.raises(Refused, match="gave 0"):
        train_head(encoder, [], tmp_path / "none", 0, 1, lambda done, of: None)
    assert not (tmp_path / "none").exists()


def test_the_commonest_spelling_is_served() -> None:
    names, labels = label_set(["Billing.", "billing", "billing", "SHIPPING", "shipping", "Shipping"])
    assert names == ["billing", "SHIPPING"]
    assert list(labels) == [0, 0, 0, 1, 1, 1]


LABELS = st.lists(st.sampled_from(["a", "A", " a.", "b", "'b'", "\uff42", "c d", "C  D", "e!", "E"]), min_size=10)


@given(LABELS)
def test_what_is_served_means_what_was_taught(answers: list[str]) -> None:
    if len({normalise(answer) for answer in answers}) < 2:
        return
    names, labels = label_set(answers)
    assert set(names) <= set(answers)
    assert len({normalise(name) for name in names}) == len(names)
    assert [normalise(names[label]) for label in labels] == [normalise(answer) for answer in answers]
    assert label_set(answers[::-1])[0] == names


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 3))
def test_every_label_stands_in_every_training_part(found: list[int], seed: int) -> None:
    labels = np.array(found)
    folds = fold_of(labels, seed)
    assert list(folds) == list(fold_of(labels, seed))
    for fold in range(FOLDS):
        assert set(labels[folds != fold]) == set(found)
    assert [bool(one) for one in folds == -1] == [found.count(label) == 1 for label in found]


@pytest.mark.parametrize("damage", ["weights", "labels", "no labels", "no weights", "name"])
def test_a_damaged_head_is_not_served(head: Path, encoder: Path, tmp_path: Path, damage: str) -> None:
    facts = json.loads((head / FACTS).read_text())
    weights = (head / WEIGHTS).read_bytes()
    match damage:
        case "weights":
            weights = weights[:20]
        case "labels":
            facts["labels"].append("more")
        case "no labels":
            del facts["labels"]
        case "name":
            facts["encoder_sha256"] = "0" * 64
    (tmp_path / FACTS).write_text(json.dumps(facts))
    if damage != "no weights":
        (tmp_path / WEIGHTS).write_bytes(weights)
    with pytest.raises(BadInput):
        load(tmp_path, Encoders([encoder]))


def test_rows_that_count_nothing_are_as_good_as_absent(encoder: Path, tmp_path: Path) -> None:
    rows = queue_rows()
    confused = [(prompt, "login") for prompt, label in rows if label == "billing"]
    weights = np.array([1.0] * len(rows) + [0.0] * len(confused))
    for name, counts in (("all", None), ("weighed", weights)):
        train_head(encoder, [*rows, *confused], tmp_path / name, 0, 1, lambda *_: None, weights=counts)
    answers = {
        name: [one.text for one in load(tmp_path / name, Encoders([encoder]))([prompt for prompt, _ in rows])]
        for name in ("all", "weighed")
    }
    assert answers["weighed"] == [label for _, label in rows] != answers["all"]
