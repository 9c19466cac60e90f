"""Owns what a student is shown of a request: the parts that vary. Knows no model, tokenizer or template.

A task's instructions are the same in every request; a student has learned them and need not read them again. Training
(`distiller`) and serving (`router`) both call `student_messages` with the `static` set stored with the student: it must
be asked in exactly the form in which it was taught.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from proxy.errors import BadInput

INSTRUCTION_ROLES = frozenset({"system", "developer"})
STATIC_SHARE = 0.99

Message = Mapping[str, object]


def static_lines(prompts: Iterable[Sequence[Message]]) -> frozenset[str]:
    """Hashes (16 hex digits) of the instruction lines that stand in at least 99 % of the prompts.

    A line is compared whole and stripped, so one that mixes fixed and variable text stays variable. Of fewer than two
    prompts nothing is known to be fixed: the empty set.
    """
    seen: Counter[str] = Counter()
    total = 0
    for prompt in prompts:
        total += 1
        seen.update({line_hash(line) for line in _instruction_lines(prompt)})
    if total < 2:
        return frozenset()
    needed = math.ceil(STATIC_SHARE * total)
    return frozenset(line for line, count in seen.items() if count >= needed)


def student_messages(messages: Sequence[Message], static: frozenset[str]) -> list[dict[str, str]]:
    """The request as the student sees it: a system message of the variable instruction lines, then the conversation.

    The system message is there even when nothing is left of it, since many templates would otherwise put in a default
    of their own. Raises BadInput for what a text student cannot read: images, audio, tool calls.
    """
    variable = [line for line in _instruction_lines(messages) if line_hash(line) not in static]
    spoken = [message for message in messages if message.get("role") not in INSTRUCTION_ROLES]
    return [
        {"role": "system", "content": "\n".join(variable)},
        *({"role": _role(message), "content": _text(message)} for message in spoken),
    ]


def extra_lines(messages: Sequence[Message], static: frozenset[str]) -> int:
    """How many instruction lines vary."""
    return sum(line_hash(line) not in static for line in _instruction_lines(messages))


def changed(messages: Sequence[Message], static: frozenset[str], most: int | None) -> bool:
    """Whether these instructions are others than a student learned: a fixed line is missing, or there are more lines.

    `most` is how many varying lines it ever saw, None where nobody counted them.
    """
    hashes = [line_hash(line) for line in _instruction_lines(messages)]
    return not static.issubset(hashes) or (most is not None and sum(one not in static for one in hashes) > most)


def line_hash(line: str) -> str:
    """The first 16 hex digits of the stripped line's SHA-256: instructions may be secret, so they are not stored."""
    return hashlib.sha256(line.strip().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _instruction_lines(messages: Sequence[Message]) -> list[str]:
    """Every line of the system and developer messages, in order; blank ones say nothing and are left out."""
    instructions = (_text(message) for message in messages if message.get("role") in INSTRUCTION_ROLES)
    return [line.rstrip() for text in instructions for line in text.split("\n") if line.strip()]


def _role(message: Message) -> str:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise BadInput("every message needs a role")
    return role


def _text(message: Message) -> str:
    """The message's text: a string as it is, a list of text parts joined, nothing as the empty string."""
    if message.get("tool_calls") or message.get("function_call"):
        raise BadInput("a message carries tool calls, a student reads text only: leave this request to the teacher")
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise BadInput("a message's content must be a string or a list of parts")
    return "".join(_part_text(part) for part in content)


def _part_text(part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise BadInput(f"a message has a part of type {kind}, a student reads text only: leave this request to the teacher")
