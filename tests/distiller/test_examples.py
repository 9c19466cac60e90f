import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.examples import (
    Encoded,
    completion_tokens,
    encode,
    pack,
    pack_in_halves,
    render_prompt,
    share,
    soften,
    split,
)  # fmt: skip
from distiller.projection import END_OF_TURN, START
from distiller.token_bytes import TokenBytes
from proxy.errors import BadInput
from proxy.logprobs import Position
from tests.distiller.toy import TEMPLATE, build_tokenizer

MESSAGES = [{"role": "system", "content": ""}, {"role": "user", "content": "The printer is on fire"}]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["The printer is on fire", "hardware", "billing"])


def test_prompt_and_completion_are_the_rendered_conversation(tokenizer):
    encoded = encode(tokenizer, MESSAGES, "hardware")
    assert tokenizer.decode(encoded.input_ids) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nThe printer is on fire<|im_end|>\n"
        "<|im_start|>assistant\nhardware<|im_end|>"
    )
    assert tokenizer.decode(encoded.input_ids[: encoded.prompt_length]) == render_prompt(tokenizer, MESSAGES)


def test_the_completion_ends_with_the_token_the_engine_stops_at(tokenizer):
    assert encode(tokenizer, MESSAGES, "hardware").input_ids[-1] == tokenizer.eos_token_id


@given(answer=st.text(alphabet='ab{}" \n\té漢', max_size=20))
def test_any_answer_survives(tokenizer, answer: str):
    encoded = encode(tokenizer, MESSAGES, answer)
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length : -1]) == answer


def test_an_answer_that_spells_a_special_token_is_refused(tokenizer):
    with pytest.raises(BadInput, match="special token"):
        encode(tokenizer, MESSAGES, "hard<|im_end|>ware")


@pytest.mark.parametrize(
    ("was", "becomes"),
    [("{{ m['content'] }}", "{{ m['content'] | upper }}"), ("<|im_end|>\n{% endfor %}", "END\n{% endfor %}")],
)
def test_a_template_that_does_not_fit_is_refused(was: str, becomes: str):
    with pytest.raises(BadInput, match="chat template"):
        encode(build_tokenizer(["hardware"], TEMPLATE.replace(was, becomes)), MESSAGES, "hardware")


def test_a_softened_row_has_a_target_for_every_token_of_the_answer(tokenizer):
    hard = encode(tokenizer, MESSAGES, "hardware fire")
    tokens = TokenBytes(tokenizer.backend_tokenizer)
    told = [Position(word, math.log(0.9), ((word, math.log(0.9)),)) for word in (b"hardware", b" fire")]
    row, projection = soften(hard, "hardware fire", told, tokens)
    assert (row.input_ids, row.prompt_length) == (hard.input_ids, hard.prompt_length)
    assert row.soft == projection.targets
    assert projection.kinds == (START, START, END_OF_TURN)
    completion = hard.input_ids[hard.prompt_length :]
    assert [target.ids for target in row.soft[:-1]] == [(token,) for token in completion[:-1]]
    assert hard.soft is None


def test_log_probabilities_of_another_answer_soften_nothing(tokenizer):
    hard = encode(tokenizer, MESSAGES, "hardware")
    row, _ = soften(hard, "hardware", [Position(b"billing", -0.1, ())], TokenBytes(tokenizer.backend_tokenizer))
    assert set(row.soft) == {None}


def test_packing_puts_each_row_where_it_fits_best():
    assert pack([5, 7, 3, 2, 1], budget=10) == [[1, 2], [0, 3, 4]]


def test_packing_reports_rows_that_do_not_fit():
    with pytest.raises(BadInput, match=r"2 rows exceed 10 tokens \(longest 30\)"):
        pack([3, 30, 11], budget=10)


@given(st.lists(st.integers(1, 50), max_size=60))
def test_packing_places_each_row_once_within_the_budget(lengths: list[int]):
    steps = pack(lengths, budget=50)
    assert sorted(index for step in steps for index in step) == list(range(len(lengths)))
    totals = sorted(sum(lengths[index] for index in step) for step in steps)
    assert all(total <= 50 for total in totals)
    # No two steps would fit into one: otherwise best fit would have joined them.
    assert len(totals) < 2 or totals[0] + totals[1] > 50


STEPS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=12)


@given(STEPS, st.integers(1, 5))
def test_processes_share_a_step_so_that_their_mean_is_its_mean(sizes: list[tuple[int, int]], processes: int):
    rows = [Encoded([index] * (prompt + answer), prompt) for index, (prompt, answer) in enumerate(sizes)]
    shares = [share(rows, process, processes) for process in range(processes)]
    counted = [row for own, weight in shares if weight for row in own]
    assert sorted(counted, key=lambda row: row.input_ids[0]) == rows
    assert all(own for own, _ in shares)
    # The loss of a token be its row's index: means of means, weighted, are the mean over all tokens.
    weighted = [mean_loss(own) * weight for own, weight in shares]
    assert sum(weighted) / processes == pytest.approx(mean_loss(rows))


@given(st.lists(st.integers(1, 64), max_size=60), st.integers(64, 65))
def test_halves_make_steps_within_the_budget(lengths: list[int], budget: int):
    steps = pack_in_halves(lengths, budget)
    assert sorted(index for step in steps for index in step) == list(range(len(lengths)))
    assert all(step and sum(lengths[index] for index in step) <= budget for step in steps)
    assert steps == pack_in_halves(lengths, budget)


def test_steps_fall_into_halves():
    """Three rows of a third each would leave one lane idle half of the time."""
    lengths = [20] * 60
    longest = {max(sum(part) for part in halves(lengths, step)) for step in pack_in_halves(lengths, 64)}
    assert longest == {20}
    assert {max(sum(part) for part in halves(lengths, step)) for step in pack(lengths, 64)} == {40}


def halves(lengths: list[int], step: list[int]) -> list[list[int]]:
    parts = split([Encoded([0] * lengths[index], 1) for index in step], 2)
    return [[len(row.input_ids) for row in part] for part in parts]


@given(st.lists(st.integers(2, 40), min_size=1, max_size=12), st.integers(1, 5))
def test_parts_hold_every_row_once_and_none_is_empty(lengths: list[int], parts: int):
    rows = [Encoded([index] * length, 1) for index, length in enumerate(lengths)]
    found = split(rows, parts)
    assert sorted(row.input_ids[0] for part in found for row in part) == list(range(len(rows)))
    assert len(found) == min(parts, len(rows))
    assert all(found)


def mean_loss(rows: Sequence[Encoded]) -> float:
    return sum(row.input_ids[0] * completion_tokens([row]) for row in rows) / completion_tokens(rows)
