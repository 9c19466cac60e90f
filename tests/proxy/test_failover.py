import asyncio
import contextlib
import json
import re
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from proxy.app import ProxyApp, create_app
from proxy.breaker import FIRST_PAUSE, LONGEST_PAUSE, OPENS_AFTER, Breaker
from proxy.client import Response, UpstreamBroke, UpstreamSilent
from proxy.failover import GIVE_UP, Deployment, Failover, Health
from proxy.replay import create_replay
from proxy.settings import DeploymentSettings, ProxySettings, SpoolSettings, TeacherSettings
from proxy.spool import closed_segments
from proxy.traffic_file import Row
from proxy.upstream import Teacher
from tests.places import DIES, HANGS, OK, Place, Several, answer, behind
from tests.servers import free_port, serving


async def test_the_first_deployment_is_asked_as_long_as_it_answers() -> None:
    async with behind(Place(OK), Place(OK)) as several:
        for _ in range(3):
            assert await several.ask() == (200, b"ok", "a", 1)
        assert several.asked == [3, 0]


async def test_a_deployment_that_refuses_is_passed_over_with_the_same_bytes() -> None:
    body = bytes(range(256)) * 300
    async with behind(None, Place(OK)) as several:
        assert await several.ask(body=body) == (200, b"ok", "b", 2)
        head, _, got = several.places[1].got[0].partition(b"\r\n\r\n")
        assert got == body
        assert re.fullmatch(rb"POST /v1/x HTTP/1.1\r\nHost: \S+\r\nX-A: 1\r\nContent-Length: 76800", head)
        assert several.clock.waits == []


