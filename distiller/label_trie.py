"""Owns the tokens of a closed set of labels as one tree: what labels begin with alike is computed once.

Must not know models or texts. A token is only fed to a model to learn what follows it, so the last one of a label, its
end of turn, is predicted and never fed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PROMPT = -1  # the place before the first token of every label: the prompt's end


@dataclass(frozen=True, slots=True)
class Trie:
    """Tokens to feed after a prompt, parents before children, and the steps of each label.

    `parents` are places in `tokens`, or `PROMPT`; `depths` count from 0. A label's steps are (place, token): where the
    model has to predict that token.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]


def label_trie(labels: Sequence[Sequence[int]]) -> Trie:
    """The tree of labels, each given as its token ids, end of turn included."""
    places: dict[tuple[int, ...], int] = {(): PROMPT}
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    steps = []
    for label in map(tuple, labels):
        for end in range(1, len(label)):
            if label[:end] not in places:
                places[label[:end]] = len(tokens)
                tokens.append(label[end - 1])
                parents.append(places[label[: end - 1]])
                depths.append(end - 1)
        steps.append(tuple((places[label[:end]], token) for end, token in enumerate(label)))
    return Trie(tuple(tokens), tuple(parents), tuple(depths), tuple(steps))
