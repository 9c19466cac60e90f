"""Owns what one exchange can cost at most, seen from its request, and what it did cost, seen when it is over.

Must not know whose money it is. A bound holds for text: a token stands for at least one byte of it, JSON writes no
text in fewer bytes than it has, and the few tokens that frame a message are fewer than the bytes that do. What a
request only points to - images, files, earlier answers - is bounded by what a model can read at all.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.bodies import inflated
from proxy.deciding import TEACHER
from proxy.derive import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Derived, Price, derive
from proxy.errors import Refused
from proxy.exchange import Exchange
from proxy.headers import header
from proxy.limits import MOST, NANO, Need, Used
from proxy.messages import USUAL, WRITTEN_AT_MOST, prompt_to_pay

_ASKED_LENGTH = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    COMPLETIONS: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
    MESSAGES: ("max_tokens",),
}
_BYTES_A_TOKEN = 4  # of usual text; for rates, which need no bound
_USUAL_ANSWER = 1000  # tokens; what an answer without a limit is taken for in rates until it is there
# These answer later, with another model, or for fees that no usage shows.
_UNSEEN = (
    "background", "models", "fallbacks", "plugins", "web_search_options", "audio",
    "mcp_servers", "container", "context_management",
)  # fmt: skip
_USUAL = {"service_tier": (None, "auto", "default", "flex")}
_CLIENTS_TOOLS = ("function", "custom")
_TEXT_TURNS = (None, "message", "function_call", "function_call_output", "reasoning")
_TEXT_PARTS = (
    "text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text",
    "thinking", "redacted_thinking", "tool_use",
)  # fmt: skip
_TOLD_WITH_TOOLS = 1000  # tokens; Anthropic tells a model in some hundreds what tools are
_ELSEWHERE = ("previous_response_id", "conversation", "prompt")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The most tokens a model reads, and the most it answers with."""

    context: int = 200_000
    answer: int = 32_768


SizesOf = Callable[[str], Sizes]


@dataclass(frozen=True, slots=True)
class Bound:
    """Of one request: tokens of the prompt, and of all its answers together, at most; and what it is taken to need.

    A token of the prompt counts as often as a token of input could be paid for it.
    """

    model: str
    prompt: int
    completion: int
    answers: int
    need: Need


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that it can be seen when a key is given twice."""


def fields_of(body: bytes) -> dict[str, Any] | None:
    """The request's members by their names in lower case, or None where it cannot be read for certain.

    Of a key given twice, or in two spellings, some servers take the first and some the last.
    """
    try:
        pairs = json.loads(body, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs):
        return None
    fields = {name.lower(): value for name, value in pairs}
    return fields if len(fields) == len(pairs) else None


def rate_need(path: str, fields: Mapping[str, Any] | None, size: int) -> Need:
    """What a request of `size` bytes counts for in tokens a minute; an estimate."""
    asked = _asked_length(path, fields or {})
    expected = 0 if path == EMBEDDINGS else _USUAL_ANSWER if asked is None else asked
    return Need(min(size // _BYTES_A_TOKEN + expected, MOST))


def bound_of(path: str, fields: Mapping[str, Any] | None, size: int, price: Price, sizes_of: SizesOf) -> Bound:
    """The most a request of `size` bytes to a paid path can cost; Refused where that cannot be known."""
    if fields is None:
        raise Refused("the body is not one JSON object that names everything once, so its cost is not known beforehand")
    model = fields.get("model")
    if not isinstance(model, str):
        raise Refused("no model is named, so the cost is not known beforehand")
    _refuse_unseen(path, fields)
    sizes = sizes_of(model)
    prompt = size if _is_text(path, fields) else max(size, sizes.context)
    if path == MESSAGES:
        prompt = math.ceil((prompt + _TOLD_WITH_TOOLS) * WRITTEN_AT_MOST)
    answers = _answers(path, fields)
    length = _asked_length(path, fields)
    completion = 0 if path == EMBEDDINGS else min(answers * (sizes.answer if length is None else length), MOST)
    nano = _nano(price(model, prompt, 0, completion))
    if nano is None:
        raise Refused(f"the model {model!r} has no price, so this key cannot pay for it: set one under [money.prices]")
    return Bound(model, prompt, completion, answers, Need(rate_need(path, fields, size).tokens, nano))


def used(exchange: Exchange, bound: Bound | None, need: Need, price: Price) -> Used:
    """What an exchange did use; without `bound` no money is asked for. Nothing where the teacher gave no answer.

    Status 0 is a client that left before an answer came: the teacher has read the prompt, and asks for that.
    """
    if exchange.served_by != TEACHER or exchange.status not in (0, 200):
        return Used()
    plain = _plain(exchange) if exchange.status else ""
    model = "" if bound is None else _model(exchange, bound)
    derived = _derived(exchange, plain)
    prompt, completion = derived.prompt_tokens, derived.completion_tokens
    if derived.usage_source == "provider" and prompt is not None and completion is not None and prompt + completion:
        tokens = min(prompt + completion, MOST)
        if bound is None:
            return Used(tokens)
        paid = prompt_to_pay(prompt, derived.usage)
        nano = _nano(price(model, paid, derived.cached_tokens, completion))
        return Used(tokens, bound.need.nano if nano is None else nano, nano is None)
    if bound is None:
        return Used(need.tokens, 0, True)
    thought = exchange.path.rstrip("/") == MESSAGES  # beside the answer: all that came stands for both
    seen = min(bound.completion, _bytes(plain) if thought else _seen(derived, plain, bound.answers))
    nano = _nano(price(model, bound.prompt, 0, seen))
    return Used(need.tokens, bound.need.nano if nano is None else nano, True)


def _model(exchange: Exchange, bound: Bound) -> str:
    """The model that was asked in the end: another one may have been, in the place of the one that was bounded."""
    named = (fields_of(exchange.request) or {}).get("model")
    return named if isinstance(named, str) else bound.model


def _refuse_unseen(path: str, fields: Mapping[str, Any]) -> None:
    unseen = next((name for name in _UNSEEN if fields.get(name)), None)
    if unseen is not None:
        raise Refused(f"what {unseen!r} costs is not known beforehand: a key with a budget cannot ask for it")
    usual = USUAL if path == MESSAGES else _USUAL
    unusual = next((name for name, values in usual.items() if fields.get(name) not in values), None)
    if unusual is not None:
        raise Refused(f"what this {unusual} costs is not known: a key with a budget cannot ask for it")
    tools, kinds = fields.get("tools") or [], (None, *_CLIENTS_TOOLS) if path == MESSAGES else _CLIENTS_TOOLS
    if not isinstance(tools, list) or any(_member(tool, "type") not in kinds for tool in tools):
        raise Refused("what tools of the provider's own cost is not known: a key with a budget cannot ask for them")


def _is_text(path: str, fields: Mapping[str, Any]) -> bool:
    if path == RESPONSES and any(fields.get(name) for name in _ELSEWHERE):
        return False
    turns = fields.get({CHAT: "messages", MESSAGES: "messages", COMPLETIONS: "prompt"}.get(path, "input"))
    return isinstance(turns, str) or (
        isinstance(turns, list) and not isinstance(turns, _Pairs) and all(_is_text_turn(turn) for turn in turns)
    )


def _is_text_turn(turn: Any) -> bool:
    if not isinstance(turn, _Pairs):  # A text, or tokens: what else there is, is the teacher's to refuse.
        return not isinstance(turn, list) or all(type(token) is int for token in turn)
    if _member(turn, "type") not in _TEXT_TURNS or _member(turn, "audio"):
        return False
    return all(_is_text_content(value) for name, value in turn if name in ("content", "output", "summary"))


def _is_text_content(content: Any) -> bool:
    if isinstance(content, list) and not isinstance(content, _Pairs):
        return all(_is_text_part(part) or _is_text_result(part) for part in content)
    return content is None or isinstance(content, str)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, str) or _member(part, "type") in _TEXT_PARTS


def _is_text_result(part: Any) -> bool:
    """Whether it is what a tool of Anthropic's form said, in text: one level deep, whatever a client nests."""
    if _member(part, "type") != "tool_result":
        return False
    told = _member(part, "content")
    return told is None or isinstance(told, str) or (isinstance(told, list) and all(map(_is_text_part, told)))


