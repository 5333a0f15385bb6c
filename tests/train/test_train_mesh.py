"""Several processes equal one: loss, logits, gradients, weights after three steps; checkpoints
travel between meshes.

Real processes over gloo, started with the environment that torchrun gives.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from gratis.errors import GratisError
from gratis.train import checkpoint
from gratis.train.analysis.summary import exchanges
from gratis.train.checkpoint import State
from gratis.train.launcher.checks import choose_world
from gratis.train.mesh.mesh import (
    ALONE,
    Axis,
    GradientSum,
    Mesh,
    TrafficMeter,
    _axes,
    _store,
    connect,
    disconnect,
    from_rank_0,
    gather,
    gather_rows,
    gather_world,
    listen_on_loopback,
    sum_over_hosts,
    sum_over_world,
)
from gratis.train.metrics import share_of_loss
from gratis.train.network.alexnet import AlexNet, weight_shapes
from gratis.train.network.dropout import DropoutKey
from gratis.train.optimiser import Optimiser
from gratis.train.recipes import RELEASED, Recipe
from gratis.train.schedule import rates
from gratis.train.settings import Wire

ROOT = Path(__file__).resolve().parent.parent.parent
CLASSES = 101  # odd: the second tower holds one class fewer
BATCH = 8
RECIPE = replace(
    RELEASED,
    image_size=73,
    crop=64,
    width=1 / 16,
    batch=BATCH,
    init="he",
    input_scale=1 / 64,
    rate=0.05,
)
LOCAL_FC6 = replace(RECIPE, exchange=("conv4", "fc7"), conv6=True, pool="separate", crop=73)
VALID = 7  # the last row is padding


def whole_batch(step: int, dtype: torch.dtype, crop: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.empty(BATCH, 3, crop, crop, dtype=dtype).normal_(0, 70, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    labels[VALID:] = -100
    return images, labels


def three_steps(
    mesh: Mesh,
    dtype: torch.dtype,
    recipe: Recipe = RECIPE,
    save_to: Path | None = None,
    wire: Wire = "float32",
) -> dict[str, Any]:
    """What a run of three steps computes, as whole-network tensors: the same on every rank of every
    mesh."""
    network = AlexNet(recipe, CLASSES, tower=mesh.tower, wire=wire).to(
        dtype=dtype, memory_format=torch.channels_last
    )
    optimiser, gradients = (
        Optimiser(network, recipe),
        GradientSum(network.parameters(), mesh.data, wire),
    )
    per_rank, rows = BATCH // mesh.world, BATCH // mesh.data.size
    own = slice(mesh.rank * per_rank, (mesh.rank + 1) * per_rank)
    found: dict[str, Any] = {}
    for step in range(3):
        images, labels = (part[own] for part in whole_batch(step, dtype, recipe.crop))
        positions = range(mesh.data.index * rows, (mesh.data.index + 1) * rows)
        logits = network(
            gather(images, 0, mesh.tower, "images"), DropoutKey(seed=0, step=step, rows=positions)
        )
        loss = share_of_loss(mesh.tower.own(logits), labels, VALID)
        loss.backward()
        gradients.wait()
        total = loss.detach().clone()
        found[f"loss {step}"] = sum_over_world(total) if mesh.world > 1 else total
        if step == 0:
            found["logits"] = gather_rows(logits.detach(), BATCH, mesh.data)
            found |= {
                f"grad {n}": network.whole(p.grad, n)
                for n, p in network.named_parameters()
                if p.grad is not None
            }
        optimiser.step(rates(recipe, step, 100))
    found |= {
        f"weight {name}": network.whole(p.detach(), name) for name, p in network.named_parameters()
    }
    if save_to:
        arrays = checkpoint.collect(network, optimiser, torch.arange(3), writer=mesh.rank == 0)
        if mesh.rank == 0:
            checkpoint.write(save_to, arrays, state(recipe))
    return found


def many_losses(mesh: Mesh, dtype: torch.dtype, steps: int) -> list[float]:
    network = AlexNet(RECIPE, CLASSES, tower=mesh.tower).to(
        dtype=dtype, memory_format=torch.channels_last
    )
    optimiser, gradients = Optimiser(network, RECIPE), GradientSum(network.parameters(), mesh.data)
    per_rank, rows = BATCH // mesh.world, BATCH // mesh.data.size
    own = slice(mesh.rank * per_rank, (mesh.rank + 1) * per_rank)
    positions = range(mesh.data.index * rows, (mesh.data.index + 1) * rows)
    found = []
    for step in range(steps):
        images, labels = (part[own] for part in whole_batch(step, dtype, RECIPE.crop))
        logits = network(
            gather(images, 0, mesh.tower), DropoutKey(seed=0, step=step, rows=positions)
        )
        loss = share_of_loss(mesh.tower.own(logits), labels, VALID)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.wait()
        optimiser.step(rates(RECIPE, step, 100))
        found.append(loss.detach())
    together = torch.stack(found).double()
    return (sum_over_world(together) if mesh.world > 1 else together).tolist()


def sent(mesh: Mesh, wire: Wire) -> dict[tuple[str, str], int]:
    """What this rank handed to others in one step, counted in the collectives; over all ranks."""
    network = AlexNet(RECIPE, CLASSES, tower=mesh.tower, wire=wire)
    gradients = GradientSum(network.parameters(), mesh.data, wire)
    images, labels = whole_batch(0, torch.float32, RECIPE.crop)
    per_rank, rows = BATCH // mesh.world, BATCH // mesh.data.size
    own = slice(mesh.rank * per_rank, (mesh.rank + 1) * per_rank)
    mesh.meter.sent.clear()
    positions = range(mesh.data.index * rows, (mesh.data.index + 1) * rows)
    logits = network(
        gather(images[own], 0, mesh.tower, "images"), DropoutKey(seed=0, step=0, rows=positions)
    )
    share_of_loss(mesh.tower.own(logits), labels[own], VALID).backward()  # type: ignore[no-untyped-call]
    gradients.wait()
    names = sorted(mesh.meter.sent)
    totals = sum_over_world(torch.tensor([mesh.meter.sent[name] for name in names]))
    return dict(zip(names, totals.tolist(), strict=True))


def summed_in_backward(mesh: Mesh, steps: int) -> list[float]:
    """By step, the share of the gradients' bytes whose sum over the data axis was there when
    backward made the last."""
    recipe = replace(RECIPE, width=1 / 4)
    network = AlexNet(recipe, CLASSES, tower=mesh.tower)
    gradients, found = GradientSum(network.parameters(), mesh.data), []

    def look(_: Tensor) -> None:
        begun = [(work.is_completed(), sent.nbytes) for work, sent, _ in gradients._pending]
        if len(begun) == len(list(network.parameters())):
            found.append(sum(done * size for done, size in begun) / sum(size for _, size in begun))

    # of the layer whose gradients come last; these hooks follow GradientSum's
    for name in ("weight", "bias"):
        network.get_parameter(f"conv1.{name}").register_post_accumulate_grad_hook(look)
    per_rank, rows = BATCH // mesh.world, BATCH // mesh.data.size
    own = slice(mesh.rank * per_rank, (mesh.rank + 1) * per_rank)
    positions = range(mesh.data.index * rows, (mesh.data.index + 1) * rows)
    images, labels = (part[own] for part in whole_batch(0, torch.float32, recipe.crop))
    for step in range(steps):
        logits = network(
            gather(images, 0, mesh.tower), DropoutKey(seed=0, step=step, rows=positions)
        )
        share_of_loss(mesh.tower.own(logits), labels, VALID).backward()  # type: ignore[no-untyped-call]
        gradients.wait()
        network.zero_grad()
    return found


def state(recipe: Recipe, **other: Any) -> State:
    fields = {
        "step": 3,
        "epoch": 0,
        "seed": 0,
        "classes": CLASSES,
        "dataset": "d" * 64,
        "loader": {"step": 3},
        "architecture": recipe.architecture,
    }
    return State(**(fields | other))


def loaded(mesh: Mesh, folder: Path) -> dict[str, Tensor]:
    network = AlexNet(RECIPE, CLASSES, tower=mesh.tower, seed=99)
    optimiser = Optimiser(network, RECIPE)
    newest = checkpoint.latest(folder)
    assert newest is not None
    assert checkpoint.load(newest, network, optimiser).tolist() == [0, 1, 2]
    found = {
        f"weight {name}": network.whole(p.detach(), name) for name, p in network.named_parameters()
    }
    return found | {
        f"step {name}": network.whole(step, name) for name, step in optimiser.steps.items()
    }


def worker(rank: int, world: int, port: int, towers: int, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }.items():
            environment.setenv(name, str(value))
        mesh = connect(towers)
        assert not torch.backends.cudnn.allow_tf32  # on a device, float32 is float32
        assert torch.get_float32_matmul_precision() == "highest"
        found = {
            "float32": three_steps(mesh, torch.float32, save_to=folder / f"from-{world}-{towers}"),
            "float64": three_steps(mesh, torch.float64),
            "local fc6": three_steps(mesh, torch.float64, LOCAL_FC6),
            "ten": many_losses(mesh, torch.float32, 10),
            "fifty": many_losses(mesh, torch.float64, 50),
            "sent": sent(mesh, "float32"),
            "sent narrow": sent(mesh, "bfloat16"),
            "float16": three_steps(mesh, torch.float32, wire="float16"),
            "summed": summed_in_backward(mesh, 10),
            "loaded": loaded(mesh, folder / "alone"),
            "saved": f"from-{world}-{towers}",
        }
        # the compiler: two seconds of the start, for nothing here
        assert "torch._dynamo" not in sys.modules
        torch.save(found, folder / f"rank-{world}-{towers}-{rank}.pt")
        disconnect()


@functools.cache
def one_process(dtype: torch.dtype, recipe: Recipe = RECIPE) -> dict[str, Any]:
    return three_steps(Mesh(), dtype, recipe)


@functools.cache
def one_process_s_losses(dtype: torch.dtype, steps: int) -> list[float]:
    return many_losses(Mesh(), dtype, steps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    three_steps(Mesh(), torch.float32, save_to=folder / "alone")
    return folder


@pytest.fixture(
    scope="module", params=[(2, 2), (4, 2), (2, 1)], ids=["two towers", "2x2", "two data"]
)
def ranks(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, dict[str, Tensor]]]:
    world, towers = request.param
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (world, port, towers, folder), nprocs=world)
    return [torch.load(folder / f"rank-{world}-{towers}-{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.starts
def test_a_mesh_equals_one_process(
    ranks: list[dict[str, Any]], dtype: torch.dtype, tolerance: float
) -> None:
    """Trap 19."""
    one = one_process(dtype)
    assert sum(name.startswith("grad") for name in one) == 16
    for rank, found in enumerate(ranks):
        for name, expected in one.items():
            got = found[str(dtype).removeprefix("torch.")][name]
            assert got.shape == expected.shape, name
            scale = expected.abs().max().item()
            assert (got - expected).abs().max().item() <= tolerance * scale, (
                f"{name} on rank {rank}"
            )


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"), [("ten", "float32", 1e-5), ("fifty", "float64", 1e-9)]
)
@pytest.mark.starts
def test_losses_stay_together(
    ranks: list[dict[str, Any]], name: str, dtype: str, tolerance: float
) -> None:
    """Ten steps in float32, fifty in float64, dropout on."""
    one = one_process_s_losses(getattr(torch, dtype), 10 if name == "ten" else 50)
    assert len(set(one)) == len(one)
    for found in ranks:
        assert found[name] == pytest.approx(one, rel=tolerance)


@pytest.mark.starts
def test_no_communication_and_moved_exchanges_equal_one_process(
    ranks: list[dict[str, Any]],
) -> None:
    one = one_process(torch.float64, LOCAL_FC6)
    for found in ranks:
        for name, expected in one.items():
            difference = (found["local fc6"][name] - expected).abs().max().item()
            assert difference <= 1e-9 * expected.abs().max().item(), name


@pytest.mark.starts
def test_what_is_sent_equals_the_computed_bytes(ranks: list[dict[str, Any]]) -> None:
    """Row by row over all ranks: each boundary as the summary says, gradients as an all-reduce in a
    ring."""
    shapes = weight_shapes(RECIPE, CLASSES)
    for key, size in (("sent", 4), ("sent narrow", 2)):
        found = dict(ranks[0][key])
        data = len(ranks) // 2 if ("conv3", "forward") in found else len(ranks)
        gradients = found.pop(("gradients", "backward"), 0)
        if data > 1:
            assert gradients == 2 * (data - 1) * size * sum(
                math.prod(s) + s[0] for s in shapes.values()
            )
        if data == len(ranks):
            assert not found  # no towers, no features exchanged
            continue
        for row in exchanges(RECIPE, CLASSES):
            wide = 4 if row.what == "images" else size
            assert found.pop((row.what, "forward")) == row.forward * wide * BATCH, row.what
            assert found.pop((row.what, "backward"), 0) == row.backward * size * BATCH, row.what
        assert not found


@pytest.mark.starts
def test_gradients_are_summed_beside_backward(ranks: list[dict[str, Any]]) -> None:
    """Dense layers, which hold most of the bytes, come first: on their way while the convolutions
    are at work.

    A busy machine may hold one rank up, and then the other has to wait in the end: of ten steps one
    must show it."""
    if ("gradients", "backward") not in ranks[0]["sent"]:
        return  # nothing to sum
    assert all(len(rank["summed"]) == 10 for rank in ranks)
    assert max(share for rank in ranks for share in rank["summed"]) > 0.5


@pytest.mark.starts
def test_16_bits_on_the_wire_stay_close(ranks: list[dict[str, Any]]) -> None:
    """Of 11 bits, a rounding is a part in 4,000 at most; half of a batch's gradients would be far
    from the whole's."""
    one = one_process(torch.float32)
    for found in ranks:
        narrow = found["float16"]
        assert narrow["loss 2"].item() == pytest.approx(one["loss 2"].item(), rel=1e-2)
        for name in (name for name in one if name.startswith(("grad", "weight"))):
            assert (narrow[name] - one[name]).norm() <= 0.005 * one[name].norm(), name
        # it was indeed rounded
        assert any(not torch.equal(narrow[name], one[name]) for name in one)


