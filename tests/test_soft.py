"""The soft labels' benchmark makes bases that are what they say, and measures students as it says."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distiller.base import base_identity, load_model
from distiller.examples import Encoded, encode
from distiller.projection import Target
from distiller.sample_traffic import write_traffic
from distiller.token_bytes import TokenBytes
from distiller.train import TrainSettings, train
from tests.bench.bases import half, halved, mended, respelled
from tests.bench.soft import Budget, run
from tests.bench.soft_students import Held, Student, held_out
from tests.bench.soft_table import tables
from tests.distiller.toy import build_toy
from tests.lamps import lamps

TEXTS = [f"the lamp {number} is {colour}" for number in range(40) for colour in ("red", "amber", "green")]
SETTINGS = TrainSettings(epochs=1, learning_rate=1e-2, rank=8, tokens_per_step=128, max_tokens=128, threads=1)
TURN = [{"role": "system", "content": ""}, {"role": "user", "content": "the lamp 7 is red"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "toy"
    build_toy(folder, TEXTS)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def steps(base: Path, folder: Path, tokens: int) -> int:
    """How many steps mending takes."""
    seen: list[int] = []
    mended(base, TEXTS, tokens, SETTINGS, folder, lambda step, _, __: seen.append(step))
    return len(seen)


@pytest.mark.parametrize(("layers", "kept"), [(1, [0]), (2, [0]), (4, [0, 3]), (5, [0, 4]), (6, [0, 2, 5])])
def test_half_the_layers_are_evenly_spaced_and_hold_both_ends(layers: int, kept: list[int]) -> None:
    assert half(layers) == kept
    assert half(30)[0] == 0
    assert half(30)[-1] == 29
    assert len(set(half(30))) == 15


def test_a_halved_base_has_the_layers_it_kept_and_the_same_tokenizer(base: Path, tmp_path: Path) -> None:
    halved(base, tmp_path / "half")
    before, after = weights(base), weights(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["num_hidden_layers"] == 1
    assert {name for name in after if ".layers." in name} == {name for name in before if ".layers.0." in name}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "half")]
    assert len({str(encode(tokenizer, TURN, "stop")) for tokenizer in tokenizers}) == 1


def test_a_respelled_base_knows_its_new_tokens_by_their_bytes(base: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        respelled(base, TEXTS[:30], 280, tmp_path / name)
    assert base_identity(tmp_path / "one") == base_identity(tmp_path / "other")
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "one"))
    before, after = weights(base)["model.embed_tokens.weight"], weights(tmp_path / "one")["model.embed_tokens.weight"]
    assert len(after) == len(new) == 280 < len(old)
    assert (new.eos_token, new.chat_template) == (old.eos_token, old.chat_template)
    assert torch.equal(after[new.eos_token_id], before[old.eos_token_id])
    assert torch.equal(after[new("z")["input_ids"][0]], before[old("z")["input_ids"][0]])
    longer = max(new(TEXTS[0])["input_ids"], key=lambda token: len(new.decode([token])))
    parts = [part.id for part in old.backend_tokenizer.model.tokenize(new.convert_ids_to_tokens(longer))]
    assert torch.allclose(after[longer], before[parts].mean(0), atol=1e-6)
    row = encode(new, TURN, "stop ✓")
    pieces = [TokenBytes(new.backend_tokenizer).piece(token) or b"" for token in row.input_ids[row.prompt_length :]]
    assert b"".join(pieces) == "stop ✓".encode()
    stops = json.loads((tmp_path / "one" / "generation_config.json").read_text())
    assert stops["eos_token_id"] == new.eos_token_id


def test_a_byte_that_the_old_tokenizer_cannot_spell_begins_as_the_mean_of_all(base: Path, tmp_path: Path) -> None:
    poor = tmp_path / "poor"
    shutil.copytree(base, poor)
    told = json.loads((poor / "tokenizer.json").read_text())
    told["model"]["merges"] = [pair for pair in told["model"]["merges"] if "Z" not in "".join(pair)]
    taken = told["model"]["vocab"].pop("Z")
    told["model"]["vocab"]["<no byte>"] = taken
    (poor / "tokenizer.json").write_text(json.dumps(told))
    respelled(poor, TEXTS[:30], 280, tmp_path / "one")
    rows = weights(tmp_path / "one")["model.embed_tokens.weight"].float()
    new = AutoTokenizer.from_pretrained(tmp_path / "one").convert_tokens_to_ids("Z")
    assert torch.isfinite(rows).all()
    assert torch.allclose(rows[new], weights(poor)["model.embed_tokens.weight"].float().mean(0), atol=1e-2)


def test_mending_reads_no_more_than_it_is_given_and_makes_texts_likelier(base: Path, tmp_path: Path) -> None:
    assert steps(base, tmp_path / "little", 256) < steps(base, tmp_path / "much", 4000)
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)(TEXTS[3])["input_ids"]])
    losses = [
        float(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids, labels=ids).loss.detach())
        for folder in (base, tmp_path / "much")
    ]
    assert losses[1] < losses[0]


def test_a_student_that_says_what_its_teacher_does_is_no_nat_away(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [encode(tokenizer, TURN, answer) for answer in ("stop", "go on", "wait")]
    train(base, rows, replace(SETTINGS, learning_rate=1e-9), tmp_path / "adapter", lambda *_: None)
    own = [replace(row, soft=_odds(base, row)) for row in rows]
    found = held_out(base, tmp_path / "adapter", [*own, rows[0]])
    assert [one.divergence for one in found[:3]] == [pytest.approx(0, abs=1e-2)] * 3
    assert [one.odds for one in found[:3]] == [pytest.approx(one.sure, abs=0.03) for one in found[:3]]
    assert (found[3].divergence, found[3].odds, found[3].sure) == (None, None, pytest.approx(found[0].sure, abs=0.03))
    wrong = [replace(own[0], soft=tuple(Target((5, 6), (0.5, 0.5), 0.0) for _ in own[0].soft or ()))]
    (far,) = held_out(base, tmp_path / "adapter", wrong)
    assert far.divergence is not None
    assert far.divergence > 1


def _odds(base: Path, row: Encoded) -> tuple[Target, ...]:
    """What the base itself gives, over its 20 likeliest tokens."""
    model = load_model(base)
    with torch.no_grad():
        odds = model(torch.tensor([row.input_ids])).logits[0, row.prompt_length - 1 : -1].float().softmax(-1)
    best = odds.topk(20)
    return tuple(
        Target(tuple(ids), tuple(own), max(0.0, 1 - sum(own)))
        for ids, own in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )


def made(kind: str, verdicts: Sequence[float], held: Sequence[Held], report: Any = None) -> Student:
    return Student(
        "half", kind, 90.0, 512.0, 40, ("a", "b"), 0.9, 0.25, 0.5, tuple(verdicts), (0.75,) * len(verdicts),
        tuple(held), report,
    )  # fmt: skip


def test_hard_and_soft_stand_beside_each_other_with_their_difference() -> None:
    known, unknown = Held(0.5, 0.75, True, 0.75), Held(None, 0.75, False, None)
    report = {
        "rows_soft": 2, "rows_hard": 1, "coverage": 0.875, "soft": {"start": 5, "inner": 2, "cross": 0},
        "hard": {"end_of_turn": 3, "little_mass": 1}, "mass_kept": 0.95, "unseen": 0.01,
    }  # fmt: skip
    hard = made("adapter", [1.0] * 50 + [0.0] * 50, [replace(known, divergence=0.75)] * 90 + [unknown] * 10)
    soft = made("soft", [1.0] * 60 + [0.0] * 40, [known] * 90 + [unknown] * 10, report)
    text = tables([hard, soft], seed=1)
    assert "| half | 2 / 1 | 87.5% | 5 | 2 | 0 | end_of_turn 3, little_mass 1 | 0.950 | 0.010 |" in text
    assert "| half | hard | 0.500 (100) | 0.750 | 0.150 | 0.000 | 0.900 | 0.250 | 0.500 | 2 | 40 | 512 | 1.5 |" in text
    assert "| half | soft | 0.600 (100) | 0.500 |" in text
    assert "| half | +0.100 (" in text
    assert "| 10 / 0 | 0.002 (McNemar, exact) | yes |" in text
    assert "| -0.250 (-0.250..-0.250) |" in text
    assert "| half | soft |" not in tables([hard], seed=1)


@pytest.mark.loop
@pytest.mark.timeout(900)
def test_a_real_engines_log_probabilities_reach_students(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM, proxy, log, distiller: all of it as in the benchmark, on a toy."""
    rows = lamps(360)
    build_toy(tmp_path / "toy", [row.messages[1]["content"] + (row.answer or "") for row in rows[:200]])
    (tmp_path / "lamps").mkdir()
    write_traffic(rows[:320], tmp_path / "lamps" / "train.jsonl")
    write_traffic(rows[320:], tmp_path / "lamps" / "test.jsonl")
    budget = Budget(taught=150, asked=150, later=40, holdout=20, epochs=4, mend_tokens=1000, learning_rate=1e-2)
    students = run(tmp_path / "toy", tmp_path / "lamps", budget, 1, tmp_path, lambda _: None)
    said = capsys.readouterr().out
    assert "asked 190, refused 0, stripped 190, kept 190; seen by a client 0, in the log 190" in said
    assert [one.kind for one in students] == ["adapter", "soft"] * 2
    for one in students[1::2]:
        assert one.report is not None
        assert one.report["coverage"] > 0.9
    assert all(row.divergence is not None for one in students for row in one.held)
