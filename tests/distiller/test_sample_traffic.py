import json
import re
from collections import Counter
from pathlib import Path

import pytest

from distiller import sample_traffic as module
from distiller.sample_traffic import CONCERNS, LABELS, NUMBERS, TRIAGE, UNCLEAR, sample_traffic, write_traffic
from proxy.errors import BadInput
from proxy.traffic_file import Row, read_traffic

ROWS = 3000


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return sample_traffic(ROWS, seed=7)


def user(row: Row) -> str:
    text = row.messages[-1]["content"]
    assert isinstance(text, str)
    return text


def test_no_input_comes_twice(rows: list[Row]) -> None:
    assert len(rows) == len({user(row) for row in rows}) == ROWS


def test_a_seed_gives_the_same_rows_and_another_seed_others(rows: list[Row]) -> None:
    assert sample_traffic(100, seed=7) == rows[:100]
    assert not {user(row) for row in sample_traffic(100, seed=8)} & {user(row) for row in rows[:100]}


def test_the_tasks_take_turns_with_all_labels_present(rows: list[Row]) -> None:
    labels = Counter(row.answer for row in rows[::2])
    assert set(labels) == set(LABELS)
    assert min(labels.values()) > 0.1 * ROWS / 2
    assert all(row.answer and row.answer.startswith('{"item":') for row in rows[1::2])


def test_texts_have_the_promised_length_and_no_grammar_left(rows: list[Row]) -> None:
    assert {len(user(row).split()) for row in rows[::2]} <= set(range(15, 31))
    assert {len(user(row).split()) for row in rows[1::2]} <= set(range(12, 26))
    assert not any(re.search(r"[{}|]|  ", user(row)) for row in rows)


def test_an_order_is_copied_from_its_line(rows: list[Row]) -> None:
    for row in rows[1::2]:
        order = json.loads(row.answer or "")
        assert row.answer == json.dumps(order, separators=(",", ":"))
        spelled = dict(enumerate(NUMBERS, start=2)).get(order["quantity"], "-")
        assert re.search(rf"\b({order['quantity']}|{spelled}) {order['item']}\b", user(row))
        assert re.search(rf"\b{order['city']}\b", user(row))
    assert any(re.search(r"\b(two|nine|twelve)\b", user(row)) for row in rows[1::2])


def pattern(template: str) -> str:
    """A regular expression for the texts of a template; a named slot matches any words."""
    made = re.sub(r"[.?]", lambda found: "\\" + found[0], template)
    while match := re.search(r"\{([^{}]*)\}", made):
        inner = match[1]
        choice = r"[\w ]+?" if inner in module.WORDS else "(?:" + inner.replace("|", "\x00") + ")"
        made = made[: match.start()] + choice + made[match.end() :]
    return made.replace("\x00", "|").replace(" (?:|", " ?(?:|")


NAMED = {label: re.compile("|".join(map(pattern, texts)), re.IGNORECASE) for label, texts in CONCERNS.items()}
SOLVED = re.compile("|".join(module.SOLVED))


def test_the_answer_follows_the_policy_of_the_prompt(rows: list[Row]) -> None:
    seen: Counter[str] = Counter()
    for row in rows[::2]:
        text = user(row)
        solved = SOLVED.search(text)
        named = [label for label in LABELS if NAMED[label].search(text[solved.end() :] if solved else text)]
        if not named:
            seen["unclear"] += 1
            continue
        assert row.answer == named[0], text
        seen["solved" if solved else f"{len(named)} open"] += 1
    assert 0.03 < seen["unclear"] / (ROWS / 2) < 0.07
    assert min(seen["solved"], seen["2 open"]) > 0.05 * ROWS / 2


def test_the_coin_of_unclear_tickets_falls_on_both_sides(rows: list[Row]) -> None:
    for labels, template in UNCLEAR:
        unclear = re.compile(pattern(template), re.IGNORECASE)
        assert {row.answer for row in rows[::2] if unclear.search(user(row))} == set(labels)


def test_only_the_last_line_of_a_system_prompt_varies(rows: list[Row]) -> None:
    prompts = [row.messages[0]["content"].rsplit("\n", 1) for row in rows]
    assert len({head for head, _ in prompts}) == 2
    assert len({tail for _, tail in prompts}) > 0.99 * ROWS
    assert prompts[0][0] == TRIAGE
    assert re.fullmatch(r"Today is 2026-03-02\. You are assisting \w+ \w+, case \d{5}\.", prompts[0][1])
    assert "Today is 2026-03-16." in prompts[-1][1]


def test_a_grammar_that_runs_dry_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ticket", lambda rng: ("always the same", "billing"))
    with pytest.raises(BadInput, match="no more than 2 distinct texts"):
        sample_traffic(5, seed=0)


def test_written_traffic_is_read_back_as_it_was(rows: list[Row], tmp_path: Path) -> None:
    tools = ({"type": "function", "function": {"name": "book"}},)
    calls = ({"id": "call_1", "type": "function", "function": {"name": "book", "arguments": '{"seats":2}'}},)
    ask = rows[0].messages
    special = [
        Row(ask, None, calls, "sample", tools),
        Row(ask, "I book: ü", calls, "sample", tools),
        Row(ask, '[{"name":"book","arguments":{}}]', None, "sample", tools),
    ]
    path = tmp_path / "sample.jsonl"
    write_traffic([*rows[:50], *special], path)
    assert read_traffic(path) == [*rows[:50], *special]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["source"] == "stillroom sample"
