"""Colour noise and mean as an operation of FFCV, compiled by numba with the rest of its
pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader.peers.common import crop_of, mean_of
from gratis.dataset import read_stats
from gratis.loader.views.colour_noise import colour_matrix


def normalising(root: Path) -> Any:
    """The operation: uint8 NHWC to float32 NCHW, plus noise, minus mean."""
    base: Any = import_module("ffcv.pipeline.operation").Operation
    query: Any = import_module("ffcv.pipeline.allocation_query").AllocationQuery
    parallel: Callable[[], Any] = import_module("ffcv.pipeline.compiler").Compiler.get_iterator
    mean, crop = mean_of(root), crop_of(root)
    matrix = colour_matrix(read_stats(root), "sqrt").astype(np.float32)

    class Normalising(base):  # type: ignore[misc]
        def generate_code(self) -> Any:
            rows = parallel()

            def normalise(images: Any, out: Any) -> Any:
                for i in rows(images.shape[0]):
                    a, b, c = np.random.normal(), np.random.normal(), np.random.normal()  # noqa: NPY002
                    for channel in range(3):
                        row = matrix[channel]
                        shift = np.float32(row[0] * a + row[1] * b + row[2] * c)
                        for y in range(crop):
                            for x in range(crop):
                                pixel = np.float32(images[i, y, x, channel])
                                out[i, channel, y, x] = pixel + shift - mean[channel, y, x]
                return out[: images.shape[0]]

            normalise.is_parallel = True  # type: ignore[attr-defined]
            return normalise

        def declare_state_and_memory(self, previous: Any) -> tuple[Any, Any]:
            shape, kind = (3, crop, crop), np.dtype("float32")
            return replace(previous, shape=shape, dtype=kind), query(shape, kind)

    return Normalising()
