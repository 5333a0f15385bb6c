"""The four-layer network of figure 1, and its training to a given training error.

The paper does not print this network, its rates or its batch. Chosen here is what the first
author's cuda-convnet trains in its smallest example (`layers-19pct`): three convolutions of 5x5
(32, 32, 64 channels), each followed by pooling over 3x3 every 2 pixels (maximum, then twice the
mean), and one dense layer; 32x32 inputs. Initial deviations .0001, .01, .01, .01; momentum .9;
biases at twice the rate. As in the paper: no regularisation, so no weight decay, no augmentation;
and the rate is found separately for either nonlinearity."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gratis.atomic import atomic_output
from gratis.loader import Loader, LoaderConfig

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
        self.activation = torch.relu if activation == "relu" else torch.tanh
        first, second, third = CHANNELS
        self.convs = nn.ModuleList(
            nn.Conv2d(read, made, 5, padding=2)
            for read, made in ((3, first), (first, second), (second, third))
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
            pool = F.avg_pool2d if number else F.max_pool2d
            x = pool(x, 3, 2, ceil_mode=True)
        logits: Tensor = self.dense(x.flatten(1))
        return logits


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """One training. errors: shares in [0, 1] of each epoch's images that were wrong when they came
    to be trained on."""

    activation: Activation
    rate: float
    errors: list[float]
    diverged: bool = False  # its loss was no number: there is no further epoch

    def epochs_to(self, target: float) -> float | None:
        """Epochs until the error is `target`, between two epochs by a straight line; None if it
        never is."""
        before = 1.0
        for epoch, error in enumerate(self.errors):
            if error <= target:
                share = (before - target) / (before - error) if before > error else 1.0
                # an epoch's error is its mean: within the first none is known
                return epoch + share if epoch else 1.0
            before = error
        return None


class FourLayersTraining:
    """One network, images and labels whole in memory; it may be put down between two epochs and
    taken up again."""

    def __init__(
        self,
        activation: Activation,
        images: Tensor,
        labels: Tensor,
        *,
        rate: float,
        classes: int,
        seed: int,
    ):
        self.activation, self.rate = activation, rate
        self.images, self.labels = images, labels
        self.network = FourLayers(activation, classes, seed).to(images.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.named = dict(self.network.named_parameters())
        groups = []
        for kind, share in (("weight", 1.0), ("bias", BIAS_RATE)):
            own = [value for name, value in self.named.items() if name.endswith(kind)]
            groups.append({"params": own, "lr": share * rate})
        self.sgd = torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM)
        self.order = torch.Generator().manual_seed(seed)

    def epochs(self) -> Iterator[float]:
        """The training error of epoch after epoch; ends where the loss is no number."""
        while True:
            wrong = torch.zeros((), dtype=torch.int64, device=self.images.device)
            for rows in torch.split(torch.randperm(len(self.images), generator=self.order), BATCH):
                chosen = rows.to(self.images.device)
                logits = self.network(self.images[chosen])
                loss = F.cross_entropy(logits, self.labels[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                self.sgd.step()
                self.sgd.zero_grad()
                wrong += (logits.detach().argmax(1) != self.labels[chosen]).sum()
            if not loss.isfinite():
                return
            yield wrong.item() / len(self.images)

    def state(self) -> dict[str, Tensor]:
        """After an epoch: weights, momenta, and the generator of the order."""
        state = {"order": self.order.get_state()}
        for name, own in self.named.items():
            state[name] = own.detach()
            state[f"{name}.momentum"] = self.sgd.state[own]["momentum_buffer"]
        return {name: own.cpu().contiguous() for name, own in state.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """What `state` returned."""
        with torch.no_grad():
            for name, own in self.named.items():
                own.copy_(state[name])
                momentum = torch.empty_like(own).copy_(state[f"{name}.momentum"])
                self.sgd.state[own]["momentum_buffer"] = momentum
        self.order.set_state(state["order"])


@dataclass(kw_only=True)
class FourLayersCheckpoint:
    """A training between two epochs: the file from which it goes on, its errors so far, and its
    state."""

    path: Path
    terms: str
    errors: list[float] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, terms: str) -> FourLayersCheckpoint:
        """Empty where there is none that can be read, or one of other terms: it begins anew."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                own = json.loads(metadata.get("terms", "{}"))
                if own | json.loads(terms) == own:  # earlier versions wrote more
                    state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
                    errors = json.loads(metadata["errors"])
                    return cls(path=path, terms=terms, errors=errors, state=state)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            pass
        return cls(path=path, terms=terms)

    def write(self, state: dict[str, Tensor]) -> None:
        with atomic_output(self.path, "choose another --out") as draft:
            draft.write_bytes(save(state, {"terms": self.terms, "errors": json.dumps(self.errors)}))


def whole_split(shards: str, samples: int) -> tuple[Tensor, Tensor]:
    """The first images [N,3,32,32], mean-subtracted, and labels [N], on the device."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    images = torch.empty(samples, 3, SIZE, SIZE, device=device, memory_format=torch.channels_last)
    labels = torch.empty(samples, dtype=torch.int64)
    config = LoaderConfig.alexnet(batch_size=250, crop=SIZE, augment=False)
    with Loader(shards, "train", config, device=device) as loader:
        for batch in loader:
            real = (batch.ids >= 0) & (batch.ids < samples)
            images[batch.ids[real]] = batch.images[real.to(device)]
            labels[batch.ids[real]] = batch.labels.cpu()[real]
            if batch.ids[0] >= samples:  # in the order of ids: nothing of ours follows
                break
    return images, labels.to(device)
