import json
import random
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from distiller.encoder import EncoderSettings, load, train_encoder
from distiller.encoder_net import read
from distiller.predict import one_text
from proxy.errors import BadInput, Refused
from router.confidence import confidence
from tests.distiller.toy_encoder import build_toy_encoder

NAMES = ["Ann", "Bo", "Émile", "the Beatles", "热狗", "Cy Young", "Dee"]
THINGS = ["jazz", "rock songs", "some blues", "a waltz"]
QUICK = EncoderSettings(
    epochs=24, batch=8, learning_rate=3e-3, head_learning_rate=1e-2, max_tokens=48, holdout=0.2, threads=1
)


def task(count, seed=0):
    """Rows of a teacher who copies what to play and who plays it, and names the wish."""
    pick = random.Random(seed)
    rows = []
    for _ in range(count):
        name, thing = pick.choice(NAMES), pick.choice(THINGS)
        text, answer = pick.choice(
            [
                (f"play {thing} by {name}", {"intent": "Play", "slots": {"what": thing, "who": name}}),
                (f"{name} wants {thing} now", {"intent": "Play", "slots": {"who": name, "what": thing}}),
                (f"who is {name}?", {"intent": "Ask", "slots": {"who": name}}),
                ("stop it", {"intent": "Stop", "slots": {}}),
            ]
        )
        rows.append((asked(text), json.dumps(answer, ensure_ascii=False)))
    return rows


def asked(text, instruction=""):
    return [{"role": "system", "content": instruction}, {"role": "user", "content": text}]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    build_toy_encoder(folder, [prompt[1]["content"] for prompt, _ in task(60)])
    return folder


