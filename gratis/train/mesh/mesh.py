"""The mesh of processes, and the one communication primitive. The only module of training that asks
the environment.

World = data x tower, rank = data index x towers + tower index, so that concatenating the ranks'
rows in rank order restores the global batch, and a tower pair's rows are adjacent in it."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gratis.train.mesh.device import CPU, device_of
from gratis.train.settings import Wire

AGREE_MARGIN_S = 1800.0  # beyond the outage: gloo's own limit, of whatever else a rank waits for


class TrafficMeter:
    """What this process's collectives cost.

    seconds is the host's time inside them, waiting for slower ranks included: of ranks in step the
    slowest waits least. NCCL's collectives only queue work for the device, so on a GPU
    it is the time to queue. sent counts bytes handed to other ranks, by (what, direction) as
    `gather` and `GradientSum` name it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sent: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def exchange(self, what: str, direction: str, sent: int) -> Iterator[None]:
        self.sent[what, direction] += sent
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def take_seconds(self) -> float:
        taken, self.seconds = self.seconds, 0.0
        return taken


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of the mesh as this rank sees it. group is None where size is 1: nothing is ever
    sent there."""

    size: int = 1
    index: int = 0
    group: dist.ProcessGroup | None = None
    meter: TrafficMeter = field(default_factory=TrafficMeter)

    def share(self, total: int) -> range:
        """This rank's chunk of `total` rows; the last one is short where the size does not divide
        them."""
        per = -(-total // self.size)
        return range(min(self.index * per, total), min((self.index + 1) * per, total))

    def own(self, whole: Tensor) -> Tensor:
        """This rank's chunk along dim 0 of what all of them hold together."""
        rows = self.share(whole.shape[0])
        return whole[rows.start : rows.stop]


ALONE = Axis()


@dataclass(frozen=True, kw_only=True)
class Mesh:
    rank: int = 0
    world: int = 1
    local_world: int = 1  # processes on this machine
    device: torch.device = CPU
    data: Axis = ALONE
    tower: Axis = ALONE
    meter: TrafficMeter = field(default_factory=TrafficMeter)  # of both axes
    # of all ranks' hosts, where they have to agree whether each has its batch; None: no need to
    hosts: dist.ProcessGroup | None = None


def connect(
    towers: int, *, share_device: bool = False, agree_within_s: float | None = None
) -> Mesh:
    """Joins the processes that torchrun started (RANK, WORLD_SIZE, MASTER_ADDR and the like) into
    a mesh.

    `towers` is the size of the tower axis where the world allows it; one process holds all of them.
    agree_within_s: batches may be so late that ranks have to agree on them, `Mesh.hosts`.
    Collective. That one mesh computes the same bits again is promised for CPUs alone: cuDNN chooses
    among kernels, some of which add up in any order."""
    full_float32()
    fastest_convolutions()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    device = device_of(local_rank)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
    # NCCL refuses two ranks on one device; gloo carries GPU tensors through the host
    backend = "nccl" if device.type == "cuda" and not share_device else "gloo"
    dist.init_process_group(
        backend,
        store=_store(rank, world),
        rank=rank,
        world_size=world,
        device_id=device if backend == "nccl" else None,
    )
    axis_size = towers if world % towers == 0 else 1
    assert world == 1 or world % axis_size == 0, (world, towers)
    meter = TrafficMeter()
    data, tower = _axes(rank, world, axis_size, meter)
    hosts = None
    if world > 1 and agree_within_s is not None:
        longest = timedelta(seconds=agree_within_s + AGREE_MARGIN_S)
        hosts = dist.new_group(backend="gloo", timeout=longest)
    return Mesh(
        rank=rank,
        world=world,
        local_world=local_world,
        device=device,
        data=data,
        tower=tower,
        meter=meter,
        hosts=hosts,
    )


def full_float32() -> None:
    """float32 is float32 on a GPU too, where torch would round convolutions' factors to 10 bits
    (TF32)."""
    with warnings.catch_warnings():
        # torch 2.9 warns here of another interface, whose flags it then refuses to read by these
        # names (its issue 179445), as its compiler does
        warnings.filterwarnings("ignore", "Please use the new API")
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    # the compiler's advice to use them all the same
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")


def fastest_convolutions() -> None:
    """cuDNN tries its kernels for each shape that it meets, once, and keeps the fastest: training
    has few shapes. Nothing on a CPU."""
    torch.backends.cudnn.benchmark = True


def listen_on_loopback(host: str, port: int) -> int | None:
    """A socket for a store of torch's to listen on, where only this machine reaches it; None where
    others must.

    Left to itself such a store listens on every address that the machine has.
    """
    return socket.create_server((host, port)).detach() if host.startswith("127.") else None


