"""What a rank's GPU is doing, by NVIDIA's management library: read once an interval, never in a step."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from train.events import GpuCounters


class GpuMeter:
    """Reads one device. Tells nothing on a CPU, without the library (nvidia-ml-py), or where the driver refuses."""

    def __init__(self, device: torch.device) -> None:
        self._library: Any = None
        if device.type == "cuda":
            # torch counts the devices that it was allowed to see, the library all: only the identity is common
            self._open(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def _open(self, identity: str) -> None:
        try:
            pynvml: Any = importlib.import_module("pynvml")
        except ModuleNotFoundError:
            return
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(identity)
        except pynvml.NVMLError:
            return
        self._library = pynvml

    def read(self) -> GpuCounters | None:
        if (library := self._library) is None:
            return None
        busy = self._ask(lambda: library.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        nvjpg = self._ask(lambda: library.nvmlDeviceGetJpgUtilization(self._handle)[0])
        power_mw = self._ask(lambda: library.nvmlDeviceGetPowerUsage(self._handle))
        return {
            "busy": None if busy is None else busy / 100,
            "nvjpg_busy": None if nvjpg is None else nvjpg / 100,
            "memory_bytes": self._ask(lambda: library.nvmlDeviceGetMemoryInfo(self._handle).used),
            "power_w": None if power_mw is None else power_mw / 1e3,
        }

    def _ask(self, question: Callable[[], int]) -> int | None:
        """Devices differ in what they answer."""
        try:
            return question()
        except (self._library.NVMLError, AttributeError):
            return None
