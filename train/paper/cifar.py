"""The four-layer network of figure 1, and its training to a given training error.

The paper does not print this network, its rates or its batch. Chosen here is what the first author's cuda-convnet
trains in its smallest example (`layers-19pct`): three convolutions of 5x5 (32, 32, 64 channels), each followed by
pooling over 3x3 every 2 pixels (maximum, then twice the mean), and one dense layer; 32x32 inputs. Initial deviations
.0001, .01, .01, .01; momentum .9; biases at twice the rate. As the paper says: no regularisation, so no weight decay,
no augmentation; and the rate is found separately for either nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 32
CHANNELS = (32, 32, 64)
STD = (0.0001, 0.01, 0.01, 0.01)
MOMENTUM, BIAS_RATE, BATCH = 0.9, 2.0, 128
Activation = Literal["relu", "tanh"]


class FourLayers(nn.Module):
    """[N,3,32,32] mean-subtracted, 0-255 scale -> logits [N, classes]."""

    def __init__(self, activation: Activation, classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.activation: Callable[[Tensor], Tensor] = torch.relu if activation == "relu" else torch.tanh
        first, second, third = CHANNELS
        self.convs = nn.ModuleList(
            nn.Conv2d(read, made, 5, padding=2) for read, made in ((3, first), (first, second), (second, third))
        )
        self.dense = nn.Linear(third * (SIZE // 8) ** 2, classes)
        with torch.no_grad():
            for layer, std in zip((*self.convs, self.dense), STD, strict=True):
                layer.weight.normal_(0, std, generator=generator)
                layer.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for number, conv in enumerate(self.convs):
            x = self.activation(conv(x))
            # where the last window hangs over the edge, the mean is of the pixels that there are
            x = F.max_pool2d(x, 3, 2, ceil_mode=True) if number == 0 else F.avg_pool2d(x, 3, 2, ceil_mode=True)
        logits: Tensor = self.dense(x.flatten(1))
        return logits


@dataclass(frozen=True, kw_only=True)
class Course:
    """One training. errors: shares in [0, 1] of each epoch's images that were wrong when they came to be trained on."""

    activation: Activation
    rate: float
    errors: list[float]

    def epochs_to(self, target: float) -> float | None:
        """Epochs until the error is `target`, between two epochs by a straight line; None if it never is."""
        before = 1.0
        for epoch, error in enumerate(self.errors):
            if error <= target:
                share = (before - target) / (before - error) if before > error else 1.0
                return epoch + share if epoch else 1.0  # an epoch's error is its mean: within the first none is known
            before = error
        return None


def epochs(
    activation: Activation, images: Tensor, labels: Tensor, *, rate: float, classes: int, seed: int
) -> Iterator[float]:
    """The training error of epoch after epoch; ends where the loss is no number. images and labels whole, in memory."""
    network = FourLayers(activation, classes, seed).to(images.device)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = [own for name, own in network.named_parameters() if name.endswith("weight")]
    biases = [own for name, own in network.named_parameters() if name.endswith("bias")]
    groups = [{"params": weights, "lr": rate}, {"params": biases, "lr": BIAS_RATE * rate}]
    sgd = torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM)
    order = torch.Generator().manual_seed(seed)
    while True:
        wrong = torch.zeros((), dtype=torch.int64, device=images.device)
        for rows in torch.split(torch.randperm(len(images), generator=order), BATCH):
            chosen = rows.to(images.device)
            logits = network(images[chosen])
            loss = F.cross_entropy(logits, labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            sgd.zero_grad()
            wrong += (logits.detach().argmax(1) != labels[chosen]).sum()
        if not loss.isfinite():
            return
        yield wrong.item() / len(images)
