"""Owns what all small students have in common: the text they read of a conversation, the form of their answers.

Must not know any kind of student. The file that says what a folder holds is `small.json`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distiller.generate import Generated
from proxy.errors import BadInput

FACTS = "small.json"

Prompt = Sequence[Mapping[str, str]]
"""The messages of one request, as `router.prompt.student_messages` gives them."""
Predict = Callable[[Sequence[Prompt]], list[Generated]]
"""Prompts -> answers, in their order; `logprobs` (nats) has one entry for each token as it is served."""


def one_text(prompt: Prompt) -> str:
    """The conversation as one text: varying instructions first, then what was said, by whom where it was several."""
    told = [message["content"] for message in prompt if message["role"] == "system" and message["content"]]
    spoken = [message for message in prompt if message["role"] != "system"]
    if len(spoken) == 1:
        return "\n".join([*told, spoken[0]["content"]])
    return "\n".join([*told, *(f"{message['role']}: {message['content']}" for message in spoken)])


def write_facts(folder: Path, kind: str, facts: Mapping[str, Any]) -> None:
    """Write small.json; equal facts give equal bytes."""
    text = json.dumps({"kind": kind, **facts}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / FACTS).write_text(text, encoding="utf-8")


def read_facts(folder: Path) -> dict[str, Any]:
    """What small.json says, its `kind` included; BadInput where there is none that can be read."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} holds no small student ({type(error).__name__} at {FACTS}): distill again") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("kind"), str):
        raise BadInput(f"{folder / FACTS} does not say which kind of student it is: distill again")
    return facts
