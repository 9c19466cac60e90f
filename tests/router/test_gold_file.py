import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import BadInput
from proxy.ids import ulid
from proxy.log import Log
from proxy.patterns import SECRETS_ONLY, Finder, Redaction
from proxy.redact import Redactor
from router.gold import ignored, score_gold
from router.gold_file import Imported, import_gold, read_gold
from tests.router.conftest import chat, insert
from tests.router.test_gold import candidate_of, shadowed, tell, verdicts

REDACTOR = Redactor(Redaction(emails=True))


def written(tmp_path: Path, *lines: Any) -> Path:
    file = tmp_path / "answers.jsonl"
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    file.write_bytes(b"".join(text + b"\n" for text in texts))
    return file


def asked(log: Log, body: dict[str, Any], **columns: Any) -> str:
    """An exchange of this request as it would have been recorded."""
    request, _ = REDACTOR.exchange(json.dumps(body).encode(), b"")
    return insert(log, ["x"], request=bytes(request).decode(), **columns)[0]


def answers(log: Log) -> dict[str, str]:
    return dict(log.query("SELECT exchange, answer FROM feedback WHERE answer IS NOT NULL"))


def everything(log: Log) -> list[tuple[Any, ...]]:
    return log.query("SELECT * FROM exchanges ORDER BY id")


def test_both_kinds_of_lines_join_the_feedback_of_every_tenant(log: Log, tmp_path: Path) -> None:
    (named,) = insert(log, ["one"], tenant="team")
    same = [*insert(log, ["two"]), *insert(log, ["two"], tenant="team"), *insert(log, ["two"], tenant="other")]
    (silent,) = insert(log, ["three"])
    file = written(
        tmp_path,
        {"exchange": named, "answer": "shipping"},
        {"request": {"model": "another", "messages": chat("two")}, "answer": "billing"},
        {"request": chat("not recorded"), "answer": "billing"},
        {"answer": "billing", "exchange": ulid()},
    )
    assert import_gold(log, file, REDACTOR) == Imported(4, 4, 4, (3, 4))
    assert answers(log) == {named: "shipping"} | dict.fromkeys(same, "billing")
    assert silent not in answers(log)
    assert ignored(log) == 0
    assert log.query(
        "SELECT count(*), count(DISTINCT tenant), bool_and(latency_ms IS NOT NULL AND reason = 'imported'), "
        "bool_and(request_headers = '[]' AND ts > now() - INTERVAL 1 HOUR) FROM exchanges WHERE path = '/v1/feedback'"
    ) == [(4, 2, True, True)]
    assert log.query("SELECT count(*) FROM spend") == [(0,)]


def test_the_same_file_again_changes_nothing_and_another_answer_counts_from_then_on(log: Log, tmp_path: Path) -> None:
    exchange, *others = insert(log, ["one", "two"])
    file = written(tmp_path, {"exchange": exchange, "answer": "a"}, {"request": chat("two"), "answer": "mail a@b.org"})
    assert import_gold(log, file, REDACTOR).new == 2
    before = everything(log)
    assert import_gold(log, file, REDACTOR) == Imported(2, 2, 0, ())
    assert everything(log) == before
    tell(log, exchange, answer="b")  # The client's own last word is not taken back by telling the file once more.
    assert import_gold(log, file, REDACTOR).new == 0
    assert answers(log)[exchange] == "b"
    (tmp_path / "other").mkdir()
    assert import_gold(log, written(tmp_path / "other", {"exchange": exchange, "answer": "c"}), REDACTOR).new == 1
    assert answers(log)[exchange] == "c"
    assert import_gold(log, file, REDACTOR).new == 1
    assert answers(log) == {exchange: "a", others[0]: "mail [EMAIL_1]"}


def test_what_is_told_is_what_verdicts_are_scored_on(log: Log, tmp_path: Path) -> None:
    candidate, exchange = candidate_of(log), shadowed(log, answer="shipping", teacher="billing")
    import_gold(log, written(tmp_path, {"request": chat("x"), "answer": "shipping"}), REDACTOR)
    assert score_gold(log, candidate) == 1
    ((gold,),) = log.query("SELECT gold FROM feedback")
    assert verdicts(log) == {exchange: (1.0, 1.0, 0.0, gold)}


