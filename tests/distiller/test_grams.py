import numpy as np
import pytest

from distiller.grams import LONGEST, fit, readings, vectorise
from proxy.errors import BadInput
from tests.distiller.test_curate import row

TEXTS = [f"my parcel {number} is late" for number in range(10)] + [f"refund my card {number}" for number in range(10)]
LABELS = ["delivery"] * 10 + ["billing"] * 10


def test_it_learns_words_and_is_unsure_of_what_it_never_saw() -> None:
    made = fit(vectorise(TEXTS), LABELS)
    found = made.probabilities(vectorise(["where is the parcel", "card refund please", "zzz"]))
    assert made.labels == ("billing", "delivery")
    assert found.shape == (3, 2)
    assert found.sum(axis=1) == pytest.approx(1)
    assert found[0, 1] > 0.7
    assert found[1, 0] > 0.7
    assert abs(found[2, 0] - 0.5) < 0.2


def test_the_same_rows_give_the_same_numbers() -> None:
    one, other = (fit(vectorise(TEXTS), LABELS).probabilities(vectorise(TEXTS)) for _ in range(2))
    assert np.array_equal(one, other)


def test_one_label_is_certain_and_none_is_refused() -> None:
    made = fit(vectorise(["a", "b"]), ["x", "x"])
    assert (made.labels, made.probabilities(vectorise(["c"])).tolist()) == (("x",), [[1.0]])
    with pytest.raises(BadInput, match="no rows"):
        fit(vectorise(["a"])[:0], [])


def test_texts_without_spaces_tell_apart_too() -> None:
    made = fit(vectorise(["荷物が届かない", "カードの返金", "荷物はどこ", "返金してください"]), ["d", "b", "d", "b"])
    assert made.probabilities(vectorise(["荷物が遅い"]))[0, 1] > 0.5


def test_fixed_instructions_are_not_read_and_of_long_texts_both_ends() -> None:
    assert readings([row(1, "late"), row(2, "lost")]) == ["\nlate", "\nlost"]
    image = row(3, messages=({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},))
    assert "image_url" in readings([image])[0]
    middle = "start " + "x " * LONGEST + "end"
    assert (vectorise([middle]) != vectorise([middle.replace("x x x x end", "x x x x dne")])).nnz > 0
    assert (vectorise([middle]) != vectorise([f"start {'x ' * LONGEST} x x end"])).nnz == 0
