import math
from types import SimpleNamespace
from typing import Any

import pytest

from distiller.generate import Generated
from distiller.proposal import servable
from router.settings import TaskSettings


@pytest.mark.parametrize("tokens", [0, 1])
def test_answers_without_the_form_or_an_end_count_only_where_first_tokens_decide(tokens: int) -> None:
    data: Any = SimpleNamespace(labels=("stop",), evaluator="label", declared=TaskSettings(first_tokens=tokens))
    answers = [
        Generated("stop", 0.4, True, (math.log(0.8), math.log(0.5))),
        Generated("nonsense", 0.7, True, (math.log(0.7), 0.0)),
        Generated("stop stop", 0.06, False, (math.log(0.6), math.log(0.1))),
    ]
    sure, verdicts = servable(data, answers, [1.0, 0.0, 0.0])
    assert sure == pytest.approx([0.8, 0.7, 0.6] if tokens else [0.4])
    assert verdicts == ([1.0, 0.0, 0.0] if tokens else [1.0])