@pytest.mark.starts
def test_one_process_s_checkpoint_loads_on_a_mesh(
    ranks: list[dict[str, Any]], folder: Path
) -> None:
    one = loaded(Mesh(), folder / "alone")
    for found in ranks:
        assert found["loaded"].keys() == one.keys()
        assert all(torch.equal(found["loaded"][name], one[name]) for name in one)


@pytest.mark.starts
def test_a_mesh_s_checkpoint_loads_in_one_process(
    ranks: list[dict[str, Any]], folder: Path
) -> None:
    back = loaded(Mesh(), folder / ranks[0]["saved"])
    weights = {
        name: tensor for name, tensor in ranks[0]["float32"].items() if name.startswith("weight")
    }
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    assert len(weights) == 16


def test_checkpoints_refuse_another_network_or_dataset(folder: Path) -> None:
    newest = checkpoint.latest(folder / "alone")
    assert newest is not None
    found = checkpoint.read_state(newest)
    right = {"architecture": RECIPE.architecture, "classes": CLASSES, "dataset": "d" * 64}
    checkpoint.check_fits(newest, found, **right)
    for name, value, word in (
        ("architecture", replace(RECIPE, width=1 / 8).architecture, "width"),
        ("classes", 100, "classes"),
        ("dataset", "e" * 64, "dataset"),
    ):
        with pytest.raises(GratisError, match=word):
            checkpoint.check_fits(newest, found, **(right | {name: value}))


