"""Stands in for timm, which is not installed with the tests: its networks in small."""

from __future__ import annotations

from resnet import resnet18
from torch import nn


def create_model(model_name: str, num_classes: int, drop_path_rate: float = 0.0) -> nn.Sequential:
    return resnet18(num_classes, width=8)
