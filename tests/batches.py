"""A loader's batches, kept and compared."""

from __future__ import annotations

import pytest
import torch

from gratis.loader import Batch, Loader

# of a test with many other cases: the quick tests take the first alone
LAYOUTS = [
    "nchw",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("channels_last", "nhwc")),
]


def epoch(loader: Loader) -> list[Batch]:
    """The rest of an epoch, copied out of the buffers, on the CPU."""
    return [Batch(*(tensor.cpu().clone() for tensor in batch)) for batch in loader]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    """To the bit, and in the same layout."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)
            assert a.stride() == b.stride()
