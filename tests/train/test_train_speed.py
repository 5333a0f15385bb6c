"""What makes training fast leaves it the same: compiled, in bfloat16; and the bench says what it promises."""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from train.__main__ import has_cpp_compiler
from train.bench import torchvision_layout
from train.network import AlexNet, Draw
from train.optim import Optimiser
from train.recipes import RELEASED, SAMPLE, Recipe
from train.schedule import rates
from train.scores import share_of_loss
from train.update import update_ratios

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = replace(RELEASED, image_size=73, crop=64, width=1 / 16, batch=8, init="he", input_scale=1 / 64, rate=0.05)


def losses(recipe: Recipe, steps: int, *, compiled: bool = False) -> tuple[list[float], AlexNet]:
    network = AlexNet(recipe, 10)
    if compiled:
        network.compile_layers()
    optimiser, found = Optimiser(network, recipe), []
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(8, 3, 64, 64).normal_(0, 60, generator=generator)
    labels = torch.arange(8)
    for step in range(steps):
        logits: Tensor = network(images, Draw(seed=0, step=step, rows=range(8)))
        loss = share_of_loss(logits, labels, 8)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(rates(recipe, step, 100))
        found.append(loss.item())
    return found, network


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="torch compiles for CPUs by a C++ compiler (apt install g++)")
@pytest.mark.filterwarnings("ignore")  # the compiler's own, of torch's and of Python's making
def test_compiled_equals_eager() -> None:
    """Dropout on, several steps: nothing is compiled anew for a step's number."""
    eager, _ = losses(SMALL, 4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found, _ = losses(SMALL, 4, compiled=True)
    assert found == pytest.approx(eager, rel=1e-4)


def test_bfloat16_computes_narrow_and_keeps_float32_masters() -> None:
    wide, _ = losses(SMALL, 10)
    narrow, network = losses(replace(SMALL, compute="bfloat16"), 10)
    assert narrow != wide
    assert narrow == pytest.approx(wide, rel=0.05)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert network(torch.zeros(2, 3, 64, 64)).dtype == torch.bfloat16


def test_normalisation_is_in_float32_under_bfloat16() -> None:
    """Squares of hundreds summed in 8 bits of mantissa would be off by a per cent."""
    network = AlexNet(replace(RELEASED, width=1 / 16, compute="bfloat16"), 10)
    x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0)).mul(300).bfloat16()
    exact = network._lrn(x.double())
    torch.testing.assert_close(network._lrn(x).double(), exact, rtol=2**-8, atol=0)


def test_the_original_rule_is_as_fast_as_fused_sgd() -> None:
    """The promise is 5 % on an idle machine; beside other work single steps tell it to three times as much."""
    assert statistics.median(update_ratios(SAMPLE, torch.device("cpu"), 30)) < 1.15


def test_the_baseline_is_torchvision_s() -> None:
    assert sum(p.numel() for p in torchvision_layout(1.0, 1000).parameters()) == 61_100_840


@pytest.mark.slow
def test_bench_says_what_it_promises(sample_shards: Path) -> None:
    command = [sys.executable, "-m", "train", "bench", "--shards", str(sample_shards), "--recipe", "sample",
               "--width", "0.0625", "--rounds", "1", "--steps", "2"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("bench ")
    found = {key: float(value) for key, value in (pair.split("=") for pair in last.split()[1:])}
    assert list(found) == ["free_ratio", "speedup", "images_per_s", "flops_share", "update_ratio"]
    assert all(value > 0 for value in found.values())