def _store(rank: int, world: int) -> dist.TCPStore:  # type: ignore[name-defined]
    """The store by which the ranks learn each other's addresses."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listener = listen_on_loopback(host, port) if rank == 0 else None
    return dist.TCPStore(host, port, world, is_master=rank == 0, master_listen_fd=listener)  # type: ignore[attr-defined]


def disconnect() -> None:
    dist.destroy_process_group()


def _axes(rank: int, world: int, towers: int, meter: TrafficMeter) -> tuple[Axis, Axis]:
    """(data, tower), whose groups have the world's backend. Collective."""
    ranks = torch.arange(world).view(world // towers, towers)

    def axis(members: Tensor, index: int) -> Axis:
        size = members.shape[1]
        if size == 1:
            return ALONE
        group, _ = dist.new_subgroups_by_enumeration(members.tolist())  # type: ignore[no-untyped-call]
        return Axis(size=size, index=index, group=group, meter=meter)

    return axis(ranks.T, rank // towers), axis(ranks, rank % towers)


def gather(x: Tensor, dim: int, axis: Axis, what: str = "", wire: Wire = "float32") -> Tensor:
    """Every rank's x, concatenated along dim in the order of the axis. x has the same shape on
    every rank.

    Backward sums the gradient over the axis and keeps this rank's slice: each rank used the whole
    for different outputs, so a plain split (right where all compute the same) would lose the
    others' share. A 16-bit `wire` rounds what travels, in both directions; the result has x's type.
    """
    if axis.size == 1:
        return x
    result: Tensor = _Gather.apply(x, (dim, axis, what, wire))  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, route: tuple[int, Axis, str, Wire]) -> Tensor:
        ctx.route = route
        dim, axis, what, wire = route
        own = to_wire(x, wire).contiguous()
        parts = [torch.empty_like(own) for _ in range(axis.size)]
        with axis.meter.exchange(what, "forward", own.nbytes * (axis.size - 1)):
            dist.all_gather(parts, own, group=axis.group)
        return torch.cat(parts, dim).to(x.dtype).contiguous(memory_format=_layout(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # each rank gets the others' shares of its own slice and adds them up itself: what a
        # reduce-scatter does, which gloo lacks, and half of what an all-reduce sends
        dim, axis, what, wire = ctx.route
        shares = torch.stack(to_wire(grads[0], wire).chunk(axis.size, dim)).contiguous()
        received = torch.empty_like(shares)
        with axis.meter.exchange(what, "backward", shares[0].nbytes * (axis.size - 1)):
            dist.all_to_all_single(received, shares, group=axis.group)
        own = received.to(grads[0].dtype).sum(0)
        return own.contiguous(memory_format=_layout(grads[0])), None


def to_wire(x: Tensor, wire: Wire) -> Tensor:
    """x as it travels: 32-bit floats in the wire's type, others as they are."""
    return x.to(getattr(torch, wire)) if x.dtype == torch.float32 else x


def _layout(x: Tensor) -> torch.memory_format:
    nhwc = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if nhwc else torch.contiguous_format


def gather_rows(own: Tensor, rows: int, axis: Axis) -> Tensor:
    """The whole [rows, ...] of which every rank holds its chunk (Axis.share); inverse of Axis.own.
    No gradient."""
    per = -(-rows // axis.size)
    padded = own.new_zeros((per, *own.shape[1:]))
    padded[: own.shape[0]] = own
    return gather(padded, 0, axis)[:rows]


class GradientSum:
    """Replaces every gradient by its sum over the axis; no average: the loss was divided by the
    global count.

    Each sum starts as soon as backward has made its gradient and goes on beside the rest of
    backward; `wait` before the gradients are used. A 16-bit wire halves what travels, and sums in
    that type too."""

    def __init__(self, parameters: Iterable[Tensor], axis: Axis, wire: Wire = "float32") -> None:
        self._axis, self._wire = axis, wire
        self._pending: list[tuple[dist.Work, Tensor, Tensor]] = []
        if axis.size > 1:
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(self._begin)  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        with self._axis.meter.exchange("gradients", "backward", 0):
            for work, sent, grad in self._pending:
                work.wait()
                if sent is not grad:
                    grad.copy_(sent)
        self._pending.clear()

    def _begin(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        sent = to_wire(parameter.grad, self._wire)
        # an all-reduce hands on all but one share twice, once to be summed and once as a sum
        size = 2 * sent.nbytes * (self._axis.size - 1) // self._axis.size
        with self._axis.meter.exchange("gradients", "backward", size):
            work = dist.all_reduce(sent, group=self._axis.group, async_op=True)
        assert work is not None
        self._pending.append((work, sent, parameter.grad))


def gather_world(own: Tensor, mesh: Mesh) -> Tensor:
    """The rows of all ranks, which have equally many, in the order of ranks. Collective."""
    own = own.to(mesh.device)  # NCCL sends nothing that is on the CPU
    for axis in (mesh.tower, mesh.data):
        own = gather_rows(own, len(own) * axis.size, axis)
    return own


def sum_over_world(values: Tensor) -> Tensor:
    """The element-wise sum over all ranks, in place; the same bits on each. Collective; a process
    that has joined no mesh is alone."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def sum_over_hosts(values: list[float], mesh: Mesh) -> list[float]:
    """The element-wise sum over all ranks, without their devices; where nothing has to be agreed on
    this rank's own. Collective."""
    if mesh.hosts is None:
        return values
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together, group=mesh.hosts)
    return together.tolist()


def from_rank_0(value: int, mesh: Mesh) -> int:
    """Rank 0's value, on every rank. Collective."""
    own = torch.tensor([value if mesh.rank == 0 else 0], device=mesh.device)
    return int(sum_over_world(own))
