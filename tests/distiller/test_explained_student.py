import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from distiller.adapter_student import adapter_student
from distiller.dataset import Dataset, dataset
from distiller.examples import Encoded, completion_tokens
from distiller.explained import Why, whys
from distiller.explained_student import FEWEST, RATIONALES, apart, explained_student, weighed
from distiller.settings import Settings
from proxy.errors import Refused
from tests.distiller.toy_task import ANSWERS, toy_log, toy_settings
from tests.logs import migrated
from tests.router.conftest import TASK, insert


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    given = toy_settings(tmp_path)
    return replace(given, distiller=replace(given.distiller, epochs=1))


@pytest.fixture
def data(tmp_path: Path, settings: Settings) -> Dataset:
    found = dataset(toy_log(tmp_path), TASK, settings)
    return replace(found, rationales={row.exchange_id: f"because {row.answer}" for row in found.train[::2]})


def made_in(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_reasons_are_learned_beside_the_answers_in_as_many_steps(
    data: Dataset, settings: Settings, tmp_path: Path
) -> None:
    wrong, quoting, long = (row.exchange_id for row in data.train[:6:2])
    odd = {wrong: "because wait, clearly", quoting: "because of <|im_end|>", long: "because " * 200}
    odd[wrong] = "because go" if data.train[0].answer != "go" else "because stop"
    data = replace(data, rationales={**data.rationales, **odd})
    told = explained_student(data, settings, made_in(tmp_path / "told"), lambda *_: None)
    plain = adapter_student(data, settings, made_in(tmp_path / "plain"), lambda *_: None)
    assert (told.rows, told.facts["steps"], told.limit) == (plain.rows, plain.facts["steps"], plain.limit)
    assert (told.facts["rationales"], told.facts["contradicting"]) == (57, 1)
    learned = json.loads((tmp_path / "told" / RATIONALES).read_text())
    assert learned == [name for name in data.rationales if name not in odd]
    files = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("told", "plain")]
    assert files[0] != files[1]


def test_with_no_reason_to_learn_the_bytes_are_those_of_the_adapter(
    data: Dataset, settings: Settings, tmp_path: Path
) -> None:
    apart(data, settings, made_in(tmp_path / "none"), lambda *_: None, Why({}, 0))
    adapter_student(data, settings, made_in(tmp_path / "plain"), lambda *_: None)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "losses.json"):
        assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_too_few_are_refused_with_what_to_do(data: Dataset, settings: Settings, tmp_path: Path) -> None:
    few = dict(list(data.rationales.items())[: FEWEST - 1])
    with pytest.raises(Refused, match=r"19 rationales .* 20 are needed .* distiller\.rationale_budget"):
        explained_student(replace(data, rationales=few), settings, tmp_path, lambda *_: None)


def test_reasons_that_stand_in_the_answers_are_learned_beside_them(settings: Settings, tmp_path: Path) -> None:
    log = migrated(tmp_path / "other")
    for number in range(40):
        for colour, answer in ANSWERS.items():
            why = f"lamp {number} is {colour} and whoever comes to a lamp that is {colour} knows what is to be done: go"
            insert(log, [f"lamp {number} is {colour}"], json.dumps({"reasoning": why, "answer": answer}))
    given = replace(settings, distiller=replace(settings.distiller, max_tokens=256))
    data = dataset(log, TASK, given)
    assert whys(data).keys == ("reasoning",)
    told = explained_student(data, given, made_in(tmp_path / "told"), lambda *_: None)
    plain = adapter_student(data, given, made_in(tmp_path / "plain"), lambda *_: None)
    assert (told.rows, told.facts["steps"]) == (plain.rows, plain.facts["steps"])
    assert told.facts["rationales"] == len(data.train)
    assert told.limit < plain.limit / 2  # What is served has no reasons.
    tokenizer = AutoTokenizer.from_pretrained(told.base)
    assert told.limit >= len(tokenizer('{"reasoning": "", "answer": "stop"}')["input_ids"])


@given(st.lists(st.integers(1, 9), min_size=1), st.lists(st.integers(1, 90), min_size=1), st.floats(0.1, 0.9))
def test_reasons_weigh_what_the_answers_leave(answers: list[int], reasons: list[int], alpha: float) -> None:
    rows, told = ([Encoded([0] * (2 + length), 2) for length in lengths] for lengths in (answers, reasons))
    found = weighed(rows, told, alpha)
    weight = sum(one.weight * completion_tokens([one]) for one in found)
    assert weight / (weight + completion_tokens(rows)) == pytest.approx(1 - alpha)
    assert [replace(one, weight=1.0) for one in found] == told
    assert weighed(rows, []) == []
