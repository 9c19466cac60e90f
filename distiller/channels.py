"""Owns how a notice gets to people: a webhook that is signed, or e-mail. Must not know what notices are about.

A webhook gets a POST with JSON. With a secret it is signed as `x-stillroom-signature: t=SECONDS,v1=HEX`, where HEX is
HMAC-SHA256 with that secret over `SECONDS.BODY`: whoever checks it also refuses an old SECONDS, so that nobody can send
it again. Redirects are not followed. Addresses of webhooks are often secrets: messages name the host alone.
"""

import asyncio
import hashlib
import hmac
import os
import smtplib
import ssl
import time
from collections.abc import Awaitable, Callable
from email.message import EmailMessage
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp

from distiller.notice import Notice
from distiller.schedule_settings import NotifySettings
from proxy.errors import BadInput, Unavailable

BACKOFF_SECONDS = (1.0, 5.0)
"""Between the tries, which are one more."""
_AGAIN = (408, 425, 429)
Send = Callable[[Notice], Awaitable[None]]
"""Returns when it was taken; Unavailable where it was not, however often tried: PartlyTaken where some have it."""


class Channel(NamedTuple):
    """One way to people."""

    name: str
    send: Send


class PartlyTaken(Unavailable):
    """Some have it, and would be told twice if it were sent again."""


class _Declined(Exception):
    """It will not be taken, however often."""


def channels(settings: NotifySettings) -> list[Channel]:
    """Those that are set; BadInput where a variable that is named is not there."""
    found = []
    if settings.webhook:
        secret = _variable("notify.webhook_secret_env", settings.webhook_secret_env)
        found.append(Channel("webhook", partial(_persistently, partial(_post, settings, secret))))
    if settings.mail_to:
        password = _variable("notify.smtp_password_env", settings.smtp_password_env)
        found.append(Channel("mail", partial(_persistently, partial(_mail, settings, password))))
    return found


def signature(secret: str, seconds: int, body: bytes) -> str:
    """What `x-stillroom-signature` says."""
    made = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256)
    return f"t={seconds},v1={made.hexdigest()}"


async def _persistently(send: Send, notice: Notice) -> None:
    for seconds in (*BACKOFF_SECONDS, None):
        try:
            await send(notice)
            return
        except (_Declined, smtplib.SMTPAuthenticationError) as error:
            raise Unavailable(_said(error)) from None
        except (aiohttp.ClientError, OSError) as error:  # smtplib's are OSErrors, and so are timeouts.
            if seconds is None:
                raise Unavailable(_said(error)) from None
        await asyncio.sleep(seconds)


async def _post(settings: NotifySettings, secret: str, notice: Notice) -> None:
    body = notice.body()
    headers = {"content-type": "application/json", "user-agent": "stillroom", "x-stillroom-event": notice.event}
    if secret:
        headers["x-stillroom-signature"] = signature(secret, int(time.time()), body)
    host = urlsplit(settings.webhook).hostname
    timeout = aiohttp.ClientTimeout(total=settings.timeout)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(settings.webhook, data=body, headers=headers, allow_redirects=False) as answer,
    ):
        if answer.status // 100 == 2:
            return
        said = f"{host} answered {answer.status}"
        if answer.status // 100 == 3:
            raise _Declined(f"{said}, and redirects are not followed: set notify.webhook to where it leads")
        if answer.status // 100 == 4 and answer.status not in _AGAIN:
            raise _Declined(said)
        raise OSError(said)


async def _mail(settings: NotifySettings, password: str, notice: Notice) -> None:
    """In a thread, as it waits for a server at every step."""
    message = EmailMessage()
    message["From"], message["To"] = settings.mail_from, ", ".join(settings.mail_to)
    message["Subject"] = f"Stillroom: {notice.event.replace('_', ' ')}"
    facts = "".join(f"\n{name}: {value}" for name, value in notice.facts.items())
    message.set_content(f"{notice.text}\n{facts}\n\n{notice.at:%Y-%m-%d %H:%M %Z}\n")
    await asyncio.to_thread(_deliver, settings, password, message)


def _deliver(settings: NotifySettings, password: str, message: EmailMessage) -> None:
    tls = ssl.create_default_context()
    implicit = settings.smtp_port == smtplib.SMTP_SSL_PORT  # TLS from the first byte on, RFC 8314
    connect = partial(smtplib.SMTP_SSL, context=tls) if implicit else smtplib.SMTP
    with connect(settings.smtp_host, settings.smtp_port, timeout=settings.timeout) as server:
        if settings.smtp_starttls and not implicit:
            server.starttls(context=tls)
        if settings.smtp_user:
            server.login(settings.smtp_user, password)
        if refused := server.send_message(message):
            raise PartlyTaken(f"{settings.smtp_host} refused {len(refused)} of the addresses in notify.mail_to")


def _said(error: Exception) -> str:
    """Never the address of a webhook, which aiohttp's messages may quote."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host} cannot be reached: {error.strerror or type(error.os_error).__name__}"
    if isinstance(error, aiohttp.ClientError | TimeoutError) or not str(error):
        return "it took too long" if isinstance(error, TimeoutError) else type(error).__name__
    return str(error).splitlines()[0]


def _variable(setting: str, name: str) -> str:
    if name and not os.environ.get(name):
        raise BadInput(f"{setting} names {name}, which is not set: export it")
    return os.environ.get(name, "") if name else ""
