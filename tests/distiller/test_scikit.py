import sys
from pathlib import Path

import pytest

from distiller.grams import fit, vectorise
from distiller.scikit import scikit_learn

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # As `proxy.log` does.


def test_the_mark_goes_for_a_while(marked: None) -> None:
    with scikit_learn():
        assert "pandas" not in sys.modules
    assert sys.modules["pandas"] is None
    with pytest.raises(ValueError, match="x"), scikit_learn():
        raise ValueError("x")
    assert sys.modules["pandas"] is None


def test_where_nothing_was_marked_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    with scikit_learn():
        pass
    assert "pandas" not in sys.modules


def test_a_classifier_is_fitted_and_answers_in_a_process_that_opened_a_log(marked: None) -> None:
    made = fit(vectorise(["late parcel", "card refund"]), ["delivery", "billing"])
    assert made.probabilities(vectorise(["my card"]))[0, 0] > 0.5


def test_whoever_uses_scikit_learn_does_it_here() -> None:
    users = [file for file in (ROOT / "distiller").glob("*.py") if "from sklearn" in file.read_text(encoding="utf-8")]
    assert len(users) > 1
    assert [file.name for file in users if "with scikit_learn()" not in file.read_text(encoding="utf-8")] == []
