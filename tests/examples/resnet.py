"""A ResNet-18 as torchvision builds it, for examples where torchvision is not installed."""

from __future__ import annotations

import itertools

from torch import Tensor, nn


def conv(inputs: int, outputs: int, side: int, stride: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, outputs, 3, stride), nn.ReLU(), conv(outputs, outputs, 3, 1)
        )
        self.short = conv(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = nn.functional.relu(self.body(images) + self.short(images))
        return result


def resnet18(num_classes: int = 1000, width: int = 64) -> nn.Sequential:
    """[b,3,S,S] to logits [b,num_classes]. width: channels of the first stage."""
    stem = (conv(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    widths = [width * scale for scale in (1, 1, 2, 4, 8)]
    stages = [
        nn.Sequential(Block(before, after, 2 if after > before else 1), Block(after, after, 1))
        for before, after in itertools.pairwise(widths)
    ]
    return nn.Sequential(
        *stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes)
    )
