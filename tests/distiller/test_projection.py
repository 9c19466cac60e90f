"""The projection on toy tokenizers, and against everything a tiny teacher could have written."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from distiller.projection import (
    ANSWER_DIFFERS,
    CROSS,
    END_OF_TURN,
    IMPLAUSIBLE,
    INNER,
    LITTLE_MASS,
    NOT_BYTE_EXACT,
    OTHER_TOKEN,
    START,
    TOO_DEEP,
    Projection,
    Target,
    project,
    report,
)
from distiller.token_bytes import TokenBytes
from proxy.logprobs import Position
from tests.distiller.toy import build_tokenizer, build_toy

LONG = ["the printer is unhappy", "unhappy printers happen", "नमस्ते दुनिया", "fire 😀🔥 漢字 漢字", "😀", "😀"]
SHORT = ["pri nt er", "un hap py", "the is"]
END = 2


class Side:
    """A tokenizer and its byte view."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bytes = TokenBytes(self.tokenizer)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def pieces(self, text: str) -> list[bytes]:
        return [self.bytes.piece(token) for token in self.ids(text)]

    def distribution(self, target: Target) -> dict[bytes, float]:
        pairs = zip(target.ids, target.probabilities, strict=True)
        return {self.bytes.piece(token): probability for token, probability in pairs}


def without_merges() -> Tokenizer:
    """A tokenizer whose every token is one byte."""
    told = json.loads(build_tokenizer([]).backend_tokenizer.to_str())
    vocabulary = told["model"]["vocab"].items()
    told["model"] |= {"merges": [], "vocab": {piece: token for piece, token in vocabulary if token < 3 + 256}}
    return Tokenizer.from_str(json.dumps(told))


LONG_SIDE, SHORT_SIDE = Side(build_tokenizer(LONG).backend_tokenizer), Side(build_tokenizer(SHORT).backend_tokenizer)
BYTES_SIDE = Side(without_merges())
SIDES = {"long": LONG_SIDE, "short": SHORT_SIDE, "bytes": BYTES_SIDE}


def position(token: bytes, known: Mapping[bytes, float]) -> Position:
    """One that was reported with probabilities `known`, itself among them."""
    top = tuple((other, math.log(probability)) for other, probability in known.items())
    return Position(token, math.log(known[token]), top)


def projected(teacher: Sequence[Position], text: str, student: Side, **options: float) -> Projection:
    return project(teacher, [*student.ids(text), END], text.encode(), student.bytes, **options)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[Position], Side, Side]:
    """A text in mixed scripts as one tokenizer wrote it, with random alternatives, and a student's tokenizer."""
    words = ["the", " printer", " unhappy", "happen", " नमस्ते", " दुनिया", "😀", "🔥", "漢字", "é", "\n", "7", '{"a":']
    text = "".join(draw(st.lists(st.sampled_from(words), min_size=1, max_size=6)))
    teacher, student = SIDES[draw(st.sampled_from(sorted(SIDES)))], SIDES[draw(st.sampled_from(sorted(SIDES)))]
    vocabulary = [piece for token in range(3, 400) if (piece := teacher.bytes.piece(token))]
    positions = []
    for token in teacher.pieces(text):
        others = draw(st.lists(st.sampled_from(vocabulary), max_size=6, unique=True))
        weights = draw(st.lists(st.floats(0.01, 1), min_size=len(others), max_size=len(others)))
        own, unseen = draw(st.floats(0.05, 1)), draw(st.sampled_from([0.0, 0.001, 0.5]))
        scale = 1 / (sum(weights) + own + unseen)
        known = dict(zip(others, (weight * scale for weight in weights), strict=True)) | {token: own * scale}
        positions.append(position(token, known))
    return text, positions, teacher, student


