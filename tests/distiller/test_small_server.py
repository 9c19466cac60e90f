"""The server of small students: in this process for its wire, and as the real process that an Engine supervises."""

import asyncio
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import openai
import pytest

from distiller.embedding import Encoders
from distiller.generate import Generated
from distiller.predict import Predict, Prompt
from distiller.serving import Engine, EngineSettings, Golden, small_command
from distiller.small import load_small
from distiller.small_server import MOST_AT_ONCE, Worker, create_app
from router.candidates import ask
from tests.distiller.queues import QUEUES, asking, queue_rows, toy_encoder, toy_head
from tests.distiller.test_serving import running, until
from tests.router.conftest import route_to
from tests.servers import free_port, serving

USER = [{"role": "user", "content": "refund my money"}]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_encoder(tmp_path_factory.mktemp("encoder") / "toy")


@pytest.fixture(scope="module")
def head(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "small"
    toy_head(encoder, folder)
    return folder


@pytest.fixture(scope="module")
def url(encoder: Path, head: Path) -> Iterator[str]:
    encoders = Encoders([encoder])
    with serving(create_app(lambda folder: load_small(folder, encoders))) as found:
        assert asyncio.run(posted(found, "/load_lora_adapter", lora_name="s", lora_path=str(head)))[0] == 200
        yield found


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found


async def posted(url: str, path: str, **body: object) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.post(url + path, json=body) as response:
        return response.status, await response.text()


def test_the_official_client_reads_answer_log_probabilities_and_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="s", messages=USER, logprobs=True, top_logprobs=3, temperature=0, max_tokens=5
    )  # type: ignore[call-overload]
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("billing", "stop")
    (token,) = choice.logprobs.content
    assert bytes(token.bytes) == b"billing"
    assert token.top_logprobs[0].logprob == token.logprob
    assert {one.token for one in token.top_logprobs} == set(QUEUES)
    assert sum(math.exp(one.logprob) for one in token.top_logprobs) == pytest.approx(1)
    assert answer.usage.completion_tokens == 1
    assert answer.usage.prompt_tokens > 2
    assert [model.id for model in client.models.list()] == ["s"]


def test_the_official_client_reads_a_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="s", messages=USER, logprobs=True, stream=True, stream_options={"include_usage": True}
        )  # type: ignore[call-overload]
    )
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content for choice in choices) == "billing"
    assert [len(choice.logprobs.content) for choice in choices if choice.logprobs] == [1]
    assert chunks[-1].usage.completion_tokens == 1


async def test_a_student_is_asked_as_any_other(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        reply = await ask(http, route_to(url, candidate="s"), {"messages": USER})
    assert reply.text == "billing"
    assert 0.5 < reply.confidence <= 1
    assert reply.finish == "stop"


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "other"}, 404, "The model `other` does not exist"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "text"),
        ({"n": 2}, 400, "n:"),
        ({"top_logprobs": 3}, 400, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    ],
)
def test_what_cannot_be_answered_is_said_as_openai_does(
    client: openai.OpenAI, change: dict[str, object], status: int, said: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.post("/chat/completions", body={"model": "s", "messages": USER, **change}, cast_to=object)
    assert caught.value.status_code == status
    assert said in caught.value.message
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "invalid_request_error"


async def test_students_come_and_go(url: str, head: Path, tmp_path: Path) -> None:
    assert (await posted(url, "/load_lora_adapter", lora_name="s", lora_path=str(head)))[0] == 400
    status, text = await posted(url, "/load_lora_adapter", lora_name="t", lora_path=str(tmp_path / "none"))
    assert status == 404
    assert "there is no folder" in text
    status, text = await posted(url, "/load_lora_adapter", lora_name="t", lora_path=str(tmp_path))
    assert status == 400
    assert "holds no small student" in text
    assert (await posted(url, "/load_lora_adapter", lora_name="t", lora_path=str(head)))[0] == 200
    assert (await posted(url, "/unload_lora_adapter", lora_name="t"))[0] == 200
    assert (await posted(url, "/unload_lora_adapter", lora_name="t"))[0] == 404
    assert (await posted(url, "/chat/completions", model="t", messages=USER))[0] == 404
    assert (await posted(url, "/nothing"))[0] == 404


async def test_answers_do_not_depend_on_who_else_asks(url: str) -> None:
    rows = queue_rows()
    asked = [posted(url, "/chat/completions", model="s", messages=list(prompt)) for prompt, _ in rows]
    for (_, label), (status, text) in zip(rows, await asyncio.gather(*asked), strict=True):
        assert status == 200
        assert f'"content":"{label}"' in text


def counting(sizes: list[int], wait: threading.Event) -> Predict:
    def predict(prompts: Sequence[Prompt]) -> list[Generated]:
        wait.wait(20)
        sizes.append(len(prompts))
        return [Generated(prompt[-1]["content"], 1.0, True, (0.0,)) for prompt in prompts]

    return predict


async def test_those_who_wait_are_answered_together_each_with_its_own() -> None:
    sizes: list[int] = []
    go = threading.Event()
    predict, worker = counting(sizes, go), Worker()
    first = asyncio.create_task(worker.ask(predict, asking("first")))
    await asyncio.sleep(0.1)  # its batch is under way, and waits for `go`
    others = [asyncio.create_task(worker.ask(predict, asking(str(number)))) for number in range(MOST_AT_ONCE + 6)]
    await asyncio.sleep(0)
    others[3].cancel()  # a client that hangs up
    go.set()
    answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert sizes == [1, MOST_AT_ONCE, 6]
    assert isinstance(answers.pop(4), asyncio.CancelledError)
    texts = [answer.text for answer in answers if isinstance(answer, Generated)]
    assert texts == ["first", *(str(number) for number in range(MOST_AT_ONCE + 6) if number != 3)]


async def test_a_student_that_fails_fails_alone() -> None:
    def broken(prompts: Sequence[Prompt]) -> list[Generated]:
        raise ArithmeticError("no")

    go = threading.Event()
    go.set()
    worker = Worker()
    asked = [worker.ask(broken, asking("a")), worker.ask(counting([], go), asking("b"))]
    failed, answered = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(failed, ArithmeticError)
    assert isinstance(answered, Generated)


async def test_the_engine_runs_it_and_checks_what_it_loads(encoder: Path, head: Path, tmp_path: Path) -> None:
    settings = EngineSettings(base=encoder, port=free_port(), dtype="float32", log=tmp_path / "small.log")
    engine = Engine(settings, command=small_command)
    right, wrong = Golden(asking("refund my money"), "billing"), Golden(asking("refund my money"), "login")
    engine.want({"good": head, "bad": head, "none": tmp_path}, {"good": [right], "bad": [wrong], "none": [right]})
    async with running(engine):
        await until(lambda: len(engine.status().ready) + len(engine.status().failed) == 3)
        assert engine.status().ready == {"good"}
        assert engine.status().failed["bad"] == "1 of 1 golden answers differ, such as 'login' became 'billing'"
        assert "holds no small student" in engine.status().failed["none"]
        status, text = await posted(engine.status().url, "/v1/chat/completions", model="good", messages=USER)
        assert (status, '"content":"billing"' in text) == (200, True)
    assert engine.status().reason == "stopped"
