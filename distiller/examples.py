"""Owns the step from exchange to tokens: renders rows through the base model's chat template, packs them into steps.

Knows nothing of models or training. What a student is shown of a request was decided before (`router.prompt`).
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from transformers import PreTrainedTokenizerBase

from distiller.projection import MIN_MASS, Projection, Target, project
from distiller.token_bytes import TokenBytes
from proxy.errors import BadInput
from proxy.logprobs import Position


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of prompt + answer + end of turn; the first `prompt_length` of them are the prompt.

    `soft` has one entry per token after the prompt: what the teacher would have written there, or None where only the
    text is known. It is None as a whole for a row without log-probabilities. `weight` is what each token of the answer
    counts in the loss, beside those of other rows.
    """

    input_ids: list[int]
    prompt_length: int
    soft: tuple[Target | None, ...] | None = None
    weight: float = 1.0


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], answer: str) -> Encoded:
    """Renders one row. Raises BadInput where template and answer do not fit together.

    Prompt and answer are tokenized apart, since an engine that serves the student tokenizes the prompt alone.
    """
    prompt = render_prompt(tokenizer, messages)
    turn = [*(dict(message) for message in messages), {"role": "assistant", "content": answer}]
    whole = str(tokenizer.apply_chat_template(turn, tokenize=False))
    if not whole.startswith(prompt + answer):
        raise BadInput("the chat template changes the answer or what precedes it: choose another base model")
    end = whole[len(prompt) + len(answer) :].rstrip()
    end_ids, answer_ids = _ids(tokenizer, end), _ids(tokenizer, answer)
    if len(end_ids) != 1 or end_ids[0] not in tokenizer.all_special_ids:
        raise BadInput(f"the chat template ends a turn with {end!r}, which is not one special token")
    if not set(answer_ids).isdisjoint(tokenizer.all_special_ids):
        raise BadInput("the answer contains a special token of the base model as text")
    prompt_ids = _ids(tokenizer, prompt)
    return Encoded([*prompt_ids, *answer_ids, *end_ids], len(prompt_ids))


def soften(
    row: Encoded, answer: str, positions: Sequence[Position], tokens: TokenBytes, min_mass: float = MIN_MASS
) -> tuple[Encoded, Projection]:
    """The row of `encode` with the soft targets that the teacher's log-probabilities for `answer` give."""
    projection = project(positions, row.input_ids[row.prompt_length :], answer.encode(), tokens, min_mass)
    return replace(row, soft=projection.targets), projection


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> str:
    """The text the model continues with its answer, exactly as vLLM renders a chat request."""
    turns = [dict(message) for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Groups rows (by index) into steps of at most `budget` tokens: best fit, longest first; equal input, equal output.

    Each row goes where it leaves the least room, which wastes a few percent at most. Raises BadInput for rows longer
    than `budget`: nothing is cut silently.
    """
    overlong = [length for length in lengths if length > budget]
    if overlong:
        raise BadInput(f"{len(overlong)} rows exceed {budget} tokens (longest {max(overlong)}): raise it or drop them")
    steps: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, index of the step), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], -1))
        if place == len(room):
            steps.append([])
            left, step = budget, len(steps) - 1
        else:
            left, step = room.pop(place)
        steps[step].append(index)
        insort(room, (left - lengths[index], step))
    return steps


def pack_in_halves(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """As `pack`, about as full, but most steps fall into two halves of about as many tokens each.

    Two lanes that compute one half each are done at the same time. Rows of more than half of `budget` stand as `pack`
    has them; of the others two halves, packed on their own, make a step.
    """
    steps = [group for group in pack(lengths, budget) if max(lengths[index] for index in group) > budget // 2]
    rest = sorted(set(range(len(lengths))) - {index for group in steps for index in group})
    halves = [[rest[place] for place in group] for group in pack([lengths[index] for index in rest], budget // 2)]
    halves.sort(key=lambda group: -sum(lengths[index] for index in group))
    return steps + [list(chain(*halves[place : place + 2])) for place in range(0, len(halves), 2)]


def share(rows: Sequence[Encoded], process: int, processes: int) -> tuple[Sequence[Encoded], float]:
    """The rows of one step that one of several processes computes, and what the mean loss over them counts.

    The mean over processes of mean loss times weight is the mean over all completion tokens of the step. A process
    without a row of its own computes the shortest one, which counts 0, since all have to take part.
    """
    parts = split(rows, processes)
    if process >= len(parts):
        return [min(rows, key=lambda row: len(row.input_ids))], 0.0
    own = parts[process]
    return own, processes * completion_tokens(own) / completion_tokens(rows)


def split(rows: Sequence[Encoded], parts: int) -> list[Sequence[Encoded]]:
    """The rows in so many parts of about as many tokens each; in fewer where there are fewer rows."""
    if parts == 1:
        return [rows]
    loads = [0] * min(parts, len(rows))
    found: list[list[Encoded]] = [[] for _ in loads]
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        lightest = loads.index(min(loads))
        loads[lightest] += len(row.input_ids)
        found[lightest].append(row)
    return list(found)


def completion_tokens(rows: Sequence[Encoded]) -> int:
    """Tokens that are learned: those of the answers, ends of turn included."""
    return sum(len(row.input_ids) - row.prompt_length for row in rows)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
