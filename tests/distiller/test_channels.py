import asyncio
import gc
import json
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from fastapi import FastAPI, Request, Response

from distiller import channels as module
from distiller.channels import PartlyTaken, channels, signature
from distiller.notice import Notice
from distiller.schedule_settings import NotifySettings
from proxy.errors import BadInput, Unavailable
from tests.servers import free_port, serving

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the mail server's, see `box`

NOTICE = Notice("parity_lost", "01", "The teacher answers triage again", datetime(2026, 3, 1, tzinfo=UTC), {"n": 3})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.01, 0.01))


class Hook:
    """Answers each request with the next of its statuses, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.got = list(statuses), list[tuple[dict[str, str], bytes]]()
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route("/v1/hook", self.take, methods=["POST"])
        self.app.add_api_route("/v1/elsewhere", self.take, methods=["GET", "POST"])

    async def take(self, request: Request) -> Response:
        self.got.append((dict(request.headers), await request.body()))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return Response(status_code=status, headers={"location": "elsewhere"} if status // 100 == 3 else {})


async def post(hook: Hook, **changes: Any) -> None:
    with serving(hook.app) as url:
        (channel,) = channels(NotifySettings(webhook=f"{url}/hook", **changes))
        assert channel.name == "webhook"
        await channel.send(NOTICE)


async def test_a_webhook_gets_json_that_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "a secret")
    hook = Hook(204)
    await post(hook, webhook_secret_env="HOOK_SECRET")
    ((headers, body),) = hook.got
    assert json.loads(body)["text"] == NOTICE.text
    assert (headers["content-type"], headers["x-stillroom-event"]) == ("application/json", "parity_lost")
    seconds = int(headers["x-stillroom-signature"].split(",")[0].removeprefix("t="))
    assert abs(seconds - datetime.now(UTC).timestamp()) < 60
    assert headers["x-stillroom-signature"] == signature("a secret", seconds, body)
    assert signature("a secret", seconds, body) != signature("another", seconds, body)
    assert signature("a secret", seconds, body) != signature("a secret", seconds + 1, body)


def test_the_signature_is_hmac_sha256() -> None:
    # echo -n '1772323200.{}' | openssl dgst -sha256 -hmac secret
    assert signature("secret", 1772323200, b"{}") == (
        "t=1772323200,v1=a48e46053abfa81476218beec39a2bea3c5f30dcdece6da7f94c5eeb28fede6c"
    )


async def test_without_a_secret_it_is_not_signed() -> None:
    hook = Hook(200)
    await post(hook)
    assert "x-stillroom-signature" not in hook.got[0][0]


async def test_what_may_pass_is_tried_again() -> None:
    hook = Hook(503, 429, 200)
    await post(hook)
    assert len({body for _, body in hook.got}) == 1
    assert len(hook.got) == 3


@pytest.mark.parametrize(
    ("status", "tries", "said"),
    [
        (500, 3, r"127\.0\.0\.1 answered 500"), (404, 1, r"127\.0\.0\.1 answered 404"),
        (302, 1, "redirects are not followed"), (307, 1, "redirects are not followed"),
    ],
)  # fmt: skip
async def test_what_is_declined_is_said_without_the_address(status: int, tries: int, said: str) -> None:
    hook = Hook(status)
    with pytest.raises(Unavailable, match=said) as error:
        await post(hook)
    assert "hook" not in str(error.value).replace("notify.webhook", "")
    assert len(hook.got) == tries


async def test_one_that_is_not_there_or_does_not_answer_ends() -> None:
    (channel,) = channels(NotifySettings(webhook=f"http://127.0.0.1:{free_port()}/token-1234"))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1 cannot be reached") as error:
        await channel.send(NOTICE)
    assert "token" not in str(error.value)

    listening = list[asyncio.Future[None]]()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listening.append(ended := asyncio.get_running_loop().create_future())
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set_result(None)

    silent = await asyncio.start_server(listen, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/token-1234"
    (channel,) = channels(NotifySettings(webhook=url, timeout=0.1))
    with pytest.raises(Unavailable, match="it took too long"):
        await channel.send(NOTICE)
    silent.close()
    await asyncio.gather(*listening)


def test_a_variable_that_is_not_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK_SECRET", raising=False)
    with pytest.raises(BadInput, match=r"notify\.webhook_secret_env names HOOK_SECRET, which is not set"):
        channels(NotifySettings(webhook="https://example.com", webhook_secret_env="HOOK_SECRET"))
    assert channels(NotifySettings()) == []


class Box:
    """A mail box of a server that wants TLS and a password."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        self.refuses = ""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address == self.refuses:
            return "550 nobody of that name"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        assert session.ssl is not None
        assert session.authenticated
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"


def knows(server: Any, session: Any, envelope: Any, mechanism: str, given: Any) -> AuthResult:
    return AuthResult(success=(given.login, given.password) == (b"bot", b"pass word"), handled=False)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Box, NotifySettings]]:
    authority, box = trustme.CA(), Box()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("MAIL_PASSWORD", "pass word")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    server = Controller(
        box, hostname="127.0.0.1", port=free_port(), tls_context=context, require_starttls=True, auth_required=True,
        authenticator=knows, ready_timeout=60,
    )  # fmt: skip
    server.start()
    yield box, NotifySettings(
        mail_to=("ops@example.com", "me@example.com"), mail_from="stillroom@example.com", smtp_host="localhost",
        smtp_port=server.port, smtp_user="bot", smtp_password_env="MAIL_PASSWORD",
    )  # fmt: skip
    server.stop()
    gc.collect()  # The server leaves the connection below TLS to the collector: here, and in no other test.


async def test_mail_goes_by_tls_with_a_password(box: tuple[Box, NotifySettings]) -> None:
    found, settings = box
    (channel,) = channels(settings)
    await channel.send(NOTICE)
    (mail,) = found.mails
    assert (mail["Subject"], mail["To"]) == ("Stillroom: parity lost", "ops@example.com, me@example.com")
    text = str(mail.get_payload())
    assert NOTICE.text in text
    assert "n: 3" in text


async def test_mail_that_is_not_taken_is_said(box: tuple[Box, NotifySettings], monkeypatch: pytest.MonkeyPatch) -> None:
    found, settings = box
    found.refuses = "me@example.com"
    with pytest.raises(PartlyTaken, match="localhost refused 1 of the addresses"):
        await channels(settings)[0].send(NOTICE)
    assert len(found.mails) == 1  # Who was not refused is not told three times.
    monkeypatch.setenv("MAIL_PASSWORD", "wrong")
    with pytest.raises(Unavailable, match="uthentication") as error:
        await channels(settings)[0].send(NOTICE)
    assert "wrong" not in str(error.value)
    with pytest.raises(Unavailable):
        await channels(replace(settings, smtp_port=free_port()))[0].send(NOTICE)


async def test_a_server_nobody_vouches_for_gets_nothing(
    box: tuple[Box, NotifySettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(Unavailable, match="certificate"):
        await channels(box[1])[0].send(NOTICE)
    assert box[0].mails == []