@given(answers())
def test_every_target_is_a_distribution_that_holds_what_was_written(case):
    text, teacher, _, student = case
    projection = projected(teacher, text, student, min_mass=0.0)
    ids = [*student.ids(text), END]
    assert len(projection.targets) == len(projection.kinds) == len(ids)
    for token, target, kind in zip(ids, projection.targets, projection.kinds, strict=True):
        assert (target is None) == (kind not in (START, INNER, CROSS))
        if target is not None:
            assert sum(target.probabilities) + target.tail == pytest.approx(1, abs=1e-9)
            assert min(*target.probabilities, target.tail) >= 0
            assert len(set(target.ids)) == len(target.ids)
            assert dict(zip(target.ids, target.probabilities, strict=True))[token] > 0
    assert projection.kinds[-1] == END_OF_TURN


@given(answers())
def test_for_the_teachers_own_tokenizer_nothing_changes(case):
    text, teacher, own, _ = case
    projection = projected(teacher, text, own, min_mass=0.0)
    assert set(projection.kinds[:-1]) == {START}
    for target, one in zip(projection.targets[:-1], teacher, strict=True):
        expected = {other: pytest.approx(math.exp(logprob)) for other, logprob in one.top}
        assert own.distribution(target) == expected
        assert target.tail == pytest.approx(1 - sum(math.exp(logprob) for _, logprob in one.top), abs=1e-9)


@given(answers())
def test_a_report_counts_every_token_once(case):
    text, teacher, _, student = case
    rows = [projected(teacher, text, student), None, projected([], text, student)]
    counted = report(rows)
    assert sum(counted.soft.values()) + sum(counted.hard.values()) == 2 * (len(student.ids(text)) + 1)
    assert 0 <= counted.coverage <= 1
    assert counted.rows_soft + counted.rows_hard == 3
    assert json.loads(json.dumps(asdict(counted))) == asdict(counted)


def test_a_report_in_figures():
    soft = Target((5, 6), (0.5, 0.3), 0.2)
    rows = [
        Projection((soft, None, None), (INNER, LITTLE_MASS, END_OF_TURN), (0.1, 0.3)),
        Projection((None,), (END_OF_TURN,), ()),
        None,
    ]
    assert asdict(report(rows)) == {
        "rows_soft": 1,
        "rows_hard": 2,
        "soft": {START: 0, INNER: 1, CROSS: 0},
        "hard": {END_OF_TURN: 2, LITTLE_MASS: 1},
        "coverage": 0.5,
        "mass_kept": pytest.approx(0.8),
        "unseen": pytest.approx(0.2),
    }
    assert (report([]).coverage, report([]).mass_kept, report([]).unseen) == (0.0, None, None)


def test_a_start_keeps_the_unseen_in_the_tail():
    target = projected([position(b"fire", {b"fire": 0.6, b"fit": 0.1, b"x": 0.2})], "fire", BYTES_SIDE).targets[0]
    assert BYTES_SIDE.distribution(target) == {b"f": pytest.approx(0.7), b"x": pytest.approx(0.2)}
    assert target.tail == pytest.approx(0.1)


def test_inside_only_what_agrees_counts_and_the_unseen_keeps_its_share():
    known = {b"fire": 0.5, b"fit": 0.2, b"f": 0.1, b"x": 0.1}
    projection = projected([position(b"fire", known)], "fire", BYTES_SIDE)
    assert projection.kinds == (START, INNER, INNER, INNER, END_OF_TURN)
    second, third = projection.targets[1:3]
    # Of what agrees with "f" 1/8 ends there; a tenth of everything was not reported.
    assert BYTES_SIDE.distribution(second) == {b"i": pytest.approx(0.9 * 7 / 8)}
    assert BYTES_SIDE.distribution(third) == {b"r": pytest.approx(0.9 * 5 / 7), b"t": pytest.approx(0.9 * 2 / 7)}


def test_across_the_written_alternative_goes_on_and_the_others_stay():
    assert LONG_SIDE.pieces(" unhappy") == [b" unhappy"]
    teacher = [position(b" un", {b" un": 0.8, b"x": 0.1}), position(b"happy", {b"happy": 0.9, b"x": 0.05})]
    projection = projected(teacher, " unhappy", LONG_SIDE)
    assert projection.kinds[0] == CROSS
    found = LONG_SIDE.distribution(projection.targets[0])
    assert found.pop(b" unhappy") == pytest.approx(0.72)
    assert found.pop(b"x") == pytest.approx(0.1)
    assert list(found.values()) == [pytest.approx(0.04)]  # " unx", by its first token


