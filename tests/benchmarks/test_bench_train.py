"""What makes training fast leaves it the same: compiled, in bfloat16; the host does not wait for
the device in a step; and the bench says what it promises."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks.train import spinning
from benchmarks.train.bench import TrainBench, show, step_flops, torchvision_layout
from benchmarks.train.update import update_ratios
from gratis.events import EventWriter
from gratis.history import records
from gratis.loader import Loader
from gratis.signals import StopSignals, handlers_restored
from gratis.train.loop import train_epoch
from gratis.train.mesh.device import has_cpp_compiler
from gratis.train.mesh.mesh import GradientSum, Mesh
from gratis.train.metrics import share_of_loss
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.optimiser import Optimiser
from gratis.train.rank import training_config
from gratis.train.recipes import RELEASED, SAMPLE, Recipe
from gratis.train.schedule import rates
from gratis.train.settings import Launch
from gratis.train.telemetry import IntervalMeter
from gratis.train.training_state import Saver, TrainingState

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = replace(
    RELEASED,
    image_size=73,
    crop=64,
    width=1 / 16,
    batch=8,
    init="he",
    input_scale=1 / 64,
    rate=0.05,
)
WAITED = "called a synchronizing CUDA operation"  # torch: c10/cuda/CUDAFunctions.cpp


def losses(recipe: Recipe, steps: int, *, compiled: bool = False) -> tuple[list[float], AlexNet]:
    network = AlexNet(recipe, 10)
    if compiled:
        network.compile_layers()
    optimiser, found = Optimiser(network, recipe), []
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(8, 3, 64, 64).normal_(0, 60, generator=generator)
    labels = torch.arange(8)
    for step in range(steps):
        logits: Tensor = network(images, DropoutKey(seed=0, step=step, rows=range(8)))
        loss = share_of_loss(logits, labels, 8)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(rates(recipe, step, 100))
        found.append(loss.item())
    return found, network


@pytest.mark.slow
@pytest.mark.skipif(
    not has_cpp_compiler(), reason="torch compiles for CPUs by a C++ compiler (apt install g++)"
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own, of torch's and of Python's making
@pytest.mark.starts
def test_compiled_equals_eager() -> None:
    """Dropout on, several steps: nothing is compiled anew for a step's number."""
    eager, _ = losses(SMALL, 4)
    torch._dynamo.reset()  # what other tests compiled of the same functions
    with torch._dynamo.config.patch(error_on_recompile=True):
        found, _ = losses(SMALL, 4, compiled=True)
    assert found == pytest.approx(eager, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("lacks", ["a compiler", "backward"])
@pytest.mark.starts
def test_layers_that_the_compiler_gives_up_on_run_as_they_are(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU there are more reasons."""
    import torch._functorch.config
    import torch._inductor.config
    from torch._inductor.lowering import lowerings

    def no_way(*_: object, **__: object) -> None:
        raise NotImplementedError("no code for this")

    changed: dict[str, object] = {"force_disable_caches": True}
    if lacks == "a compiler":
        changed["cpp.cxx"] = ("/nowhere",)
    elif not has_cpp_compiler():
        pytest.skip("torch compiles forward by a C++ compiler (apt install g++)")
    else:
        for name in [name for name in lowerings if "_backward" in str(name)]:
            monkeypatch.setitem(lowerings, name, no_way)
    recipe = replace(SMALL, lrn=False, map_norm=False)
    images, draw, told = (
        torch.ones(2, 3, 64, 64),
        DropoutKey(seed=0, step=0, rows=range(2)),
        list[str](),
    )
    torch._dynamo.reset()  # what other tests compiled of the same functions
    with (
        torch._inductor.config.patch(changed),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=False),
    ):
        network = AlexNet(recipe, 10)
        network.compile_layers(told.append)
        for _ in range(2):
            logits = network(images, draw)
            assert torch.equal(logits, AlexNet(recipe, 10)(images, draw))
            logits.sum().backward()
    (why,) = told
    assert ("No working C++ compiler found" if lacks == "a compiler" else "no code for this") in why


@pytest.mark.prove  # twenty seconds of a compiler
@pytest.mark.skipif(
    not has_cpp_compiler(), reason="torch compiles for CPUs by a C++ compiler (apt install g++)"
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_an_exchange_before_what_cannot_be_compiled_is_not_done_again() -> None:
    """The other tower would not join in it."""
    import torch._inductor.config as inductor

    exchanged, told = list[str](), list[str]()

    def exchange(x: Tensor, _dim: int, _tower: object, layer: str, _wire: str) -> Tensor:
        exchanged.append(layer)
        inductor.cpp.cxx = ("/nowhere",)  # the compiler is lost after the first graph
        return x

    images, draw = torch.ones(2, 3, 64, 64), DropoutKey(seed=0, step=0, rows=range(2))
    recipe = replace(SMALL, lrn=False, map_norm=False)
    torch._dynamo.reset()  # what other tests compiled of the same functions
    with (
        torch.no_grad(),
        inductor.patch({"force_disable_caches": True, "cpp.cxx": inductor.cpp.cxx}),
    ):
        network = AlexNet(recipe, 10)
        network._gather = torch.compiler.disable(exchange)
        network.compile_layers(told.append)
        logits = network(images, draw)
        torch.testing.assert_close(logits, AlexNet(recipe, 10)(images, draw))
    assert exchanged == ["conv3", "fc6", "fc7", "fc8"]
    (why,) = told
    assert "No working C++ compiler found" in why


def test_bfloat16_computes_narrow_and_keeps_float32_masters() -> None:
    wide, _ = losses(SMALL, 10)
    narrow, network = losses(replace(SMALL, compute="bfloat16"), 10)
    assert narrow != wide
    assert narrow == pytest.approx(wide, rel=0.05)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    before = [p.detach().clone() for p in network.parameters()]
    assert network(torch.zeros(2, 3, 64, 64)).dtype == torch.bfloat16
    # none was rounded
    assert all(torch.equal(p, own) for p, own in zip(network.parameters(), before, strict=True))


def test_normalisation_is_in_float32_under_bfloat16() -> None:
    """Squares of hundreds summed in 8 bits of mantissa would be off by a per cent."""
    network = AlexNet(replace(RELEASED, width=1 / 16, compute="bfloat16"), 10)
    x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0)).mul(300).bfloat16()
    exact = network._lrn(x.double())
    torch.testing.assert_close(network._lrn(x).double(), exact, rtol=2**-8, atol=0)


@pytest.fixture
def own_signals() -> Iterator[StopSignals]:
    with handlers_restored():
        yield StopSignals()


@contextmanager
def one_interval(
    folder: Path, shards: Path, signals: StopSignals, device: torch.device | None
) -> Iterator[tuple[TrainingState, IntervalMeter]]:
    """A run about to begin, whose first epoch is all of one interval. Without a device: of tensors
    without values."""
    recipe = replace(SAMPLE, width=1 / 16, batch=100)
    events, network = EventWriter(folder / "rank-0.jsonl", attempt=1, rank=0), AlexNet(recipe, 10)
    if device:
        network.to(device)
    mesh = Mesh(device=device or torch.device("cpu"))
    with Loader(shards, "train", training_config(recipe), device=mesh.device) as loader:
        interval = IntervalMeter(mesh, loader, events, signals)
        interval._length = len(loader) + 1
        launch = Launch(
            runs=str(folder.parent),
            run=folder.name,
            shards=str(shards),
            recipe_name="sample",
            recipe=recipe,
            attempt=1,
            save_every=0,
        )
        state = TrainingState(
            launch=launch,
            mesh=mesh,
            network=network,
            optimiser=Optimiser(network, recipe),
            gradients=GradientSum(network.parameters(), mesh.data),
            loader=loader,
            events=events,
            signals=signals,
            saver=Saver(folder, events),
        )
        yield state, interval


def test_nothing_is_read_from_the_device_before_the_interval_s_end(
    tmp_path: Path, sample_shards: Path, own_signals: StopSignals
) -> None:
    """Whatever asks a tensor for its value (item, bool, tolist, a mask's size) raises.
    `Interval.close` is the first to, after the last step."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        one_interval(tmp_path, sample_shards, own_signals, None) as made,
    ):
        with pytest.raises(DataDependentOutputException) as raised:
            train_epoch(*made)
        assert made[0].step == len(made[0].loader) == 10
    assert "close" in [entry.name for entry in raised.traceback]


@contextmanager
def waits_here_raise() -> Iterator[None]:
    """torch's warnings of waiting, as errors in the main thread alone: the loader's thread waits
    for its own stream.

    Setting the mode warns too, that it does not see everything.
    """

    def told(message: Warning | str, *_: object) -> None:
        if WAITED in str(message) and threading.current_thread() is threading.main_thread():
            raise RuntimeError(message)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = told
        yield


def test_a_wait_of_another_thread_is_none_of_the_host_s() -> None:
    with waits_here_raise():
        with ThreadPoolExecutor(1) as other:
            other.submit(warnings.warn, WAITED, stacklevel=1).result()
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        with pytest.raises(RuntimeError, match=WAITED):
            warnings.warn(WAITED, stacklevel=1)


@pytest.mark.gpu
def test_the_host_waits_for_the_gpu_at_the_interval_s_end_alone(
    tmp_path: Path, request: pytest.FixtureRequest, own_signals: StopSignals
) -> None:
    """torch tells of whatever of its own makes a thread wait; what DALI waits for it does not
    see."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    sample_shards: Path = request.getfixturevalue("sample_shards")  # drawn only where it is used
    with one_interval(tmp_path, sample_shards, own_signals, torch.device("cuda", 0)) as made:
        with waits_here_raise():
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with pytest.raises(RuntimeError, match=WAITED) as raised:
                    train_epoch(*made)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert made[0].step == len(made[0].loader) == 10
    assert "close" in [entry.name for entry in raised.traceback]


@pytest.mark.slow
def test_the_original_rule_is_as_fast_as_fused_sgd() -> None:
    """The promise is 5 % on an idle machine; beside other work single steps tell it to three times
    as much."""
    assert statistics.median(update_ratios(SAMPLE, torch.device("cpu"), 30)) < 1.15


def test_the_baseline_is_torchvision_s() -> None:
    assert sum(p.numel() for p in torchvision_layout(1.0, 1000).parameters()) == 61_100_840


@pytest.mark.slow
def test_the_last_line_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Medians of three rounds; a batch of 128 costs 2 operations for each multiplication of the
    specification's layers, three times over, but for conv1's input."""
    forward = 96 * 55**2 * 363 + 256 * 27**2 * 1200 + 384 * 13**2 * 2304 + 384 * 13**2 * 1728
    forward += 256 * 13**2 * 1728 + 9216 * 4096 + 4096**2 + 4096 * 1000
    operations = 2 * 128 * (3 * forward - 96 * 55**2 * 363)
    assert step_flops(RELEASED) == operations
    seconds = {
        "resident": [2.0, 4.0, 3.0],
        "loader": [6.0, 4.0, 1.0],
        "baseline": [1.5, 9.0, 0.1],
        "matmul": [0.5, 0.25, 1.0],
    }
    show(TrainBench(rounds=3), torch.device("cpu"), seconds, [1.0, 1.25, 1.5, 2.0, 1.0])
    lines = capsys.readouterr().out.splitlines()
    share = (operations / 3) / (2 * 2048**3 / 0.5)
    assert lines[-1] == (
        f"bench free_ratio=0.75 speedup=0.5 images_per_s=42.67 flops_share={share:.3g} "
        "update_ratio=1.25"
    )
    assert lines[1].split() == ["resident:", "42.7", "images/s", "[32.0..64.0]"]
    assert lines[2].split() == ["loader:", "32.0", "images/s", "[21.3..128.0]"]
    assert lines[3].split() == ["baseline:", "85.3", "images/s", "[14.2..1,280.0]"]
    assert lines[-2] == (
        "original rule 1.250 times fused SGD [quartiles 1.000..1.750], 5 pairs of steps"
    )


def test_bench_says_what_it_promises(sample_shards: Path) -> None:
    command = [
        sys.executable,
        *"-m gratis bench train --shards".split(),
        str(sample_shards),
        *"--recipe sample --width 0.0625 --rounds 1 --steps 2".split(),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("bench ")
    found = {key: float(value) for key, value in (pair.split("=") for pair in last.split()[1:])}
    assert list(found) == ["free_ratio", "speedup", "images_per_s", "flops_share", "update_ratio"]
    assert all(value > 0 for value in found.values())


@pytest.mark.slow
def test_a_way_to_wait_is_measured_in_real_training(tmp_path: Path) -> None:
    with spinning.busy(1):
        cost = spinning.train(tmp_path, "a", 1, spinning.WAYS["passive"])
    start = next(one for one in records(tmp_path / "runs" / "a") if one["kind"] == "start")
    assert start["recipe"] == "sample"
    assert 1 < cost.cpu_ms < 16 * cost.wall_ms
