import json

import httpx
import openai
import pytest

from proxy.errors import BadInput, Refused, StillroomError, Unavailable, envelope


@pytest.mark.parametrize("kind", [BadInput, Refused, Unavailable])
def test_every_shown_error_is_caught_in_one_place(kind: type[StillroomError]) -> None:
    with pytest.raises(StillroomError, match=r"^do this$"):
        raise kind("do this")


def test_the_official_client_reads_the_envelope() -> None:
    answer = httpx.Response(400, content=envelope('too "big"', "invalid_request_error", "body_too_large"))
    transport = httpx.MockTransport(lambda _: answer)
    with (
        httpx.Client(transport=transport) as http,
        openai.OpenAI(base_url="http://teacher/v1", api_key="sk-any", http_client=http) as client,
        pytest.raises(openai.BadRequestError, match='too "big"') as raised,
    ):
        client.models.list()
    assert (raised.value.type, raised.value.code, raised.value.param) == (
        "invalid_request_error",
        "body_too_large",
        None,
    )


def test_the_code_may_be_left_out() -> None:
    assert json.loads(envelope("m", "k")) == {"error": {"message": "m", "type": "k", "param": None, "code": None}}
