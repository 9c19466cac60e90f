"""Owns what litellm's answers, streams and errors become: OpenAI's, in the shape the relay reads from an HTTP client.

Must not know how litellm is asked. What a provider did not finish is never shown as finished, and no key is shown.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from proxy.errors import envelope
from proxy.redact import Redactor

_log = logging.getLogger("stillroom.translate")
_LITELLM = re.compile(r"^(litellm\.\w+: )+(\w+(Exception|Error) - )?")
_OF_NO_USE = re.compile(r"\s*(Traceback \(most recent|Received Messages=|To drop these|If you want to|Handle with `)")
_LONGEST = 1000  # characters of a message


class TranslationBroke(OSError):
    """The provider, or what litellm makes of it, ended before the answer did."""


class Translated:
    """A translated answer, whole."""

    deployment, attempts = "", 1
    content_type, _full_type = "application/json", b"application/json"

    def __init__(self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """`headers` are those beside the content type."""
        self.status, self._body = status, body
        self.raw_headers = ((b"content-type", self._full_type), *headers)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, in one piece."""
        yield self._body

    def close(self) -> None:
        """Nothing is held open."""


class TranslatedStream:
    """A translated stream, as it comes."""

    deployment, attempts, status = "", 1, 200
    content_type = "text/event-stream"
    raw_headers = ((b"content-type", b"text/event-stream; charset=utf-8"),)

    def __init__(self, first: Any, chunks: Any, failures: "Failures") -> None:
        """`first` has been taken off litellm's `chunks` already."""
        self._first, self._chunks, self._failures = first, chunks, failures
        self._closing: asyncio.Task[None] | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Server-sent events; raises TranslationBroke where the provider broke off."""
        chunk = self._first
        try:
            while chunk is not None:
                event = _shaped(chunk)
                if not event.get("usage") or _counted(self._chunks):
                    yield b"data: " + json.dumps(event).encode() + b"\n\n"
                chunk = await _next(self._chunks)
        except Exception as error:  # As in `forward`: of whatever kind, the answer is not whole.
            text = self._failures.text(error)
            _log.warning("a translated stream broke off: %s", text)
            raise TranslationBroke(text) from None
        yield b"data: [DONE]\n\n"

    def close(self) -> None:
        """End litellm's request, and so the provider's work; what it cannot close ends when nobody has it."""
        self._closing = asyncio.get_running_loop().create_task(self._chunks.aclose())


class Failures:
    """Turns litellm's errors into answers of one provider, without keys."""

    def __init__(self, provider: str, secrets: Sequence[str], redactor: Redactor) -> None:
        """`secrets` are taken out of every message, with whatever else looks like one."""
        self._provider, self._secrets, self._redactor = provider, secrets, redactor

    def answer(self, error: Exception) -> Translated:
        """The error's own status where it has one, with when to come again."""
        status = _status(error)
        kind = "invalid_request_error" if status < 500 and status != 429 else "upstream_error"
        code = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}.get(status)
        text = self.text(error)
        if type(error).__name__ == "UnsupportedParamsError":
            text, code = f"{text.rstrip('.')}: leave them out", "unsupported_parameter"
        return Translated(status, envelope(text, kind, code), _retry_after(error))

    def text(self, error: Exception) -> str:
        """What went wrong, in one line."""
        text = _said(str(getattr(_origin(error), "message", "") or error) or type(error).__name__)
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return f"{self._provider}: {self._redactor.text(text)}"


def whole(answer: Any) -> Translated:
    """An answer that is not a stream."""
    return Translated(200, answer.model_dump_json().encode())


async def streamed(chunks: Any, failures: Failures) -> TranslatedStream:
    """A stream whose first event is there, so that a refusal still has its status; raises what litellm raises."""
    try:
        return TranslatedStream(await _next(chunks), chunks, failures)
    except BaseException:  # A client that hangs up, too.
        await chunks.aclose()
        raise


async def _next(chunks: Any) -> Any:
    """The next chunk, or None at the end; TranslationBroke for an end that litellm made up."""
    chunk = await anext(chunks, None)
    last = chunk is None or any(choice.finish_reason for choice in chunk.choices)
    if last and chunks.received_finish_reason is None and chunks.intermittent_finish_reason is None:
        raise TranslationBroke("the stream ended before the answer did")
    return chunk


def _counted(chunks: Any) -> bool:
    """Whether the provider told its usage; else litellm makes one up."""
    return any(getattr(chunk, "usage", None) for chunk in chunks.chunks)


def _shaped(chunk: Any) -> dict[str, Any]:
    """As OpenAI sends it: usage comes alone, after everything else, and without litellm's idea of the price."""
    event: dict[str, Any] = chunk.model_dump(mode="json", exclude_none=True)
    if event.get("usage"):
        event["usage"].pop("cost", None)
        event["choices"] = [choice for choice in event["choices"] if choice["delta"] or choice.get("finish_reason")]
    for choice in event["choices"]:
        choice.setdefault("finish_reason", None)
    return event


def _said(text: str) -> str:
    """The provider's own message where litellm quotes it, else litellm's, in one line without what leads nowhere."""
    try:
        return " ".join(json.loads(text[text.index("{") : text.rindex("}") + 1])["error"]["message"].split())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    text = _OF_NO_USE.split(_LITELLM.sub("", text))[0]
    return " ".join(text.split())[:_LONGEST]


def _origin(error: BaseException) -> BaseException:
    """The error that litellm wrapped because a stream had begun."""
    return getattr(error, "original_exception", None) or error


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = getattr(error, "original_exception", None) or error.__cause__ or error.__context__
    return found


def _status(error: Exception) -> int:
    """litellm makes 500 of much that has a status of its own."""
    name, causes = type(_origin(error)).__name__, _causes(error)
    if name == "Timeout":
        return 504
    codes = [getattr(cause, "status_code", None) for cause in causes]
    known = [code for code in codes if isinstance(code, int) and 400 <= code < 600]
    if known and known[0] != 500:
        return known[0]
    unreached = name == "APIConnectionError" or any(isinstance(cause, OSError) for cause in causes)
    return next((code for code in known if code != 500), 502 if unreached or not known else 500)


def _retry_after(error: Exception) -> list[tuple[bytes, bytes]]:
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        value = headers.get("retry-after", "")
        if value.isascii() and value.isprintable() and value:
            return [(b"retry-after", value.encode())]
    return []
