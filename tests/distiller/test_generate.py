import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distiller.examples import encode, render_prompt
from distiller.generate import Generated, generate
from distiller.train import TrainSettings, train
from router.confidence import confidence
from tests.distiller.toy import build_toy

WORDS = ["red", "green", "blue", "paper", "printer", "invoice", "refund", "late", "broken", "missing"]


def prompts(count: int) -> list[list[dict[str, str]]]:
    pick = random.Random(1)
    texts = [" ".join(pick.choices(WORDS, k=pick.randrange(1, 12))) for _ in range(count)]
    return [[{"role": "system", "content": ""}, {"role": "user", "content": text}] for text in texts]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_toy(folder, [" ".join(WORDS), "hardware billing"])
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """A student that answers `hardware` to everything."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    folder = tmp_path_factory.mktemp("adapter")
    settings = TrainSettings(epochs=20, learning_rate=1e-2, tokens_per_step=128, max_tokens=128, threads=1)
    train(base, [encode(tokenizer, prompt, "hardware") for prompt in prompts(30)], settings, folder, lambda *_: None)
    return folder


def run(base: Path, adapter: Path | None, asked: list[list[dict[str, str]]], max_tokens: int = 8) -> list[Generated]:
    return generate(base, adapter, asked, max_tokens, 1, lambda *_: None)


def test_a_student_answers_what_it_learned(base, adapter):
    answers = run(base, adapter, prompts(20))
    assert {answer.text for answer in answers} == {"hardware"}
    assert all(answer.finished and 0.5 < answer.confidence <= 1 for answer in answers)


def test_the_base_alone_does_not(base):
    assert "hardware" not in {answer.text for answer in run(base, None, prompts(20))}


def test_batches_answer_as_if_each_prompt_were_alone(base, monkeypatch):
    """Left padding and the cache must not show: compare with plain transformers, one prompt at a time, no cache."""
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")  # Else rounding shows.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    asked = prompts(20)
    for prompt, answer in zip(asked, run(base, None, asked, max_tokens=5), strict=True):
        ids = tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=False)["input_ids"]
        start, logprobs = len(ids), []
        with torch.no_grad():
            while len(ids) < start + 5 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
                best = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).max(-1)
                ids.append(int(best.indices))
                logprobs.append(float(best.values))
        assert answer.text == tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert answer.confidence == pytest.approx(confidence(logprobs), rel=1e-3)
        assert answer.logprobs == pytest.approx(logprobs, rel=1e-2, abs=1e-4)


def test_confidence_counts_the_end_of_turn(base, adapter):
    """Cut off before the end of turn, the same words are at least as likely, and not finished."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    words = len(tokenizer("hardware")["input_ids"])
    [whole] = run(base, adapter, prompts(1))
    [cut] = run(base, adapter, prompts(1), max_tokens=words)
    assert cut == replace(whole, confidence=cut.confidence, finished=False, logprobs=whole.logprobs[:-1])
    assert cut.confidence > whole.confidence


def test_answers_come_in_the_order_of_the_prompts_and_progress_is_told(base):
    asked = prompts(20)
    told: list[tuple[int, int]] = []
    answers = generate(base, None, asked, 4, 1, lambda *step: told.append(step))
    assert told == [(16, 20), (20, 20)]
    backwards = run(base, None, asked[::-1], 4)[::-1]
    assert [answer.text for answer in answers] == [answer.text for answer in backwards]


def test_lanes_answer_as_one_computation_does(base, adapter):
    asked = prompts(60)
    told: list[tuple[int, int]] = []
    one = run(base, adapter, asked)
    assert generate(base, adapter, asked, 8, 2, lambda *step: told.append(step)) == one
    assert told == [(16, 60), (32, 60), (48, 60), (60, 60)]


def test_nothing_asked_nothing_answered(base):
    assert run(base, None, []) == []
    assert generate(base, None, [], 8, 2, lambda *_: None) == []