async def no_tls(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"this is no TLS at all")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_names_that_do_not_resolve_and_failing_tls_are_passed_over() -> None:
    async with behind(Place(OK)) as several, await asyncio.start_server(no_tls, "127.0.0.1", 0) as server:
        for url in ("http://no-such-host.invalid", f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"):
            broken = Deployment("broken", Teacher(TeacherSettings(url=url)), Breaker())
            failover = Failover([broken, *several.failover._deployments], 0)
            assert (await failover.forward("POST", "/v1/x", [], b"{}")).deployment == "a"
            assert broken.breaker.failures == 1
            broken.teacher.close()


async def test_a_connection_that_does_not_come_about_in_time_is_passed_over() -> None:
    with socket.socket() as full:  # Accepts nothing, and its queue is full: connecting to it hangs.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(2)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with behind(Place(OK)) as several:
            slow = Deployment("slow", Teacher(TeacherSettings(url=url, connect_timeout=0.05)), Breaker())
            failover = Failover([slow, *several.failover._deployments], 0)
            assert (await failover.forward("POST", "/v1/x", [], b"{}")).deployment == "a"
            assert slow.breaker.failures == 1
            slow.teacher.close()
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("status", [429, 503, 529, 500, 502, 504])
async def test_what_was_not_answered_is_asked_of_the_next_deployment(status: int) -> None:
    async with behind(Place(answer(status)), Place(OK)) as several:
        assert await several.ask() == (200, b"ok", "b", 2)


@pytest.mark.parametrize("status", [200, 307, 400, 401, 404, 408, 422, 501, 505])
async def test_other_answers_are_passed_on_as_they_came(status: int) -> None:
    async with behind(Place(answer(status, b"it", "X-Mine: a")), Place(OK), retries=3) as several:
        response = await several.failover.forward("POST", "/v1/x", [], b"{}")
        assert response.raw_headers == ((b"Content-Length", b"2"), (b"X-Mine", b"a"))
        assert (response.status, await response.read(), response.attempts) == (status, b"it", 1)
        assert several.asked == [1, 0]


async def test_when_all_fail_the_last_answer_is_passed_on() -> None:
    async with behind(Place(answer(500, b"a")), Place(answer(429, b"b", "Retry-After: 9")), None) as several:
        response = await several.failover.forward("POST", "/v1/x", [], b"{}")
        assert response.raw_headers == ((b"Content-Length", b"1"), (b"Retry-After", b"9"))
        assert (response.status, await response.read()) == (429, b"b")
        assert (response.deployment, response.attempts) == ("b", 3)


async def test_when_none_answers_the_last_error_is_raised_as_it_came() -> None:
    async with behind(None, None) as several:
        with pytest.raises(ConnectionRefusedError):
            await several.ask()
        assert [health.failures for health in several.failover.health()] == [1, 1]


@pytest.mark.parametrize("said", [DIES, OK[:12]], ids=["before a byte", "in the head"])
async def test_a_post_that_may_have_been_paid_for_is_not_sent_again_but_a_get_is(said: bytes) -> None:
    async with behind(Place(said), Place(OK), retries=3) as several:
        with pytest.raises(UpstreamBroke):
            await several.ask("POST")
        assert several.asked == [1, 0]
        assert await several.ask("GET", b"") == (200, b"ok", "b", 2)


async def test_a_kept_connection_that_closes_under_a_post_is_not_replaced() -> None:
    async with behind(Place(OK, DIES), Place(OK), retries=3) as several:
        await several.ask()
        with pytest.raises(UpstreamBroke):
            await several.ask()
        assert several.asked == [2, 0]


async def test_a_post_that_is_met_with_silence_is_not_sent_again_but_a_get_is() -> None:
    async with behind(Place(HANGS), Place(OK), read_timeout=0.05, retries=3) as several:
        with pytest.raises(UpstreamSilent):
            await several.ask("POST")
        assert several.asked == [1, 0]
        assert await several.ask("GET", b"") == (200, b"ok", "b", 2)


async def test_an_earlier_answer_is_passed_on_when_a_later_attempt_may_have_been_paid_for() -> None:
    async with behind(Place(answer(429, b"later")), Place(DIES), Place(OK), retries=3) as several:
        assert await several.ask() == (429, b"later", "a", 2)
        assert several.asked == [1, 1, 0]


async def test_an_answer_that_breaks_off_is_not_asked_for_again() -> None:
    async with behind(Place(OK[:-1]), Place(OK), retries=3) as several:
        response = await several.failover.forward("POST", "/v1/x", [], b"{}")
        with pytest.raises(UpstreamBroke):
            await response.read()
        assert several.asked == [1, 0]


async def test_a_discarded_answer_does_not_keep_its_connection() -> None:
    endless = b"HTTP/1.1 503 Busy\r\nContent-Length: 1000000\r\n\r\nsome"
    async with behind(Place(endless), Place(OK)) as several:
        assert await several.ask() == (200, b"ok", "b", 2)
        await let_go(several)


async def let_go(several: Several) -> None:
    """Until the first deployment has no connection any more; the loop tells it a little later."""
    async with asyncio.timeout(5):
        while several.failover._deployments[0].teacher._client._open:
            await asyncio.sleep(0)


async def test_retries_begin_when_every_deployment_was_asked_and_wait_longer_each_time() -> None:
    async with behind(Place(answer(429, b"a")), Place(answer(503, b"b")), retries=3) as several:
        assert await several.ask() == (429, b"a", "a", 5)
        assert several.asked == [3, 2]
        assert several.clock.waits == [0.25, 0.5, 1.0]


async def test_a_retry_may_succeed_where_the_first_attempt_failed() -> None:
    async with behind(Place(answer(429), answer(503), OK), retries=2) as several:
        assert await several.ask() == (200, b"ok", "a", 3)


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_a_failure_that_may_hide_work_is_never_asked_of_the_same_deployment_again(status: int) -> None:
    async with behind(Place(answer(status, b"it")), retries=5) as several:
        assert await several.ask() == (status, b"it", "a", 1)
    async with behind(Place(answer(status)), Place(answer(429, b"it"), OK), retries=1) as several:
        assert await several.ask() == (200, b"ok", "b", 3)


async def test_a_refused_connection_is_tried_again() -> None:
    async with behind(None, retries=2) as several:
        with pytest.raises(ConnectionRefusedError):
            await several.ask()
        assert several.clock.waits == [0.25, 0.5]


async def test_without_retries_the_clients_sdk_gets_the_429() -> None:
    async with behind(Place(answer(429, b"slow down", "Retry-After: 1"))) as several:
        assert await several.ask() == (429, b"slow down", "a", 1)


def in_seconds(seconds: int) -> list[str]:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    return [
        f"Date: {format_datetime(now, usegmt=True)}",
        f"Retry-After: {format_datetime(now + timedelta(seconds=seconds), usegmt=True)}",
    ]


@pytest.mark.parametrize("headers", [["Retry-After: 7"], ["retry-after-ms: 7000"], in_seconds(7)])
async def test_a_short_retry_after_is_waited_for_and_a_little_more(headers: list[str]) -> None:
    async with behind(Place(answer(429, b"", *headers), OK), retries=1) as several:
        assert await several.ask() == (200, b"ok", "a", 2)
        assert several.clock.waits == [7.25]


@pytest.mark.parametrize("headers", [["Retry-After: 31"], ["Retry-After: 99999999999999999999"], in_seconds(3600)])
async def test_a_long_retry_after_is_the_clients_to_see(headers: list[str]) -> None:
    async with behind(Place(answer(429, b"busy", *headers)), retries=5) as several:
        assert await several.ask() == (429, b"busy", "a", 1)
        assert several.clock.waits == []


@pytest.mark.parametrize("value", ["-5", "NaN", "inf", "soon", "", "1e9"])
async def test_a_retry_after_without_sense_is_as_none(value: str) -> None:
    async with behind(Place(answer(429, b"", f"Retry-After: {value}"), OK), retries=1) as several:
        assert await several.ask() == (200, b"ok", "a", 2)
        assert several.clock.waits == [0.25]


async def test_all_waits_together_are_bounded() -> None:
    async with behind(Place(answer(429, b"busy", "Retry-After: 8")), retries=99) as several:
        status, _, _, attempts = await several.ask()
        assert (status, attempts) == (429, len(several.clock.waits) + 1)
        assert sum(several.clock.waits) <= GIVE_UP
        assert len(several.clock.waits) == 3


async def test_a_retry_does_not_begin_when_the_attempts_took_too_long_but_the_next_deployment_is_asked() -> None:
    async with behind(Place(answer(429)), Place(answer(429)), retries=3) as several:
        asking = several.failover._deployments[0].teacher

        class Slow(Teacher):
            async def forward(self, *request: Any) -> Response:
                several.clock.time += GIVE_UP
                return await asking.forward(*request)

        slow = Slow(TeacherSettings())
        deployments = [Deployment("slow", slow, Breaker()), several.failover._deployments[1]]
        failover = Failover(deployments, 3, several.clock.now, several.clock.sleep, lambda: 0.5)
        assert (await failover.forward("POST", "/v1/x", [], b"{}")).deployment == "b"
        assert (several.asked, several.clock.waits) == ([1, 1], [])


async def test_while_a_deployment_rests_the_next_one_answers() -> None:
    async with behind(Place(answer(429, b"", "Retry-After: 20"), OK), Place(OK)) as several:
        assert [(await several.ask())[2:] for _ in range(3)] == [("b", 2), ("b", 1), ("b", 1)]
        several.clock.time += 20
        assert await several.ask() == (200, b"ok", "a", 1)
        assert several.states == ["closed", "closed"]


async def test_a_deployment_that_keeps_failing_is_left_alone_until_a_probe_succeeds() -> None:
    down = [answer(500)] * (OPENS_AFTER + 1)
    async with behind(Place(*down, OK), Place(OK)) as several:
        for _ in range(OPENS_AFTER + 3):
            assert (await several.ask())[2] == "b"
        assert several.asked[0] == OPENS_AFTER
        assert several.failover.health() == (Health("a", "open", OPENS_AFTER), Health("b", "closed", 0))
        several.clock.time += FIRST_PAUSE
        assert await several.ask() == (200, b"ok", "b", 2)  # The probe failed, and the client did not see it.
        several.clock.time += FIRST_PAUSE
        assert await several.ask() == (200, b"ok", "b", 1)  # The pause has grown.
        several.clock.time += 2 * FIRST_PAUSE
        assert await several.ask() == (200, b"ok", "a", 1)
        assert several.states == ["closed", "closed"]


async def test_only_one_of_many_requests_is_the_probe() -> None:
    async with behind(Place(*[answer(500)] * OPENS_AFTER, HANGS), Place(OK)) as several:
        for _ in range(OPENS_AFTER):
            await several.ask()
        several.clock.time += FIRST_PAUSE
        probe = asyncio.create_task(several.ask())
        while several.asked[0] == OPENS_AFTER:
            await asyncio.sleep(0)
        assert several.states == ["half_open", "closed"]
        assert {served for _, _, served, _ in await asyncio.gather(*(several.ask() for _ in range(20)))} == {"b"}
        assert several.asked[0] == OPENS_AFTER + 1
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        several.clock.time += LONGEST_PAUSE
        several.places[0].answers = [OK]
        assert (await several.ask())[2] == "a"  # A probe whose client hung up blocks nothing.


async def test_when_every_circuit_is_open_requests_are_still_tried_on_the_least_bad_one() -> None:
    async with behind(None, Place(*[answer(503, b"no")] * OPENS_AFTER, OK)) as several:
        for _ in range(OPENS_AFTER):
            assert await several.ask() == (503, b"no", "b", 2)
        assert several.states == ["open", "open"]
        status, body, served, _ = await several.ask()
        assert (status, body, served) == (200, b"ok", "b")
        assert several.states == ["open", "closed"]


async def test_the_least_bad_one_is_the_one_whose_pause_is_over_first() -> None:
    async with behind(Place(OK), Place(OK), Place(OK)) as several:
        for seconds, deployment in zip((9.0, 3.0, 6.0), several.failover._deployments, strict=True):
            deployment.breaker.rest(several.clock.time, seconds)
        assert await several.ask() == (200, b"ok", "b", 1)


async def test_an_open_circuit_is_not_tried_where_there_is_an_answer_to_pass_on() -> None:
    async with behind(Place(*[answer(500)] * OPENS_AFTER, OK), Place(answer(429, b"busy"))) as several:
        for _ in range(OPENS_AFTER):
            await several.ask()
        assert await several.ask() == (429, b"busy", "b", 1)


async def test_4xx_do_not_open_a_circuit() -> None:
    async with behind(Place(answer(400), answer(429), answer(404))) as several:
        for _ in range(3 * OPENS_AFTER):
            await several.ask()
        assert several.failover.health() == (Health("a", "closed", 0),)


async def test_a_client_that_hangs_up_ends_an_attempt_and_its_connection() -> None:
    place = Place(HANGS)
    async with behind(place, Place(OK), retries=3) as several:
        asking = asyncio.create_task(several.ask())
        while not place.got:
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await place.left.wait()
        assert several.asked == [1, 0]
        assert several.failover.health()[0].failures == 0


async def test_a_client_that_hangs_up_ends_a_wait_and_the_answer_that_was_held() -> None:
    endless = b"HTTP/1.1 429 Busy\r\nContent-Length: 1000000\r\nRetry-After: 9\r\n\r\nsome"
    place = Place(endless)
    async with behind(place, retries=3) as several:
        waiting = asyncio.Event()

        async def forever(_: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        failover = Failover(several.failover._deployments, 3, several.clock.now, forever)
        asking = asyncio.create_task(failover.forward("POST", "/v1/x", [], b"{}"))
        await waiting.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await let_go(several)
        assert several.asked == [1]


def app_with(folder: Path, first: str, *further: str) -> ProxyApp:
    """A whole app in front of several deployments."""
    several = tuple(DeploymentSettings(url, client_keys=True) for url in further)
    return create_app(ProxySettings(), TeacherSettings(url=first, deployments=several), SpoolSettings(), folder)


def test_clients_see_no_error_while_one_of_two_deployments_is_down(tmp_path: Path) -> None:
    row = Row(({"role": "user", "content": "greet"},), "hello there", None, "gpt-4o", None)
    ask: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "greet"}]}
    down = f"http://127.0.0.1:{free_port()}"
    with serving(create_replay([row])) as up, serving(app_with(tmp_path, down, up)) as url:
        with openai.OpenAI(base_url=url, api_key="sk-client", max_retries=0) as client:
            for _ in range(OPENS_AFTER):
                told = client.chat.completions.create(**ask)
                assert told.choices[0].message.content == "hello there"
                with client.chat.completions.create(**ask, stream=True) as stream:
                    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
                assert text == "hello there"


async def test_through_the_app_the_body_arrives_byte_for_byte_and_an_error_comes_back_so(tmp_path: Path) -> None:
    body = b'{"model": "gpt-4o",  "unknown":\t1.0, "messages":[] }\n'
    refusal = answer(429, b'{"error" :  "slow down"}', "Retry-After: 17", "X-Mine: b")
    place = Place(refusal)
    async with place.serving() as up:
        with serving(app_with(tmp_path, f"http://127.0.0.1:{free_port()}", up)) as url:
            async with httpx.AsyncClient(headers={"authorization": "Bearer sk-client"}) as client:
                told = await client.post(f"{url}/embeddings", content=body)
    assert (told.status_code, told.content) == (429, b'{"error" :  "slow down"}')
    assert (told.headers["retry-after"], told.headers["x-mine"]) == ("17", "b")
    assert len(place.got) == 1
    assert place.got[0].endswith(b"\r\n\r\n" + body)
    assert b"Bearer sk-client" in place.got[0]
    record = json.loads(closed_segments(tmp_path)[0].read_bytes())
    assert (record["deployment"], record["attempts"]) == (up.removeprefix("http://"), 2)
