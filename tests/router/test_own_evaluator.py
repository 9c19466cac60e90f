import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import BadInput
from router.own_evaluator import own_evaluator
from router.said import Said

MODULE = """
import json

calls = []

def length(request, teacher, candidate):
    calls.append((request, teacher, candidate))
    return min(len(teacher.text), len(candidate.text)) / max(len(teacher.text), len(candidate.text))

def same(request, teacher, candidate): return teacher == candidate
def words(request, teacher, candidate): return "good"
def nan(request, teacher, candidate): return float("nan")
def percent(request, teacher, candidate): return 87.5
def negative(request, teacher, candidate): return -0.1
def nothing(request, teacher, candidate): pass
def raises(request, teacher, candidate): raise KeyError("first line\\nsecond")
NUMBER = 7
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package of the operator's, with a module that knows how to judge."""
    (tmp_path / "operators_own").mkdir()
    (tmp_path / "operators_own" / "scores.py").write_text(MODULE)
    (tmp_path / "operators_own" / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("operators_own")]:
        monkeypatch.delitem(sys.modules, name)
    return "operators_own.scores"


def judged(name: str, teacher: str = "four", candidate: str = "fo") -> float:
    request: Mapping[str, Any] = {"model": "gpt-4o"}
    return own_evaluator(name)(request, Said(teacher), Said(candidate))


def test_it_sees_the_request_and_both_answers(mine: str) -> None:
    assert judged(f"{mine}:length") == 0.5
    assert sys.modules[mine].calls == [({"model": "gpt-4o"}, Said("four"), Said("fo"))]


def test_a_truth_is_a_verdict(mine: str) -> None:
    assert (judged(f"{mine}:same"), judged(f"{mine}:same", "fo")) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("words", "returned 'good'"), ("nan", "returned nan"), ("percent", "returned 87.5"),
        ("negative", "returned -0.1"),        ("nothing", "returned None"), ("raises", "raised KeyError: 'first line"),
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_said_with_the_functions_name(mine: str, function: str, said: str) -> None:
    with pytest.raises(BadInput, match=f"{mine}:{function} {said}") as caught:
        judged(f"{mine}:{function}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("operators_own.scores:missing", "has no function 'missing'"),
        ("operators_own.scores:NUMBER", "has no function"),
        ("operators_own.none:f", "ModuleNotFoundError"), ("operators_own.broken:f", "ZeroDivisionError"),
        (":f", "cannot be imported"), ("operators_own.scores:", "has no function ''"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("mine")
def test_what_cannot_be_loaded_is_said_at_once(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        own_evaluator(name)
    assert str(caught.value).startswith(f"evaluator {name}: ")