def _answers(path: str, fields: Mapping[str, Any]) -> int:
    asked = max(_count(fields.get("n")) or 1, _count(fields.get("best_of")) or 1)
    prompts = fields.get("prompt")
    several = path == COMPLETIONS and isinstance(prompts, list) and any(type(one) is not int for one in prompts)
    return asked * (len(prompts) if several and prompts else 1)


def _asked_length(path: str, fields: Mapping[str, Any]) -> int | None:
    asked = [count for name in _ASKED_LENGTH.get(path, ()) if (count := _count(fields.get(name))) is not None]
    return max(asked) if asked else None


def _count(value: Any) -> int | None:
    """A number as lenient servers read it; None where there is none above 0."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        count = math.ceil(float(value))
    except (ValueError, OverflowError):
        return None
    return min(count, MOST) if count > 0 else None


def _member(value: Any, name: str) -> Any:
    return dict(value).get(name) if isinstance(value, _Pairs) else None


def _nano(usd: float | None) -> int | None:
    """Rounded up; None for what is no amount of money."""
    if usd is None or not 0 <= usd < math.inf:
        return None
    return min(math.ceil(round(usd * NANO, 3)), MOST)


def _plain(exchange: Exchange) -> str:
    coding = header(exchange.response_headers, b"content-encoding")
    body = bytes(exchange.response)
    return (inflated(body, coding.decode("latin-1")) if coding else body).decode("utf-8", "replace")


def _derived(exchange: Exchange, plain: str) -> Derived:
    asked = exchange.request.decode("utf-8", "replace")
    found = derive(exchange.path, "-", asked, exchange.status, exchange.stream, plain)
    if exchange.stream and found.usage is None and found.answer is None:  # Perhaps cut off inside its last event.
        whole = plain[: plain.rfind("\ndata:") + 1]
        found = derive(exchange.path, "-", asked, exchange.status, True, whole)
    return found


def _seen(derived: Derived, plain: str, answers: int) -> int:
    """Tokens of the answers at most, as far as they came: of several, one is read and stands for the others."""
    if derived.answer is None and derived.tool_calls is None:
        return _bytes(plain)
    return answers * _bytes(f"{derived.answer or ''}{derived.tool_calls or ''}")


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