@pytest.mark.parametrize(("tokens", "kind"), [(5, CROSS), (6, TOO_DEEP)])
def test_a_token_that_reaches_too_far_is_learned_from_the_text(tokens: int, kind: str):
    text = " printer"
    assert LONG_SIDE.pieces(text) == [text.encode()]
    written = [*(text[place].encode() for place in range(tokens - 1)), text[tokens - 1 :].encode()]
    teacher = [position(piece, {piece: 0.9}) for piece in written]
    assert projected(teacher, text, LONG_SIDE).kinds[0] == kind


def test_across_something_odd_is_learned_from_the_text():
    teacher = [position(b" un", {b" un": 0.9}), Position(b"happy", -9999.0, ((b"x", -0.1),))]
    assert projected(teacher, " unhappy", LONG_SIDE).kinds[0] == IMPLAUSIBLE


def test_an_emoji_split_over_tokens_is_followed():
    assert LONG_SIDE.pieces("😀") == ["😀".encode()]
    whole = "😀".encode()
    teacher = [position(whole[:2], {whole[:2]: 0.9}), position(whole[2:], {whole[2:]: 0.8, b"\x9a\x80": 0.2})]
    target = projected(teacher, "😀", LONG_SIDE).targets[0]
    assert LONG_SIDE.distribution(target)[whole] == pytest.approx(0.72)
    back = projected([position(whole, {whole: 0.75, "🔥".encode(): 0.25})], "😀", BYTES_SIDE)
    assert back.kinds == (START, INNER, INNER, INNER, END_OF_TURN)
    assert BYTES_SIDE.distribution(back.targets[2]) == {b"\x98": pytest.approx(0.75), b"\x94": pytest.approx(0.25)}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"logprob": -9999.0, "top": ((b"x", -0.01),)}, IMPLAUSIBLE),
        ({"logprob": -10.0, "top": ((b"x", -0.01),)}, IMPLAUSIBLE),
        ({"logprob": float("nan"), "top": ()}, IMPLAUSIBLE),
        ({"logprob": 0.5, "top": ((b"fire", 0.5),)}, IMPLAUSIBLE),
        ({"logprob": 9e9, "top": ((b"fire", 9e9),)}, IMPLAUSIBLE),
        ({"top": ((b"fire", math.log(0.9)), (b"x", math.log(0.2)))}, IMPLAUSIBLE),
        ({"logprob": math.log(0.1), "top": ((b"fire", math.log(0.1)), (b"x", math.log(0.3)))}, LITTLE_MASS),
        ({"top": ((b"fire", math.log(0.9)), (b"x", -9999.0))}, START),
        ({"logprob": math.log(0.05), "top": ((b"x", math.log(0.9)),)}, START),
        ({"logprob": math.log(0.9), "top": ()}, START),
        ({"top": ((b"fire", math.log(0.9)), (b"fire", math.log(0.9)))}, START),
        ({"top": ((b"fire", math.log(0.9)), (b"", math.log(0.1)))}, START),
    ],
)
def test_what_is_reported_is_believed_within_reason(change, kind: str):
    teacher = replace(position(b"fire", {b"fire": 0.9}), **change)
    assert projected([teacher], "fire", BYTES_SIDE).kinds[0] == kind


def test_probabilities_rounded_above_one_are_scaled():
    target = projected([position(b"a", {b"a": 0.904, b"b": 0.1})], "a", BYTES_SIDE).targets[0]
    assert BYTES_SIDE.distribution(target) == {b"a": pytest.approx(0.904 / 1.004), b"b": pytest.approx(0.1 / 1.004)}
    assert target.tail == pytest.approx(0, abs=1e-12)


def test_a_path_to_another_token_is_learned_from_the_text():
    """The student's own tokens for a text need not be the ones its tokenizer would choose."""
    teacher = [position(b" unhappy", {b" unhappy": 0.8, b" ": 0.1})]
    ids = [*BYTES_SIDE.ids(" "), *LONG_SIDE.ids("unhappy")]
    projection = project(teacher, ids, b" unhappy", LONG_SIDE.bytes)
    assert projection.kinds[0] == OTHER_TOKEN
    assert projection.targets[0] is None


