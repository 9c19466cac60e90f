"""Owns teachers that do not speak OpenAI: litellm translates chat requests whose model has a configured prefix.

Everything else goes through untouched. litellm is imported at the first such request, in a thread, so a worker that
only relays bytes never loads it. Bytes cannot be kept here: the answer is what litellm makes of the provider's.
"""

import asyncio
import importlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from proxy.derive import CHAT
from proxy.errors import envelope
from proxy.headers import Headers, header
from proxy.relay import Upstream, UpstreamResponse
from proxy.settings import TeacherSettings
from proxy.upstream import teacher_key


def translating(inner: Upstream, settings: TeacherSettings) -> Upstream:
    """`inner` itself, or with translation in front where the settings name prefixes."""
    return TranslatingTeacher(inner, settings.translate, teacher_key(settings)) if settings.translate else inner


class TranslatingTeacher:
    """An upstream that hands requests for models such as `anthropic/...` to litellm, and the others to `inner`."""

    def __init__(self, inner: Upstream, prefixes: tuple[str, ...], key: str) -> None:
        """`key` is the configured teacher key; empty means the client's own bearer token."""
        self._inner, self._prefixes, self._key = inner, prefixes, key

    async def forward(self, method: str, target: str, headers: Headers, body: bytes) -> UpstreamResponse:
        """Translate, or pass on; raises what `inner` raises."""
        asked = _chat(target, body)
        if asked is None or not str(asked.get("model")).startswith(self._prefixes):
            return await self._inner.forward(method, target, headers, body)
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # Else the import reaches for the network.
        litellm: Any = await asyncio.to_thread(importlib.import_module, "litellm")
        litellm.suppress_debug_info = True
        errors: Any = importlib.import_module("openai")  # litellm's own exceptions derive from this client's
        try:
            answer = await litellm.acompletion(**asked, api_key=self._key or _bearer(headers), num_retries=0)
        except (errors.OpenAIError, ValueError, TypeError) as error:
            status = int(getattr(error, "status_code", 400) or 400)
            return Translated(status, b"application/json", _once(envelope(str(error), type(error).__name__)))
        if asked.get("stream"):
            return Translated(200, b"text/event-stream; charset=utf-8", _events(answer))
        return Translated(200, b"application/json", _once(answer.model_dump_json().encode()))


class Translated:
    """A translated answer, in the shape the relay reads from an HTTP client."""

    deployment, attempts = "", 1

    def __init__(self, status: int, content_type: bytes, pieces: AsyncIterator[bytes]) -> None:
        """`pieces` is the body."""
        self.status, self._pieces = status, pieces
        self.raw_headers = ((b"content-type", content_type),)
        self.content_type = content_type.decode().partition(";")[0]

    def pieces(self) -> AsyncIterator[bytes]:
        """The body, piece by piece."""
        return self._pieces

    def close(self) -> None:
        """Nothing is held open here: litellm ends its request when the iterator goes."""


def _chat(target: str, body: bytes) -> dict[str, Any] | None:
    if target.partition("?")[0] != CHAT:
        return None
    try:
        asked = json.loads(body)
    except ValueError:
        return None
    return asked if isinstance(asked, dict) else None


def _bearer(headers: Headers) -> str | None:
    value = header(headers, b"authorization") or b""
    return value.decode("latin-1").removeprefix("Bearer ") or None


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _events(chunks: Any) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield b"data: " + chunk.model_dump_json(exclude_none=True).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
