"""Owns teachers that do not speak OpenAI: litellm translates chat requests whose model has a configured prefix.

Everything else goes through untouched. litellm is imported at the first such request, in a thread, so a worker that
only relays bytes never loads it. Bytes cannot be kept here: the answer is what litellm makes of the provider's.

litellm takes its own settings from where it takes a request's, so a client gets only those named here: any other
would let it choose who is sent the operator's key. That key is the provider's own variable (ANTHROPIC_API_KEY, ...):
the teacher's key was meant for another host.
"""

import asyncio
import importlib
import json
import logging
import os
import sys
from typing import Any

from proxy.answers import UpstreamResponse
from proxy.derive import CHAT
from proxy.errors import BadInput, envelope
from proxy.headers import Headers, header
from proxy.patterns import SECRETS_ONLY
from proxy.redact import Redactor
from proxy.relay import Upstream
from proxy.settings import TeacherSettings
from proxy.translated import Failures, Translated, streamed, whole
from proxy.upstream import teacher_key

_PASSED = frozenset(
    {
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
        "max_tokens", "messages", "modalities", "model", "n", "parallel_tool_calls", "prediction", "presence_penalty",
        "prompt_cache_key", "reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier", "stop",
        "store", "stream", "stream_options", "temperature", "thinking", "tool_choice", "tools", "top_k",
        "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
    }
)  # fmt: skip
# These sign in with what the machine has, whatever key a client brings.
_WITHOUT_KEYS = ("vertex_ai", "sagemaker", "github_copilot", "oci", "sap")
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_SHORTEST_SECRET = 6  # characters; shorter ones are words


def translating(inner: Upstream, settings: TeacherSettings) -> Upstream:
    """`inner` itself, or with translation in front where the settings name prefixes."""
    if not settings.translate:
        return inner
    keyless = next((prefix for prefix in settings.translate if prefix.startswith(_WITHOUT_KEYS)), None)
    if keyless and not settings.key_env:
        raise BadInput(
            f"teacher.translate names {keyless!r}, which takes no key of a client: set teacher.key_env, or leave it"
        )
    return TranslatingTeacher(inner, settings)


class TranslatingTeacher:
    """An upstream that hands requests for models such as `anthropic/...` to litellm, and the others to `inner`."""

    def __init__(self, inner: Upstream, settings: TeacherSettings) -> None:
        """Without `key_env` clients' own bearer tokens are the providers' keys."""
        self._inner, self._prefixes = inner, settings.translate
        self._own_keys = bool(teacher_key(settings))
        self._timeouts = settings.connect_timeout, settings.read_timeout
        self._redactor = Redactor(SECRETS_ONLY)
        self._litellm: Any = None

    async def forward(self, method: str, target: str, headers: Headers, body: bytes) -> UpstreamResponse:
        """Translate, or pass on; raises what `inner` raises."""
        asked = _chat(target, body)
        if asked is None or not str(asked.get("model")).startswith(self._prefixes):
            return await self._inner.forward(method, target, headers, body)
        key = None if self._own_keys else _bearer(headers)
        wrong = _refusal(asked, bool(key) or self._own_keys)
        if wrong is not None:
            return wrong
        if self._litellm is None:
            self._litellm = await asyncio.to_thread(load_litellm)
        return await self._translate(asked, key)

    async def _translate(self, asked: dict[str, Any], key: str | None) -> UpstreamResponse:
        connect, read = self._timeouts
        timeout = importlib.import_module("httpx").Timeout(read, connect=connect)
        failures = Failures(asked["model"].partition("/")[0], known_secrets(key), self._redactor)
        try:
            answer = await self._litellm.acompletion(
                **asked, api_key=key, num_retries=0, max_retries=0, timeout=timeout
            )
            return await streamed(answer, failures) if asked.get("stream") else whole(answer)
        except Exception as error:  # litellm's own have no base in common, and what a provider sends can raise any.
            return failures.answer(error)


async def close_litellm() -> None:
    """End the connections that litellm keeps for the life of a process; for an event loop that ends before.

    The client it shares among providers is made again when it is asked for; a closed one would open sessions that
    nothing of litellm's ends.
    """
    litellm: Any = sys.modules.get("litellm")
    if litellm is None:
        return
    shared = vars(litellm).pop("module_level_aclient", None)
    if shared is not None:
        await shared.close()
    await litellm.close_litellm_async_clients()
    litellm.in_memory_llm_clients_cache.flush_cache()


def load_litellm() -> Any:
    """litellm, quiet and off the network; seconds the first time, so call it in a thread."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # Else the import reaches for the network.
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    logging.getLogger("LiteLLM").disabled = True  # It may quote requests and keys.
    return litellm


def _chat(target: str, body: bytes) -> dict[str, Any] | None:
    if target.partition("?")[0] != CHAT:
        return None
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return asked if isinstance(asked, dict) else None


def _refusal(asked: dict[str, Any], has_key: bool) -> Translated | None:
    """What litellm must not be asked, as an answer; None where nothing is wrong."""
    if not has_key:
        text = "no key came with the request: send the provider's own as Authorization: Bearer"
        return Translated(401, envelope(text, "invalid_request_error", "invalid_api_key"))
    other = next((name for name in asked if name not in _PASSED), None)
    if other is not None:
        text = f"{other!r} cannot be translated for {asked['model']}: leave it out"
        return Translated(400, envelope(text, "invalid_request_error", "unsupported_parameter"))
    tools = asked.get("tools") or []
    if not _objects(asked.get("messages")) or not _objects(tools) or not all(map(_is_tool, tools)):
        text = "messages and tools must be lists of objects as OpenAI has them, and tools none of type 'mcp'"
        return Translated(400, envelope(text, "invalid_request_error"))
    return None


def _objects(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _is_tool(tool: dict[str, Any]) -> bool:
    """litellm leaves out what it does not understand, and goes to MCP servers itself."""
    kind = tool.get("type")
    return isinstance(tool.get("function"), dict) if kind == "function" else kind != "mcp"


def _bearer(headers: Headers) -> str | None:
    scheme, _, token = (header(headers, b"authorization") or b"").decode("latin-1").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def known_secrets(key: str | None) -> list[str]:
    """What no message may show: the client's key, and those in this process's environment."""
    values = [value for name, value in os.environ.items() if name.upper().endswith(_SECRET_NAMES)]
    return [value for value in (key or "", *values) if len(value) >= _SHORTEST_SECRET]
