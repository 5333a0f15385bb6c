"""What the GPU tells of itself: nothing on a CPU, sane numbers on a device."""

from __future__ import annotations

import time

import pytest
import torch

from train.gpu import GpuMeter


def test_a_cpu_tells_nothing() -> None:
    assert GpuMeter(torch.device("cpu")).read() is None


@pytest.mark.gpu
def test_a_gpu_tells_its_state_in_little_time() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    held = torch.zeros(1 << 28, device="cuda")
    meter = GpuMeter(held.device)
    begin = time.perf_counter()
    read = meter.read()
    took = time.perf_counter() - begin
    assert read is not None
    assert read["memory_bytes"] is not None
    assert read["memory_bytes"] > held.nbytes
    assert read["busy"] is None or 0 <= read["busy"] <= 1
    assert read["power_w"] is None or 1 < read["power_w"] < 2000
    print(f"a look at the GPU: {took * 1e3:.2f} ms")
    assert took < 0.1
