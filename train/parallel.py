"""The mesh of processes, and the one communication primitive. The only module of training that asks the environment.

World = data x tower, rank = data index x towers + tower index, so that concatenating the ranks' rows in rank order
restores the global batch, and a tower pair's rows are adjacent in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of the mesh as this rank sees it. group is None where size is 1: nothing is ever sent there."""

    size: int = 1
    index: int = 0
    group: dist.ProcessGroup | None = None

    def share(self, total: int) -> range:
        """This rank's chunk of `total` rows; the last one is short where the size does not divide them."""
        per = -(-total // self.size)
        return range(min(self.index * per, total), min((self.index + 1) * per, total))

    def own(self, whole: Tensor) -> Tensor:
        """This rank's chunk along dim 0 of what all of them hold together."""
        rows = self.share(whole.shape[0])
        return whole[rows.start : rows.stop]


ALONE = Axis()
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    rank: int = 0
    world: int = 1
    local_world: int = 1  # processes on this machine
    device: torch.device = CPU
    data: Axis = ALONE
    tower: Axis = ALONE


def connect(towers: int, *, share_device: bool = False) -> Mesh:
    """Joins the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE) into a mesh.

    `towers` is the size of the tower axis where the world allows it; one process holds all of them. Collective.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    device = CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, cores() // local_world))
    # NCCL refuses two ranks on one device; gloo carries GPU tensors through the host
    backend = "nccl" if device.type == "cuda" and not share_device else "gloo"
    dist.init_process_group(backend, device_id=device if backend == "nccl" else None)
    axis_size = towers if world % towers == 0 else 1
    assert world == 1 or world % axis_size == 0, (world, towers)
    data, tower = _axes(rank, world, axis_size)
    return Mesh(rank=rank, world=world, local_world=local_world, device=device, data=data, tower=tower)


def disconnect() -> None:
    dist.destroy_process_group()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _axes(rank: int, world: int, towers: int) -> tuple[Axis, Axis]:
    mesh = dist.device_mesh.DeviceMesh(
        "cuda" if dist.get_backend() == "nccl" else "cpu",
        torch.arange(world).view(world // towers, towers),
        mesh_dim_names=("data", "tower"),
    )
    sizes = {"data": world // towers, "tower": towers}
    index = {"data": rank // towers, "tower": rank % towers}
    data, tower = (
        Axis(size=sizes[name], index=index[name], group=mesh.get_group(name)) if sizes[name] > 1 else ALONE
        for name in ("data", "tower")
    )
    return data, tower


def gather(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """Every rank's x, concatenated along dim in the order of the axis. x has the same shape on every rank.

    Backward sums the gradient over the axis and keeps this rank's slice: each rank used the whole for different
    outputs, so a plain split (right where all compute the same) would lose the others' share.
    """
    if axis.size == 1:
        return x
    result: Tensor = _Gather.apply(x, dim, axis)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, axis: Axis) -> Tensor:
        ctx.dim, ctx.axis = dim, axis
        parts = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(axis.size)]
        dist.all_gather(parts, x.contiguous(), group=axis.group)
        return torch.cat(parts, dim).contiguous(memory_format=_layout(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # a reduce-scatter sends half as much, but gloo has none that is faster
        summed = grads[0].contiguous().clone()
        dist.all_reduce(summed, group=ctx.axis.group)
        own = summed.chunk(ctx.axis.size, ctx.dim)[ctx.axis.index]
        return own.contiguous(memory_format=_layout(grads[0])), None, None


def _layout(x: Tensor) -> torch.memory_format:
    nhwc = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if nhwc else torch.contiguous_format


def gather_rows(own: Tensor, rows: int, axis: Axis) -> Tensor:
    """The whole [rows, ...] of which every rank holds its chunk (Axis.share); inverse of Axis.own. No gradient."""
    per = -(-rows // axis.size)
    padded = own.new_zeros((per, *own.shape[1:]))
    padded[: own.shape[0]] = own
    return gather(padded, 0, axis)[:rows]


def sum_gradients(parameters: Iterable[Tensor], axis: Axis) -> None:
    """Replaces every gradient by its sum over the axis; no average: the loss was divided by the global count."""
    if axis.size == 1:
        return
    pending = [
        dist.all_reduce(parameter.grad, group=axis.group, async_op=True)
        for parameter in parameters
        if parameter.grad is not None
    ]
    for work in pending:
        assert work is not None
        work.wait()


def sum_over_world(values: Tensor) -> Tensor:
    """The element-wise sum over all ranks, in place; the same bits on each. Collective."""
    dist.all_reduce(values)
    return values
