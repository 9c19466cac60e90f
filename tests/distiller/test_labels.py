import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from distiller.embedding import Encoders
from distiller.examples import encode
from distiller.generate import Generated
from distiller.label_trie import label_trie
from distiller.labels import MOST_LABEL_TOKENS, MOST_TOKENS, load, save, tree_of
from distiller.predict import FACTS, Prompt
from distiller.train import TrainSettings, train
from proxy.errors import BadInput, Refused
from router.confidence import confidence
from tests.distiller.queues import QUEUES, asking, queue_rows
from tests.distiller.toy import build_toy

NAMES = ["billing", "billing again", "login", "shipping"]  # One is how another one begins; one was never taught.
TAUGHT = queue_rows()[:24]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "toy"
    build_toy(folder, [*(prompt[-1]["content"] for prompt, _ in queue_rows()), *NAMES])
    return folder


@pytest.fixture(scope="module")
def student(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "small"
    tokenizer = AutoTokenizer.from_pretrained(base)
    settings = TrainSettings(epochs=40, learning_rate=5e-3, tokens_per_step=256, max_tokens=128, threads=1)
    train(base, [encode(tokenizer, *row) for row in TAUGHT], settings, folder, lambda *_: None)
    save(folder, base, NAMES)
    return folder


def asked(student: Path, base: Path, prompts: Sequence[Prompt]) -> list[Generated]:
    return load(student, Encoders([base]))(prompts)


def test_it_answers_what_it_learned_with_the_labels_share(student: Path, base: Path) -> None:
    rows = TAUGHT
    answers = asked(student, base, [prompt for prompt, _ in rows])
    assert [answer.text for answer in answers] == [label for _, label in rows]
    for answer in answers:
        assert (answer.finished, len(answer.logprobs), answer.prompt_tokens > 10) == (True, 1, True)
        assert answer.confidence == confidence(answer.logprobs)
        assert answer.likeliest[0] == (answer.text, answer.logprobs[0])
        assert {label for label, _ in answer.likeliest} == set(NAMES) > set(QUEUES)
        assert math.fsum(math.exp(logprob) for _, logprob in answer.likeliest) == pytest.approx(1)


@torch.inference_mode()
def test_a_label_scores_as_if_it_alone_were_written(student: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the tree nor the other labels must show: plain transformers, one label at a time, no mask, no cache."""
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")  # Else rounding shows.
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    network = PeftModel.from_pretrained(plain, student).merge_and_unload().eval()
    prompts = [asking("refund my money"), asking("my delivery is what I cannot sign in to"), asking("")]
    for prompt, answer in zip(prompts, asked(student, base, prompts), strict=True):
        alone = []
        for name in NAMES:
            row = encode(tokenizer, prompt, name)
            assert row.prompt_length == answer.prompt_tokens
            logs = network(torch.tensor([row.input_ids]), use_cache=False).logits[0].log_softmax(-1)
            places = range(row.prompt_length, len(row.input_ids))
            alone.append(sum(float(logs[place - 1, row.input_ids[place]]) for place in places))
        shares = torch.tensor(alone).log_softmax(0).tolist()
        wanted = dict(zip(NAMES, shares, strict=True))
        assert dict(answer.likeliest) == pytest.approx(wanted, abs=1e-3)


def test_an_answer_does_not_depend_on_its_company(student: Path, base: Path) -> None:
    prompts = [prompt for prompt, _ in queue_rows()[:5]]
    together, alone = asked(student, base, prompts), [asked(student, base, [prompt])[0] for prompt in prompts]
    assert together == alone


def test_a_prompt_that_is_too_long_is_left_to_others(student: Path, base: Path) -> None:
    long, short = asked(student, base, [asking("zz " * MOST_TOKENS), asking("refund my money")])
    assert (long.text, long.finished, long.confidence, long.logprobs) == ("", False, 0.0, ())
    assert long.prompt_tokens > MOST_TOKENS
    assert short.text == "billing"


def test_labels_that_are_too_many_are_refused_before_anybody_trains(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.raises(Refused, match=r"the 400 labels have \d+ tokens together, and 1024 are scored at most"):
        tree_of(tokenizer, [f"{number:03} zz{number}" for number in range(400)])
    few = tree_of(tokenizer, NAMES)
    assert len(few.tokens) < MOST_LABEL_TOKENS
    ends = {steps[-1][1] for steps in few.steps}
    assert ends == {tokenizer.eos_token_id}
    assert few == label_trie([[token for _, token in steps] for steps in few.steps])


@pytest.mark.parametrize("damage", ["weights", "no weights", "no configuration", "no labels", "name"])
def test_a_damaged_student_is_not_served(student: Path, base: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(student, tmp_path / "small")
    weights, facts = folder / "adapter_model.safetensors", json.loads((folder / FACTS).read_text())
    match damage:
        case "weights":
            weights.write_bytes(weights.read_bytes()[:200])
        case "no weights":
            weights.unlink()
        case "no configuration":
            (folder / "adapter_config.json").unlink()
        case "no labels":
            del facts["labels"]
        case "name":
            facts["base_sha256"] = "0" * 64
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(BadInput, match=r"cannot be read|reads model 000"):
        asked(folder, base, [])
