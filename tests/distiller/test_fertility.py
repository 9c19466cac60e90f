from pathlib import Path

import pytest

from distiller.curate import Recorded
from distiller.dataset import newest
from distiller.fertility import MOST, by_group, fertility, tokens
from proxy.log import Log
from tests.distiller.toy import build_tokenizer
from tests.logs import migrated
from tests.router.conftest import TASK, insert

TOKENIZER = build_tokenizer(["the parcel is late", "billing"])


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return migrated(tmp_path)


def rows(log: Log) -> list[Recorded]:
    return newest(log, TASK, 1000)[1][::-1]


def test_lengths_are_those_a_student_reads(log: Log) -> None:
    insert(log, ["the parcel is late", "the parcel is late, the parcel is late and it is late"])
    found = tokens(TOKENIZER, rows(log), 60)
    assert found is not None
    assert (found.rows, found.unreadable) == (2, 0)
    assert found.prompt.median < found.prompt.most_of <= found.prompt.most
    assert found.answer.most == len(TOKENIZER.encode("billing")) + 1
    assert found.too_long == 0
    least = tokens(TOKENIZER, rows(log), found.prompt.most)
    assert least is not None
    assert least.too_long == 1


def test_what_no_student_can_read_is_counted_apart(log: Log) -> None:
    insert(log, ["late", "lost"])
    (image,) = insert(log, ["x"], request='{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}')
    found = tokens(TOKENIZER, rows(log), 100)
    assert found is not None
    assert (found.rows, found.unreadable) == (3, 1)
    assert tokens(TOKENIZER, [row for row in rows(log) if row.exchange_id == image], 100) is None


def test_fertility_is_tokens_a_byte_beside_the_teachers(log: Log) -> None:
    insert(log, ["the parcel is late"], usage_source="provider", prompt_tokens=12, completion_tokens=2)
    insert(log, ["nobody counted this one"])
    found = fertility(log, TOKENIZER, rows(log))
    assert found is not None
    size = len("Say which queue.\nthe parcel is late")
    assert (found.rows, found.source) == (1, "provider")
    assert found.teacher_prompt == pytest.approx(12 / size)
    assert found.teacher_answer == pytest.approx(2 / 7)
    assert found.base_answer == pytest.approx(len(TOKENIZER.encode("billing")) / 7)
    assert found.base_prompt == pytest.approx(len(TOKENIZER.encode("Say which queue.\nthe parcel is late")) / size)


def test_estimates_are_named_and_used_only_where_no_provider_counted(log: Log) -> None:
    insert(log, ["late"], usage_source="estimated", prompt_tokens=5, completion_tokens=1)
    found = fertility(log, TOKENIZER, rows(log))
    assert found is not None
    assert found.source == "estimated"
    insert(log, ["lost"], usage_source="provider", prompt_tokens=5, completion_tokens=1)
    found = fertility(log, TOKENIZER, rows(log))
    assert found is not None
    assert (found.source, found.rows) == ("provider", 1)


def test_where_nobody_counted_nothing_is_known(log: Log) -> None:
    insert(log, ["late"])
    assert fertility(log, TOKENIZER, rows(log)) is None


def test_only_the_newest_are_looked_at(log: Log) -> None:
    insert(log, ["x"], usage_source="provider", prompt_tokens=5, completion_tokens=1)
    insert(log, [f"late {number}" for number in range(MOST)])
    assert fertility(log, TOKENIZER, rows(log)) is None
    assert fertility(log, TOKENIZER, rows(log)[:1]) is not None
    found = tokens(TOKENIZER, rows(log), 100)
    assert found is not None
    assert found.rows == MOST


def test_each_language_is_spelled_apart(log: Log) -> None:
    insert(log, ["the parcel is late"] * 2, "billing", lang="en")
    insert(log, ["पार्सल देर से है"], "billing", lang="hi")
    insert(log, ["nothing"], None, lang="hi")
    found = by_group(TOKENIZER, rows(log))
    assert list(found) == ["en", "hi"]
    assert (found["en"].rows, found["hi"].rows) == (2, 1)
    assert found["en"].user == len(TOKENIZER.encode("the parcel is late")) / 18
    assert found["hi"].user == 1.0  # It never saw a letter of it: every byte is a token.
    assert found["en"].answer == found["hi"].answer < 1
    assert by_group(TOKENIZER, rows(log)[:2]) == {}
