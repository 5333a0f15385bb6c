"""JPEGs to batches on a GPU by the engine: it decodes, cuts, resizes and mirrors on the CPU, to
bytes; those are copied to the device, and torch finishes them there.

On a GPU it has yet to run. A copy is a fourth of the finished float32, and goes on while the next
batch is decoded. Pixels are libjpeg-turbo's, as on a CPU; nvJPEG's differ by a few levels."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gratis.loader.decoding.native import NativeBatches
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.plan import Draws, Ids
from gratis.loader.views.normalisation import normalisation
from gratis.loader.views.torch_views import finish_crops

IN_FLIGHT = 2  # batches of bytes: one is being copied, one being decoded


class _Staging:
    """Bytes of a batch on the way to the device."""

    def __init__(self, plan: EpochPlan) -> None:
        shape = _shape(plan)
        pinned = plan.device.type == "cuda"  # else the copy would make the CPU wait
        self.crops = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self.copied: Any = None  # CUDA event; None: nothing was

    def wait(self) -> None:
        """Until it may be written again."""
        if self.copied is not None:
            self.copied.synchronize()

    def copy_to(self, device: torch.device, rows: int) -> Tensor:
        there = self.crops[:rows].to(device, non_blocking=True)
        if device.type == "cuda":
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record(torch.cuda.current_stream(device))
        return there


def _shape(plan: EpochPlan) -> tuple[int, int, int, int]:
    rows, side = plan.decoded_rows * plan.config.views, plan.config.crop
    return rows, side, side, 3


class NativeImages:
    """Batches of plans on the plans' device, one after the other. For one thread at a time."""

    def __init__(self, native: NativeBatches) -> None:
        self._native = native
        self._staging: list[_Staging] = []

    def close(self) -> None:
        """Waits for what is being copied, and frees its memory."""
        for staging in self._staging:
            staging.wait()
        self._staging = []
        self._native.close()

    def images(
        self, plan: EpochPlan
    ) -> Generator[tuple[Ids, Ids, Callable[[], Tensor]], None, None]:
        """Of each step its samples' draw ids, their ids, and what makes their images on the current
        stream; to be called before the next is taken."""
        if not self._staging or self._staging[0].crops.shape != _shape(plan):
            for staging in self._staging:  # of an epoch with another crop
                staging.wait()
            self._staging = [_Staging(plan) for _ in range(IN_FLIGHT)]
        mean = torch.from_numpy(normalisation(plan.stats, plan.config, plan.epoch).mean)
        there = mean.to(plan.device)
        for number, (batch, fill) in enumerate(self._native.encoded(bytes_plan(plan))):
            staging = self._staging[number % IN_FLIGHT]
            staging.wait()
            rows = len(batch.ids) * plan.config.views
            ids = fill(staging.crops[:rows])
            yield batch.wanted, ids, partial(_finish, staging, rows, batch.draws, there, plan)


def _finish(staging: _Staging, rows: int, draws: Draws, mean: Tensor, plan: EpochPlan) -> Tensor:
    crops = staging.copy_to(plan.device, rows)
    return finish_crops(crops, draws, mean, plan.stats, plan.config, plan.epoch)


def bytes_plan(plan: EpochPlan) -> EpochPlan:
    """The same samples and views as bytes on the CPU, without mean, noise and scale."""
    grey_levels: dict[str, Any] = {"normalize": None, "mean": "central", "noise": "off"}
    grey_levels["erasing"] = None  # of finished images
    config = replace(plan.config, dtype=torch.uint8, layout="nhwc", **grey_levels)
    return replace(plan, config=config, device=torch.device("cpu"))