def test_old_checkpoints_go_and_latest_is_the_newest(tmp_path: Path) -> None:
    network = AlexNet(RECIPE, CLASSES)
    optimiser = Optimiser(network, RECIPE)
    arrays = checkpoint.collect(network, optimiser, torch.arange(0), writer=True)
    for step in (1, 2, 3):
        checkpoint.write(tmp_path, arrays, state(RECIPE, step=step))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "latest",
        "step-00000002",
        "step-00000003",
    ]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000003"


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    network = AlexNet(RECIPE, CLASSES)
    optimiser = Optimiser(network, RECIPE)
    arrays = checkpoint.collect(network, optimiser, torch.arange(0), writer=True)
    checkpoint.write(tmp_path, arrays, state(RECIPE, step=1))
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ: the write fails
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.write(tmp_path, arrays, state(RECIPE, step=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000001"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000001"


@pytest.mark.starts
def test_a_rank_does_not_import_the_compiler() -> None:
    """Which would take two seconds of each rank's start; the workers above hold it for what a run
    goes through."""
    words = "import sys, gratis.train.rank; sys.exit('torch._dynamo' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", words], cwd=ROOT, timeout=240, check=False).returncode
        == 0
    )


def test_how_many_processes() -> None:
    assert [choose_world(None, present=n, share_device=False) for n in (0, 1, 2, 3, 8)] == [
        1,
        1,
        2,
        2,
        8,
    ]
    assert choose_world(2, present=0, share_device=False) == 2  # CPU over gloo
    assert choose_world(2, present=1, share_device=True) == 2
    with pytest.raises(GratisError, match="2 or 4"):
        choose_world(3, present=8, share_device=False)
    with pytest.raises(GratisError, match="share-device"):
        choose_world(2, present=1, share_device=False)


