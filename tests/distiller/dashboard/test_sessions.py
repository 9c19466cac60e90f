import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.dashboard.sessions import HOURS, OPERATOR, VIEWER, Sessions


def test_a_cookie_is_its_session_until_it_expires() -> None:
    now = 1000.0
    sessions = Sessions(lambda: now)
    session = sessions.start(VIEWER)
    cookie = sessions.cookie(session)
    assert sessions.read(cookie) == session
    now += HOURS * 3600 - 1
    assert sessions.read(cookie) == session
    now += 1
    assert sessions.read(cookie) is None


def test_what_was_ended_stays_ended_however_many_follow() -> None:
    now = 1000.0
    sessions = Sessions(lambda: now)
    session, other = sessions.start(OPERATOR), sessions.start(OPERATOR)
    sessions.end(session)
    for _ in range(2000):
        sessions.end(sessions.start(VIEWER))
    assert sessions.read(sessions.cookie(session)) is None
    assert sessions.read(sessions.cookie(other)) == other


def test_another_process_knows_none_of_them() -> None:
    sessions = Sessions()
    assert Sessions().read(sessions.cookie(sessions.start(OPERATOR))) is None


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_no_text_is_a_session(text: str) -> None:
    assert Sessions().read(text) is None


@given(st.integers(0, 10**6), st.sampled_from("ABCdef019-_"))
def test_a_changed_cookie_makes_nobody_somebody_else(place: int, letter: str) -> None:
    sessions = Sessions()
    session = sessions.start(VIEWER)
    cookie = sessions.cookie(session)
    at = place % len(cookie)
    found = sessions.read(cookie[:at] + letter + cookie[at + 1 :])
    assert found in (None, session)  # The same where it is the same letter, or only bits differ that base 64 ignores.


def test_a_forms_token_is_its_sessions_alone() -> None:
    sessions = Sessions()
    one, other = sessions.start(OPERATOR), sessions.start(OPERATOR)
    assert sessions.carries(one, sessions.form_token(one))
    assert not sessions.carries(one, sessions.form_token(other))
    assert not sessions.carries(one, "")
    assert not sessions.carries(one, "\udcff ü")
    assert sessions.form_token(one) not in sessions.cookie(one)


def test_a_cookie_holds_no_more_than_who_and_how_long() -> None:
    sessions = Sessions(lambda: 0.0)
    session = sessions.start(VIEWER)
    told = sessions.cookie(session).partition(".")[0]
    assert json.loads(base64.urlsafe_b64decode(told + "==")) == [session.id, VIEWER, HOURS * 3600]


def test_a_note_is_told_once_to_its_own_session() -> None:
    sessions = Sessions()
    one, other = sessions.start(OPERATOR), sessions.start(OPERATOR)
    sessions.tell(one, "promoted")
    assert sessions.told(other) == ""
    assert [sessions.told(one), sessions.told(one)] == ["promoted", ""]


def test_notes_nobody_reads_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distiller.dashboard.sessions._MOST_NOTES", 2)
    sessions = Sessions()
    three = [sessions.start(OPERATOR) for _ in range(3)]
    for each in three:
        sessions.tell(each, "done")
    assert [sessions.told(each) for each in three] == ["", "done", "done"]
