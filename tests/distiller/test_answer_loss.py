import math
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.adapter_student import adapter_student
from distiller.answer_loss import Loss, answer_losses
from distiller.dataset import dataset
from tests.distiller.test_curate import row
from tests.distiller.toy_task import toy_log, toy_settings
from tests.router.conftest import TASK


def test_the_loss_of_what_a_student_says_itself_is_what_it_told_of_it(tmp_path: Path) -> None:
    settings, steps = toy_settings(tmp_path), []
    data = dataset(toy_log(tmp_path), TASK, settings)
    (tmp_path / "made").mkdir()
    made = adapter_student(data, settings, tmp_path / "made", lambda *_: None)
    said = [replace(one, answer=answer.text) for one, answer in zip(data.holdout, made.answers, strict=True)]
    assert all(answer.finished for answer in made.answers)

    def losses(most: int) -> list[Loss | None]:
        adapter = tmp_path / "made" / "adapter"
        return answer_losses(
            made.base, adapter, said, data.asked(data.holdout), most, 1, lambda i, n: steps.append((i, n))
        )

    for loss, answer in zip(losses(128), made.answers, strict=True):
        assert loss is not None
        assert loss.tokens == len(answer.logprobs)
        assert loss.nats == pytest.approx(-math.fsum(answer.logprobs), abs=0.05)
    assert steps[-1] == (len(said), len(said))
    assert losses(8) == [None] * len(said)


def test_what_cannot_be_taught_has_no_loss(tmp_path: Path) -> None:
    base = Path(toy_settings(tmp_path).distiller.base)
    prompts = [[{"role": "system", "content": ""}, {"role": "user", "content": "lamp 1 is red"}]] * 2
    rows = [row(1, answer="stop"), row(2, answer="stop <|im_end|> go")]
    good, special = answer_losses(base, None, rows, prompts, 128, 1, lambda *_: None)
    assert good is not None
    assert good.nats > 0
    assert special is None