def test_only_an_exchange_that_asked_exactly_this_is_meant(log: Log, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    plain, tooled = asked(log, {"messages": chat("x")}), asked(log, {"messages": chat("x"), "tools": tools})
    insert(log, ["x", "X", "x "], path="/v1/responses")
    insert(log, ["x"], status=500)
    insert(log, ["x"], request="[")
    for request, meant in (
        (chat("x"), {plain, tooled}),
        ({"messages": chat("x"), "tools": tools}, {tooled}),
        ({"messages": chat("x"), "tools": None, "temperature": 1}, {plain}),
        ({"messages": chat("x")[::-1]}, set()),
        (chat("x") * 2, set()),
    ):
        log.query("DELETE FROM exchanges WHERE path = '/v1/feedback'")
        import_gold(log, written(tmp_path, {"request": request, "answer": "billing"}), REDACTOR)
        assert set(answers(log)) == meant


def test_redacted_requests_are_found_whatever_else_was_redacted_in_them(log: Log, tmp_path: Path) -> None:
    text = "from ann@example.org to bob@example.org and ann@example.org"
    exchange = asked(log, {"user": "eve@example.org", "messages": chat(text)})
    other = asked(log, {"messages": chat("from ann@example.org to bob@example.org and bob@example.org")})
    file = written(tmp_path, {"request": chat(text), "answer": "to ann@example.org"})
    assert import_gold(log, file, REDACTOR) == Imported(1, 1, 1, ())
    assert answers(log) == {exchange: "to [EMAIL_1]"}
    assert other not in answers(log)
    assert not [row for row in everything(log) if "ann@example.org" in str(row)]


def test_who_is_named_in_the_request_is_named_in_the_answer_too(log: Log, tmp_path: Path) -> None:
    def people(texts: list[str]) -> Finder:
        told = {found for text in texts for found in re.findall(r"I am (\w+)", text)}
        return lambda text: (found.span() for found in re.finditer(r"\w+", text) if found[0] in told)

    redactor = Redactor(Redaction(names=True), people)
    request, _ = redactor.exchange(json.dumps({"messages": chat("I am Ann")}).encode(), b"{}")
    (exchange,) = insert(log, ["x"], request=bytes(request).decode())
    file = written(tmp_path, {"request": chat("I am Ann"), "answer": "Dear Ann"})
    assert import_gold(log, file, redactor) == Imported(1, 1, 1, ())
    assert answers(log) == {exchange: "Dear [NAME_1]"}
    assert not [row for row in everything(log) if "Ann" in str(row)]


def test_two_answers_to_one_exchange_are_refused_and_nothing_is_told(log: Log, tmp_path: Path) -> None:
    (exchange,) = insert(log, ["one"])
    file = written(
        tmp_path, {"exchange": exchange, "answer": "a"}, {"exchange": ulid(), "answer": "z"},
        {"request": chat("one"), "answer": "b"},
    )  # fmt: skip
    with pytest.raises(BadInput, match=f"lines 1 and 3 give exchange {exchange} two right answers"):
        import_gold(log, file, REDACTOR)
    assert answers(log) == {}
    file = written(tmp_path, *[{"exchange": exchange, "answer": "a"}] * 2)
    assert import_gold(log, file, REDACTOR) == Imported(2, 1, 1, ())


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"\xff", "not UTF-8"), (b'{"answer": "a", "answer": "b"}', "twice"),
        ([], "write"), ({"answer": "a"}, "write"), ({"exchange": ulid()}, "write"),
        ({"exchange": ulid(), "request": chat("x"), "answer": "a"}, "write"),
        ({"exchange": ulid(), "answer": "a", "score": 1}, "write"),
        ({"exchange": "17", "answer": "a"}, "exchange must"), ({"exchange": None, "answer": "a"}, "exchange must"),
        ({"exchange": ulid(), "answer": ""}, "answer must be"), ({"exchange": ulid(), "answer": {}}, "answer must be"),
        ({"exchange": ulid(), "answer": None}, "answer is null"), ({"request": chat("x"), "answer": 3}, "answer must"),
        ({"request": chat("x"), "answer": "\ud800"}, "half a character"),
        ({"request": [], "answer": "a"}, "request must be"), ({"request": "x", "answer": "a"}, "request must be"),
        ({"request": {"messages": ["x"]}, "answer": "a"}, "request must be"),
        ({"request": {"prompt": "x"}, "answer": "a"}, "request must be"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_before_anything_is_told(log: Log, tmp_path: Path, line: Any, why: str) -> None:
    (exchange,) = insert(log, ["one"])
    file = written(tmp_path, {"exchange": exchange, "answer": "a"}, line)
    with pytest.raises(BadInput, match=rf"answers\.jsonl, line 2: .*{why}"):
        import_gold(log, file, REDACTOR)
    assert answers(log) == {}


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(BadInput, match="cannot be read"):
            read_gold(file, REDACTOR)
    with pytest.raises(BadInput, match="is empty"):
        read_gold(written(tmp_path), REDACTOR)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0[@"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_lines_are_compared_by_what_was_asked_alone(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    file = written(
        tmp_path_factory.mktemp("gold"), *({"request": chat(text), "answer": answer} for text, answer in pairs)
    )
    lines = read_gold(file, Redactor(SECRETS_ONLY))
    assert [(line.number, line.answer) for line in lines] == list(enumerate((answer for _, answer in pairs), 1))
    asked = {text: line.asked for (text, _), line in zip(pairs, lines, strict=True)}
    assert [asked[text] for text, _ in pairs] == [line.asked for line in lines]
    assert len(set(asked.values())) == len(asked)