@pytest.fixture(scope="module")
def student(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    steps = []
    facts = train_encoder(encoder, task(120), folder, QUICK, lambda *step: steps.append(step))
    return folder, facts, steps


def test_it_answers_as_the_teacher_would_letter_for_letter(student):
    folder, facts, _ = student
    later = task(40, seed=1)
    answers = load(folder)([prompt for prompt, _ in later])
    right = sum(answer.text == wanted for answer, (_, wanted) in zip(answers, later, strict=True))
    assert right >= 38  # A toy: what it learns differs a little from one processor to the next.
    assert facts.exact == 1
    assert facts.last_loss < facts.first_loss / 10


def test_facts_and_progress_tell_what_was_done(student):
    _, facts, steps = student
    assert (facts.rows, facts.dropped, facts.round_trip) == (120, {}, 1)
    assert facts.steps == facts.epochs * 15
    assert [step for step, _, _ in steps[-facts.steps :]] == list(range(1, facts.steps + 1))
    assert steps[-1][1:] == (facts.steps, facts.last_loss)


def test_its_confidence_is_the_joint_probability_of_its_decisions(student):
    predict = load(student[0])
    known, strange = predict([asked("play jazz by Ann"), asked("rome wasn't by a day jazz Ann play")])
    assert len(known.logprobs) == 4  # the intent, two copies, everything else
    assert known.finished
    assert known.confidence == pytest.approx(confidence(known.logprobs), abs=1e-5)
    assert known.confidence > strange.confidence


def test_answers_do_not_depend_on_the_batch(student):
    predict = load(student[0])
    prompts = [prompt for prompt, _ in task(30, seed=2)]
    together = predict(prompts)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = predict([prompt])
        assert alone.text == answer.text
        assert alone.logprobs == pytest.approx(answer.logprobs, abs=1e-4)
    assert predict([]) == []


def test_an_empty_or_odd_text_is_answered_too(student):
    answers = load(student[0])([asked(""), asked("\ud800"), asked("play " * 90)])
    assert all(set(json.loads(answer.text)) == {"intent", "slots"} for answer in answers)


def test_what_is_too_long_to_copy_from_is_not_finished(student):
    whole, cut = load(student[0])([asked("play jazz by Ann"), asked("play " * 90)])
    assert whole.finished
    assert not cut.finished


def test_the_same_seed_gives_the_same_bytes(encoder, tmp_path):
    settings = replace(QUICK, epochs=1)
    kept = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train_encoder(encoder, task(24), tmp_path / name, replace(settings, seed=seed), lambda *_: None)
        kept.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert kept[0] == kept[1]
    assert kept[0]["model.safetensors"] != kept[2]["model.safetensors"]


def test_labels_need_no_copies(encoder, tmp_path):
    rows = [
        (asked(text), label) for text, label in [("play jazz", "music"), ("stop it", "halt"), ("who is", "ask")] * 8
    ]
    train_encoder(encoder, rows, tmp_path, QUICK, lambda *_: None)
    answers = load(tmp_path)([prompt for prompt, _ in rows[:3]])
    assert [answer.text for answer in answers] == ["music", "halt", "ask"]
    assert [len(answer.logprobs) for answer in answers] == [1, 1, 1]
    assert load(tmp_path)([asked("play " * 90)])[0].finished


def test_rows_are_dropped_by_reason(encoder, tmp_path):
    long = ("stop it " * 60 + "Zoe", json.dumps({"intent": "Ask", "slots": {"who": "Zoe"}}))
    odd = ("stop it", json.dumps({"intent": "Stop", "slots": {"who": "nobody there"}}))
    rows = [*task(40), *((asked(text), answer) for text, answer in (long, odd))]
    facts = train_encoder(encoder, rows, tmp_path, replace(QUICK, epochs=1), lambda *_: None)
    assert (facts.rows, facts.dropped) == (40, {"not_whole_units": 1, "not_copied": 1})


def tokens(encoder, rows):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    return sum(len(read(tokenizer, one_text(prompt), QUICK.max_tokens).ids) for prompt, _ in rows)


def test_the_token_budget_limits_the_epochs_and_then_the_rows(encoder, tmp_path):
    whole = tokens(encoder, task(24))
    twice = train_encoder(encoder, task(24), tmp_path / "2", replace(QUICK, train_tokens=2 * whole), lambda *_: None)
    assert (twice.rows, twice.epochs, twice.dropped) == (24, 1, {})
    less = train_encoder(encoder, task(24), tmp_path / "1", replace(QUICK, train_tokens=whole), lambda *_: None)
    assert 6 < less.rows < 18
    assert (less.epochs, less.dropped) == (1, {"over_budget": 24 - less.rows})
    with pytest.raises(Refused, match="encoder_tokens = 1"):
        train_encoder(encoder, task(24), tmp_path / "0", replace(QUICK, train_tokens=1), lambda *_: None)


def test_the_newest_rows_fit(encoder, tmp_path):
    old = [(asked(f"long long long long long long {n}"), "old") for n in range(30)]
    new = [(asked(f"{word} {n}"), label) for n in range(15) for word, label in (("stop", "halt"), ("go", "move"))]
    budget = 2 * tokens(encoder, new)
    facts = train_encoder(encoder, old + new, tmp_path, replace(QUICK, train_tokens=budget), lambda *_: None)
    assert (facts.rows, facts.dropped) == (30, {"over_budget": 30})


def test_what_cannot_work_is_said(encoder, tmp_path):
    free = [(asked(f"why {n}?"), f"because of {n * n}") for n in range(30)]
    with pytest.raises(Refused, match="fixed form"):
        train_encoder(encoder, free, tmp_path, QUICK, lambda *_: None)
    far = [(asked(f"oh well then so be it {n}"), str(n)) for n in (12345, 67891)]
    with pytest.raises(Refused, match="max_tokens = 8"):
        train_encoder(encoder, far, tmp_path, replace(QUICK, max_tokens=8), lambda *_: None)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"holdout": 1.0}, {"warmup": 1.0}, {"max_tokens": 2}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(BadInput):
        replace(QUICK, **wrong)


def test_only_a_folder_of_its_kind_that_is_whole_is_loaded(tmp_path):
    with pytest.raises(BadInput, match="no small student"):
        load(tmp_path)
    (tmp_path / "small.json").write_text('{"kind": "encoder"}')
    with pytest.raises(BadInput, match="cannot be read"):
        load(tmp_path)


def test_rows_that_count_nothing_are_not_learned(encoder, tmp_path):
    rows = [(asked(f"play {thing} now"), json.dumps({"intent": "Play"})) for thing in THINGS * 4]
    wrong = [(prompt, json.dumps({"intent": "Stop"})) for prompt, _ in rows]
    weights = [1.0] * len(rows) + [0.0] * len(wrong)
    train_encoder(encoder, [*rows, *wrong], tmp_path, replace(QUICK, epochs=4), lambda *_: None, weights)
    assert {one.text for one in load(tmp_path)([prompt for prompt, _ in rows])} == {'{"intent": "Play"}'}


def test_a_training_that_diverges_is_refused(encoder, tmp_path):
    with pytest.raises(Refused, match=r"diverged at step \d+: .*distiller.students"):
        train_encoder(encoder, task(60), tmp_path / "s", replace(QUICK, learning_rate=1e38), lambda *_: None)
    assert not (tmp_path / "s").exists()