@pytest.mark.parametrize(
    ("written", "rendered"), [(" \n fire \n", "fire"), (" fire", " fire"), ("\n\nfire ", "\nfire")]
)
def test_trimmed_white_space_is_passed_over(written: str, rendered: str):
    teacher = [position(piece, {piece: 0.9}) for piece in SHORT_SIDE.pieces(written)]
    kinds = projected(teacher, rendered, BYTES_SIDE).kinds
    assert set(kinds[:-1]) <= {START, INNER}


@pytest.mark.parametrize("written", ["", "Fire", "fire!", "a fire", "fi"])
def test_an_answer_that_differs_is_learned_from_the_text(written: str):
    teacher = [position(piece, {piece: 0.9}) for piece in SHORT_SIDE.pieces(written)]
    assert projected(teacher, "fire", BYTES_SIDE).kinds == (*[ANSWER_DIFFERS] * 4, END_OF_TURN)


def test_tokens_that_do_not_spell_the_answer_are_learned_as_they_are():
    teacher = [position(b"fire", {b"fire": 0.9})]
    projection = project(teacher, BYTES_SIDE.ids("fine"), b"fire", BYTES_SIDE.bytes)
    assert projection.kinds == (NOT_BYTE_EXACT,) * 4


def test_special_tokens_of_the_teacher_write_nothing():
    teacher = [position(b"a", {b"a": 0.9}), Position(b"", -0.1, ()), position(b"b", {b"b": 0.9})]
    assert projected(teacher, "ab", BYTES_SIDE).kinds == (START, START, END_OF_TURN)


def test_an_end_of_turn_that_the_server_spells_out_is_no_text():
    """As vLLM does: the last token is one the answer lacks, and it stands among the alternatives too."""
    end = b"<|im_end|>"
    teacher = [
        position(b"a", {b"a": 0.8, end: 0.15}),
        position(b"b", {b"b": 0.9}),
        position(end, {end: 0.7, b"c": 0.2}),
    ]
    projection = projected(teacher, "ab", BYTES_SIDE)
    assert projection.kinds == (START, START, END_OF_TURN)
    assert BYTES_SIDE.distribution(projection.targets[0]) == {b"a": pytest.approx(0.8)}
    assert projection.targets[0].tail == pytest.approx(0.2)
    written = [position(b"ab", {b"ab": 0.9}), position(b"<x>", {b"<x>": 0.9})]
    assert projected(written, "ab<x>", BYTES_SIDE).kinds == (START, INNER, START, INNER, INNER, END_OF_TURN)


@pytest.mark.parametrize(("before", "kind"), [((), START), ((Position(b"", -0.7, ()),), IMPLAUSIBLE)])
def test_a_character_that_the_server_told_with_its_last_token_is_learned_from_the_text(before, kind: str):
    teacher = [*before, position("é".encode(), {"é".encode(): 0.99})]
    assert projected(teacher, "é", BYTES_SIDE).kinds[0] == kind
    assert projected([*before, position(b"e", {b"e": 0.99})], "e", BYTES_SIDE).kinds[0] == START


class TinyTeacher:
    """A real, random model, of which everything it could write is enumerated."""

    def __init__(self, folder: Path, side: Side) -> None:
        """Without merges in `side`, it writes bytes only."""
        build_toy(folder, LONG)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.side = side
        self.seen: dict[tuple[int, ...], dict[int, float]] = {}

    def next(self, context: tuple[int, ...]) -> dict[int, float]:
        """The probability of every token after the beginning of a turn and `context`."""
        if context not in self.seen:
            with torch.no_grad():
                logits = self.model(torch.tensor([[1, *context]])).logits[0, -1, : self.side.tokenizer.get_vocab_size()]
            self.seen[context] = dict(enumerate(logits.double().softmax(-1).tolist()))
        return self.seen[context]

    def begins(self, context: tuple[int, ...], text: bytes) -> float:
        """The probability that what it writes after `context` begins with `text`, whatever tokens it takes."""
        total = 0.0
        for token, probability in self.next(context).items():
            piece = self.side.bytes.piece(token)
            if piece is not None and piece.startswith(text):
                total += probability
            elif piece is not None and text.startswith(piece):
                total += probability * self.begins((*context, token), text[len(piece) :])
        return total

    def positions(self, ids: Sequence[int]) -> list[Position]:
        """What it reports for an answer, all alternatives included."""
        pieces = self.side.bytes.piece
        told = []
        for place, token in enumerate(ids):
            odds = self.next(tuple(ids[:place]))
            top = tuple((pieces(other) or b"", math.log(probability)) for other, probability in odds.items())
            told.append(Position(pieces(token), math.log(odds[token]), top))
        return told


