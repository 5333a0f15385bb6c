"""Loss and scores: the loss rule of the mesh, top-1 and top-5 with shared ties, probabilities
averaged over views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # label of a padding row


def share_of_loss(logits: Tensor, labels: Tensor, valid: int) -> Tensor:
    """This rank's part of the global batch's mean loss: own valid rows summed, over the global
    count of valid rows.

    Summed over ranks it is the mean, and so are the gradients: nothing is scaled afterwards.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(exact, labels, reduction="sum") / valid


def valid_rows(step: int, batch: int, samples: int) -> int:
    """Rows of an epoch's step `step` that are samples: all but those that pad the last batch. Asks
    no tensor."""
    return min(batch, samples - step * batch)


def average_views(logits: Tensor, views: int) -> Tensor:
    """[N * views, C], an image's views adjacent -> probabilities [N, C]: means of probabilities,
    not of logits."""
    return logits.double().softmax(1).view(-1, views, logits.shape[1]).mean(1)


def credit(scores: Tensor, labels: Tensor, slots: int) -> Tensor:
    """[N, C], [N] -> [N] in [0, 1]: is the label among the `slots` highest? Equal scores share the
    slots left."""
    own = scores.gather(1, labels[:, None])
    # what is not a number wins, and wins against itself: no credit
    higher = (~(scores <= own)).sum(1)
    equal = (scores == own).sum(1).clamp_min(1)  # itself, unless it is not a number
    return ((slots - higher) / equal).clamp(0, 1).double()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Shares in [0, 1]; nll in nats."""

    images: int
    top1: float
    top5: float
    nll: float


def score_sums(probabilities: Tensor, labels: Tensor) -> Tensor:
    """[images, top-1 credit, top-5 credit, nll] over the rows that are samples, float64: sums add
    up over ranks."""
    valid = labels != IGNORED
    probabilities, labels = probabilities[valid], labels[valid]
    nll = -probabilities.gather(1, labels[:, None]).clamp_min(1e-300).log()
    top1, top5 = credit(probabilities, labels, 1), credit(probabilities, labels, 5)
    count = torch.tensor(float(len(labels)), dtype=torch.float64, device=labels.device)
    return torch.stack([count, top1.sum(), top5.sum(), nll.sum().double()])


def scores(sums: Tensor) -> Scores:
    images, top1, top5, nll = sums.tolist()
    return Scores(images=round(images), top1=top1 / images, top5=top5 / images, nll=nll / images)
