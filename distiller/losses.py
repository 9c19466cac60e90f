"""Owns what training makes smaller: cross-entropy on what was written, and divergence from the teacher.

Knows token ids and probabilities only: neither rows, nor models, nor where the probabilities come from.
"""

from collections.abc import Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F

from distiller.projection import Target


class SoftTargets(TypedDict):
    """The soft targets of one step, of m of its n positions, over at most K tokens each.

    `at` (m) are the positions, `ids` (m, K) the tokens of the support, `probabilities` (m, K) theirs, `tail` (m) that
    of all others. A shorter support is filled up with a token of its own at probability 0.
    """

    at: torch.Tensor
    ids: torch.Tensor
    probabilities: torch.Tensor
    tail: torch.Tensor


def pad_soft(targets: Sequence[Target | None]) -> SoftTargets:
    """The soft ones among `targets`, one per position, as tensors; there must be one at least."""
    known = [(place, target) for place, target in enumerate(targets) if target is not None]
    width = max(len(target.ids) for _, target in known)
    return {
        "at": torch.tensor([place for place, _ in known]),
        "ids": torch.tensor([[*one.ids, *one.ids[:1] * (width - len(one.ids))] for _, one in known]),
        "probabilities": torch.tensor([[*one.probabilities, *[0.0] * (width - len(one.ids))] for _, one in known]),
        "tail": torch.tensor([one.tail for _, one in known]),
    }


def hard_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy (nats) of `logits` (n, vocabulary) against the tokens written, `targets` (n).

    The sum over positions, each times its weight, `weights` (n); without, the mean.
    """
    if weights is None:
        return F.cross_entropy(logits.float(), targets)
    return (weights * F.cross_entropy(logits.float(), targets, reduction="none")).sum()


def mixed_loss(
    logits: torch.Tensor, targets: torch.Tensor, soft: SoftTargets, alpha_hard: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Over n positions, alpha CE + (1 - alpha) KL where a soft target is known, and CE elsewhere (nats).

    The mix is that of Hinton et al. 2015 (arXiv:1503.02531) at temperature 1: a tail cannot be tempered again.
    Summed with `weights`, or the mean, as in `hard_loss`.
    """
    scores = logits.float()
    hard = F.cross_entropy(scores, targets, reduction="none")
    weight = torch.ones_like(hard).index_fill(0, soft["at"], alpha_hard)
    divergence = coarse_divergence(scores[soft["at"]], soft)
    if weights is None:
        return ((weight * hard).sum() + (1 - alpha_hard) * divergence.sum()) / len(targets)
    return (weights * weight * hard).sum() + (1 - alpha_hard) * (weights[soft["at"]] * divergence).sum()


def coarse_divergence(logits: torch.Tensor, soft: SoftTargets) -> torch.Tensor:
    """KL (nats) from teacher to student over K + 1 outcomes, the support and "other", per row of `logits`.

    sum q log(q / p) + tail log(tail / (1 - sum p)). Taking all other tokens as one outcome never raises the divergence
    (data processing inequality; by the log sum inequality, Cover and Thomas 2006, theorem 2.7.1), and it is 0 at the
    teacher, where a loss over renormalised top-k probabilities still pulls away (Anshumann et al. 2025,
    arXiv:2503.16870). The student's "other" is summed from the logits outside the support, in float32: 1 - sum p has
    no digits left once the student is sure.
    """
    logits = logits.float()
    total = logits.logsumexp(-1)
    inside = logits.gather(-1, soft["ids"]) - total[:, None]
    # A finite floor: with a support of the whole vocabulary nothing is outside, and 0 times its logarithm must be 0.
    outside = logits.scatter(-1, soft["ids"], torch.finfo(torch.float32).min / 4).logsumexp(-1) - total
    mass, tail = soft["probabilities"], soft["tail"]
    return (torch.xlogy(mass, mass) - mass * inside).sum(-1) + torch.xlogy(tail, tail) - tail * outside
