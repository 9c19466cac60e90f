import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.renaming import Renamed, renamed
from tests.proxy.test_usage import JSON, SPELLINGS


@given(st.dictionaries(st.text(), JSON, max_size=4), st.text(), st.data())
def test_the_model_changes_and_nothing_else(others: dict[str, Any], model: str, data: st.DataObject) -> None:
    whole = {**others, "model": "gpt-4o"}
    found = renamed(data.draw(st.sampled_from(SPELLINGS))(whole), lambda asked: model if asked == "gpt-4o" else None)
    assert found is not None
    assert json.loads(found.body) == {**whole, "model": model}
    assert (found.model, found.asked) == (model, "gpt-4o")


def test_a_key_that_is_spelled_with_escapes_is_the_same_key() -> None:
    assert renamed(b'{"mod\\u0065l":"a"}', lambda _: "b") == Renamed(b'{"mod\\u0065l":"b"}', "b", "a")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"a":1}', b'{"model":7}', b'{"model":"a"} x', b'{"model":"\xff"}'])
def test_what_names_no_model_stays(body: bytes) -> None:
    assert renamed(body, lambda _: "b") is None


def test_what_is_not_renamed_stays() -> None:
    assert renamed(b'{"model":"a"}', lambda _: None) is None