def test_shares_cover_all_rows_once() -> None:
    for total in (1, 2, 100, 101):
        for size in (1, 2, 4):
            rows = [
                row for index in range(size) for row in Axis(size=size, index=index).share(total)
            ]
            assert rows == list(range(total))


# the same without processes: what torch is asked for, and what becomes of its answers


def test_who_is_whose_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pairs: rank 5 shares its network with 4, and sums gradients with 1, 3 and 7."""
    asked: list[object] = []

    def groups(members: list[list[int]]) -> tuple[str, None]:
        asked.append(members)
        return f"of {len(members)}", None

    monkeypatch.setattr(dist, "new_subgroups_by_enumeration", groups)
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    meter = TrafficMeter()
    for rank, place in enumerate(places):
        asked.clear()
        data, tower = _axes(rank, 8, 2, meter)
        assert asked == [[[0, 2, 4, 6], [1, 3, 5, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]]
        assert (data.size, tower.size, data.index, tower.index) == (4, 2, *place)
        assert (data.group, tower.group, data.meter, tower.meter) == ("of 2", "of 4", meter, meter)
    data, tower = _axes(1, 2, 2, meter)  # one pair
    assert (data, tower.size, tower.index) == (ALONE, 2, 1)
    data, tower = _axes(2, 3, 1, meter)
    assert (data.size, data.index, tower) == (3, 2, ALONE)


@pytest.mark.parametrize(
    ("ranks", "cores", "towers", "threads"),
    [((2, 4, 2), 8, 2, 4), ((2, 3, 2), 3, 1, 1), ((0, 2, 2), 1, 2, 1), ((0, 1, 1), 4, 1, 4)],
)
def test_a_rank_joins_as_its_environment_says(
    ranks: tuple[int, int, int],
    cores: int,
    towers: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pairs where the world is even; each rank has its share of the machine's cores. ranks: which
    it is, of how many, and how many on its machine."""
    rank, world, local = ranks
    asked: dict[str, Any] = {}

    def noted(name: str, answer: object) -> Any:
        return lambda *given, **named: asked.update({name: (given, named)}) or answer

    own = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % 2, "LOCAL_WORLD_SIZE": local}
    for name, value in (own | {"MASTER_ADDR": "192.0.2.7", "MASTER_PORT": 4321}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch begins
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(torch, "set_num_threads", noted("threads", None))
    monkeypatch.setattr(socket, "create_server", lambda _: pytest.fail("of loopback alone"))
    monkeypatch.setattr(dist, "TCPStore", noted("store", "the store"))
    monkeypatch.setattr(dist, "init_process_group", noted("init", None))
    monkeypatch.setattr(dist, "new_subgroups_by_enumeration", lambda _: ("an axis", None))
    monkeypatch.setattr(dist, "new_group", noted("hosts", "the hosts"))
    mesh = connect(2, agree_within_s=60.0)
    assert (mesh.rank, mesh.world, mesh.local_world) == (rank, world, local)
    assert (mesh.tower.size, mesh.data.size) == (towers, world // towers)
    assert all(one.meter is mesh.meter for one in (mesh.tower, mesh.data) if one.size > 1)
    assert mesh.device == torch.device("cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark
    assert asked["threads"] == ((threads,), {})
    master = {"is_master": rank == 0, "master_listen_fd": None}
    assert asked["store"] == (("192.0.2.7", 4321, world), master)
    own = {"store": "the store", "rank": rank, "world_size": world, "device_id": None}
    assert asked["init"] == (("gloo",), own)
    if world == 1:
        assert mesh.hosts is None
        assert "hosts" not in asked
        return
    # half an hour beyond what a server may be away
    assert asked.pop("hosts") == ((), {"backend": "gloo", "timeout": timedelta(seconds=1860)})
    assert mesh.hosts == "the hosts"
    assert connect(2).hosts is None
    assert "hosts" not in asked


@pytest.mark.parametrize(("shared", "backend"), [(False, "nccl"), (True, "gloo")])
def test_gpus_talk_by_nccl_but_two_ranks_of_one(
    shared: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}
    for name, value in (own | {"MASTER_ADDR": "192.0.2.7", "MASTER_PORT": 4321}).items():
        monkeypatch.setenv(name, str(value))
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(dist, "TCPStore", lambda *_, **__: None)
    monkeypatch.setattr(dist, "new_subgroups_by_enumeration", lambda _: ("an axis", None))
    init = lambda name, **named: asked.append((name, named["device_id"]))  # noqa: E731
    monkeypatch.setattr(dist, "init_process_group", init)
    mesh, device = connect(2, share_device=shared), torch.device("cuda", 1)
    assert mesh.device == device
    assert asked == [device, (backend, None if shared else device)]


def test_rank_0_keeps_the_store_and_on_loopback_listens_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "4321")

    def listening(address: object) -> SimpleNamespace:
        asked.append(address)
        return SimpleNamespace(detach=lambda: 77)

    monkeypatch.setattr(socket, "create_server", listening)
    monkeypatch.setattr(dist, "TCPStore", lambda *given, **named: (given, named))
    of = ("127.0.0.1", 4321, 2)
    assert _store(0, 2) == (of, {"is_master": True, "master_listen_fd": 77})
    assert _store(1, 2) == (of, {"is_master": False, "master_listen_fd": None})
    assert asked == [("127.0.0.1", 4321)]


def test_a_store_for_this_machine_listens_on_it_alone() -> None:
    descriptor = listen_on_loopback("127.0.0.1", 0)
    assert descriptor is not None
    with socket.socket(fileno=descriptor) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
    assert listen_on_loopback("192.0.2.7", 0) is None


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectives of a group as rank 1 sees them: rank n has 10 ** n times what this one has to
    give, and as large a gradient; sums are three times this rank's share, once waited for."""

    def all_gather(parts: list[Tensor], own: Tensor, group: object) -> None:
        assert group == "group"
        for number, part in enumerate(parts):
            part.copy_(own * 10**number)

    def all_to_all(received: Tensor, shares: Tensor, group: object) -> None:
        assert group == "group"
        for number in range(len(received)):
            received[number] = shares[1] * 10**number

    class Work:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

        def wait(self) -> None:
            self.tensor *= 3

    def all_reduce(tensor: Tensor, group: object, *, async_op: bool) -> Work:
        assert group == "group"
        assert async_op
        return Work(tensor)

    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(dist, "all_to_all_single", all_to_all)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)


@pytest.mark.usefixtures("loopback")
def test_logits_of_a_shorter_half_are_padded_and_cut() -> None:
    """Of 101 classes the second tower has 50, and hands on a column of zeros, which is cut."""
    network = AlexNet(RECIPE, CLASSES, tower=of_group(2))
    found = network._gather_classes(torch.ones(2, 50))
    assert found.shape == (2, 101)
    assert found[0].tolist() == [1] * 50 + [0] + [10] * 50
    assert network.tower.meter.sent == {("logits", "forward"): 2 * 51 * 4}
    assert AlexNet(RECIPE, CLASSES)._gather_classes(found) is found


def of_group(size: int) -> Axis:
    return Axis(size=size, index=1, group="group")  # type: ignore[arg-type]


@pytest.mark.usefixtures("loopback")
def test_features_are_gathered_and_gradients_summed() -> None:
    """Of three ranks: this one's columns are the middle ones; it hands 24 bytes to two others."""
    axis, x = of_group(3), torch.arange(6.0).view(2, 3).requires_grad_()
    whole = gather(x, 1, axis, "fc6")
    rows = [[0, 1, 2, 0, 10, 20, 0, 100, 200], [3, 4, 5, 30, 40, 50, 300, 400, 500]]
    assert whole.tolist() == rows
    whole.backward(torch.arange(18.0).view(2, 9))
    assert x.grad is not None
    assert x.grad.tolist() == [[333, 444, 555], [1332, 1443, 1554]]  # 111 times 3 4 5, 12 13 14
    assert axis.meter.sent == {("fc6", "forward"): 48, ("fc6", "backward"): 48}
    assert gather(x, 0, axis).shape == (6, 3)
    assert gather(x, 0, ALONE) is x


@pytest.mark.usefixtures("loopback")
def test_what_travels_in_16_bits_comes_back_in_32() -> None:
    """bfloat16 has 8 bits: 257 is rounded to 256 on its way, in both directions."""
    axis, x = of_group(2), torch.full((1, 2, 3, 4), 257.0)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    whole = gather(x, 1, axis, "conv3", "bfloat16")
    assert (whole.dtype, whole.shape) == (torch.float32, (1, 4, 3, 4))
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert whole[0, :, 0, 0].tolist() == [256, 256, 2560, 2560]
    whole.backward(torch.full_like(whole, 257.0))
    assert x.grad is not None
    assert x.grad.unique().tolist() == [256 + 2560]
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert axis.meter.sent == {("conv3", "forward"): 48, ("conv3", "backward"): 48}
    assert gather(x.double(), 1, axis, "", "bfloat16")[0, 0, 0, 0] == 257
    assert gather(torch.ones(2, 2, 3), 0, axis).is_contiguous()


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize(("wire", "sent", "total"), [("float32", 36, 771), ("float16", 18, 771)])
def test_gradients_are_replaced_by_their_sums(wire: Wire, sent: int, total: int) -> None:
    """Of four ranks: each hands on three quarters of 24 bytes twice."""
    axis, parameter = of_group(4), torch.zeros(6, requires_grad=True)
    sums = GradientSum([parameter], axis, wire)
    (257 * parameter.sum()).backward()  # type: ignore[no-untyped-call]
    sums.wait()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [total] * 6
    assert axis.meter.sent[("gradients", "backward")] == sent
    sums.wait()  # nothing is under way
    assert parameter.grad.tolist() == [total] * 6
    alone = torch.zeros(2, requires_grad=True)
    sums = GradientSum([alone], ALONE)
    alone.sum().backward()  # type: ignore[no-untyped-call]
    sums.wait()
    assert alone.grad is not None
    assert alone.grad.tolist() == [1, 1]


@pytest.mark.usefixtures("loopback")
def test_a_short_last_chunk_is_padded_and_cut() -> None:
    """Of five rows this rank has the last two."""
    whole = gather_rows(torch.tensor([[3.0], [4.0]]), 5, of_group(2))
    assert whole.flatten().tolist() == [3, 4, 0, 30, 40]


def test_rows_of_all_ranks_are_in_the_order_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 2 of two pairs: 2 and 3 are one, and 0 and 1 the other."""

    def all_gather(parts: list[Tensor], own: Tensor, group: object) -> None:
        step = {"tower": 1, "data": 2}[str(group)]
        for number, part in enumerate(parts):
            part.copy_(own + step * number - (2 if group == "data" else 0))

    monkeypatch.setattr(dist, "all_gather", all_gather)
    tower = Axis(size=2, index=0, group="tower")  # type: ignore[arg-type]
    data = Axis(size=2, index=1, group="data")  # type: ignore[arg-type]
    mesh = Mesh(rank=2, world=4, tower=tower, data=data)
    assert gather_world(torch.tensor([2, 2]), mesh).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_sums_over_hosts_and_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[object] = []

    def all_reduce(values: Tensor, group: object = None) -> None:
        groups.append(group)
        values += 7

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    assert sum_over_hosts([0.5, 2.0], Mesh()) == [0.5, 2.0]
    assert groups == []
    assert sum_over_hosts([0.5, 2.0], Mesh(hosts="hosts")) == [7.5, 9.0]  # type: ignore[arg-type]
    assert from_rank_0(99, Mesh(rank=1, world=2)) == 7  # which is what rank 0 has added
    assert from_rank_0(99, Mesh(world=2)) == 106
    assert groups == ["hosts", None, None]
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    assert from_rank_0(99, Mesh()) == 99


def test_seconds_in_exchanges_are_summed_until_they_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meter, clock = TrafficMeter(), iter([1.0, 1.5, 10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for _ in range(2):
        with meter.exchange("fc6", "forward", 5):
            pass
    assert meter.sent == {("fc6", "forward"): 10}
    assert meter.take_seconds() == 2.5
    with meter.exchange("fc7", "backward", 3):
        pass
    assert meter.take_seconds() == 1.0
    assert meter.take_seconds() == 0.0