@pytest.fixture(scope="module")
def long_teacher(tmp_path_factory) -> TinyTeacher:
    return TinyTeacher(tmp_path_factory.mktemp("long"), LONG_SIDE)


@pytest.fixture(scope="module")
def byte_teacher(tmp_path_factory) -> TinyTeacher:
    return TinyTeacher(tmp_path_factory.mktemp("bytes"), BYTES_SIDE)


def test_starts_are_exact_for_tokens_no_longer_than_the_teachers(long_teacher):
    text = "the printer नमस्ते"
    ids = long_teacher.side.ids(text)
    projection = projected(long_teacher.positions(ids), text, BYTES_SIDE, min_mass=0.0)
    places = [place for place, kind in enumerate(projection.kinds) if kind == START]
    assert len(places) == len(ids)
    for context, place in enumerate(places):
        found = BYTES_SIDE.distribution(projection.targets[place])
        truth = {byte: long_teacher.begins(tuple(ids[:context]), byte) for byte in found}
        assert found == {byte: pytest.approx(probability) for byte, probability in truth.items()}
        special = sum(long_teacher.next(tuple(ids[:context]))[token] for token in range(3))
        assert projection.targets[place].tail == pytest.approx(special)


def test_insides_miss_no_more_than_the_tail_and_other_spellings(long_teacher):
    """The teacher could have spelled what is read with shorter tokens; nothing was reported of that."""
    text = " unhappy दुनिया"
    ids = long_teacher.side.ids(text)
    projection = projected(long_teacher.positions(ids), text, BYTES_SIDE, min_mass=0.0)
    at = 0
    for context, piece in enumerate(long_teacher.side.pieces(text)):
        before = tuple(ids[:context])
        odds = [(long_teacher.side.bytes.piece(token) or b"", odd) for token, odd in long_teacher.next(before).items()]
        special = sum(odd for other, odd in odds if not other)
        for read in range(1, len(piece)):
            begun, target = piece[:read], projection.targets[at + read]
            found = BYTES_SIDE.distribution(target)
            whole = long_teacher.begins(before, begun)
            truth = {byte: long_teacher.begins(before, begun + byte) / whole for byte in found}
            direct = sum(odd for other, odd in odds if other.startswith(begun))
            ends = sum(odd for other, odd in odds if other == begun)
            assert target.tail == pytest.approx(1 - (1 - special) * (1 - ends / direct))
            missed = sum(abs(found[byte] - truth[byte]) for byte in found)
            assert missed <= target.tail + 2 * (1 - direct / whole) + 1e-9
        at += len(piece)
    assert projection.kinds.count(INNER) > 10


def test_across_the_written_token_is_exact(byte_teacher):
    """A teacher that writes bytes has one way to write a text, so the probability of the text is that of its path."""
    text = "the happy"
    ids = byte_teacher.side.ids(text)
    student = SHORT_SIDE
    projection = projected(byte_teacher.positions(ids), text, student, min_mass=0.0)
    at = crossed = 0
    for target, kind, piece in zip(projection.targets, projection.kinds, student.pieces(text), strict=False):
        if kind == CROSS:
            truth = byte_teacher.begins(tuple(ids[:at]), piece)
            assert student.distribution(target)[piece] == pytest.approx(truth)
            crossed += 1
        at += len(piece)
    assert crossed > 1
