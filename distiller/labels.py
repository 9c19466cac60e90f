"""Owns one kind of student: a language model that scores the labels of a closed set instead of writing one of them.

Each label's probability is the product of its tokens', end of turn included, after the prompt; the answer is the
likeliest label, and its confidence that label's share of what all labels have together. Prompt and labels are one
sequence and one pass: a token of a label attends to the prompt and to its own beginning only (tree attention, Miao et
al., "SpecInfer", 2023), and what labels begin with alike stands in it once. Must not know exchanges, training or
servers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from distiller.base import base_identity
from distiller.embedding import Encoders
from distiller.examples import encode, render_prompt
from distiller.generate import Generated, Model, load_student
from distiller.head import MOST_TOLD
from distiller.label_trie import PROMPT, Trie, label_trie
from distiller.predict import Predict, Prompt, read_facts, write_facts
from proxy.errors import BadInput, Refused
from router.confidence import confidence

KIND = "labels"
MOST_TOKENS = 2048  # of a prompt with its answer
MOST_LABEL_TOKENS = 1024  # of all labels together, as each has its odds over the whole vocabulary in memory
_FILES = ("adapter_config.json", "adapter_model.safetensors")


def save(folder: Path, base: Path, names: Sequence[str]) -> None:
    """Makes the adapter in `folder`, trained on `base`, a student of these labels."""
    write_facts(folder, KIND, {"base_sha256": base_identity(base), "labels": list(names)})


def load(folder: Path, encoders: Encoders) -> Predict:
    """The student in `folder`; BadInput where it cannot be read, or none of the models is the one it grew from.

    A prompt that is too long is not answered: its text is empty, and has not `finished`.
    """
    facts = read_facts(folder)
    try:
        names, base = [str(name) for name in facts["labels"]], encoders.folder(facts["base_sha256"])
        if missing := [name for name in _FILES if not (folder / name).is_file()]:
            raise FileNotFoundError(missing[0])  # peft would ask a hub for it
        scorer = _scorer(load_student(base, folder), names)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        text = f"{folder} holds a student of labels that cannot be read ({type(error).__name__}): distill again"
        raise BadInput(text) from None

    def predict(prompts: Sequence[Prompt]) -> list[Generated]:
        return [scorer.answer(prompt) for prompt in prompts]

    return predict


def tree_of(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> Trie:
    """The labels as tokens, as a student is taught to write them; Refused where they are too many to be scored."""
    encoded = [encode(tokenizer, [{"role": "user", "content": ""}], name) for name in names]
    trie = label_trie([one.input_ids[one.prompt_length :] for one in encoded])
    if len(trie.tokens) > MOST_LABEL_TOKENS:
        raise Refused(
            f"the {len(names)} labels have {len(trie.tokens)} tokens together, and {MOST_LABEL_TOKENS} are scored at "
            "most: distill a student that writes"
        )
    return trie


@dataclass(frozen=True, slots=True)
class _Scorer:
    """A model with labels to score, each of fewer than `MOST_TOKENS` - `most` tokens.

    `ancestors` (tokens, tokens) is who attends to whom in the tree. `rows`, `wanted` and `owners` are the steps of all
    labels: the row of logits that is read (0: after the prompt), the token that is wanted there, whose step it is.
    """

    model: Model
    names: Sequence[str]
    trie: Trie
    ancestors: torch.Tensor
    rows: torch.Tensor
    wanted: torch.Tensor
    owners: torch.Tensor
    most: int

    @torch.inference_mode()
    def answer(self, prompt: Prompt) -> Generated:
        """One at a time: the labels' tokens keep the cores busy, and nobody's answer depends on its company."""
        text = render_prompt(self.model.tokenizer, prompt)
        ids = list(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) > self.most:
            return Generated("", 0.0, False, (), len(ids))
        shares = self._logprobs(ids).log_softmax(0)
        order = torch.argsort(shares, descending=True, stable=True)[:MOST_TOLD]
        likeliest = tuple((self.names[int(one)], float(shares[one])) for one in order)
        answer, best = likeliest[0]
        return Generated(answer, confidence([best]), True, (best,), len(ids), likeliest)

    def _logprobs(self, prompt: Sequence[int]) -> torch.Tensor:
        """The log-probability (nats) of each label after the prompt, in float32."""
        network, length, tree = self.model.network, len(prompt), self.trie
        depths = torch.tensor(tree.depths, dtype=torch.long)
        told = network(
            input_ids=torch.tensor([[*prompt, *tree.tokens]], device=network.device),
            attention_mask=self._mask(length).to(network.device),
            position_ids=torch.cat([torch.arange(length), length + depths])[None].to(network.device),
            logits_to_keep=torch.arange(length - 1, length + len(tree.tokens), device=network.device),
            use_cache=False,
        )
        logits = told.logits[0].float()
        steps = logits[self.rows, self.wanted] - logits.logsumexp(-1)[self.rows]
        return torch.zeros(len(self.names)).index_add(0, self.owners, steps.cpu())

    def _mask(self, length: int) -> torch.Tensor:
        """What may be attended to, added to the scores: (1, 1, prompt and tree, prompt and tree)."""
        seen = torch.ones(length + len(self.ancestors), length + len(self.ancestors), dtype=torch.bool).tril()
        seen[length:, length:] = self.ancestors
        dtype = self.model.network.dtype
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[None, None]


def _scorer(model: Model, names: Sequence[str]) -> _Scorer:
    trie = tree_of(model.tokenizer, names)
    ancestors = torch.eye(len(trie.tokens), dtype=torch.bool)
    for place, parent in enumerate(trie.parents):
        if parent != PROMPT:
            ancestors[place] |= ancestors[parent]
    steps = [(place - PROMPT, token, label) for label, own in enumerate(trie.steps) for place, token in own]
    rows, wanted, owners = torch.tensor(steps, dtype=torch.long).T
    reach = min(MOST_TOKENS, model.network.config.max_position_embeddings)
    return _Scorer(model, names, trie, ancestors, rows, wanted, owners, reach - max(map(len, trie.steps)))
