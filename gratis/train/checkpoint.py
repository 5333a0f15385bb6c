"""Checkpoints of the whole network: what one mesh wrote, any other reads. Arrays and JSON, nothing
that runs code.

In runs/<name>/checkpoints:
latest                 text: the folder's name; replaced last, by rename
step-00000320/
  network.safetensors    whole parameters by name
  optimiser.safetensors  whole negative velocities by the same names
  progress.safetensors   ids seen in a begun epoch, for its receipt
  state.json             State
  SHA256SUMS             of these four: `sha256sum -c SHA256SUMS` checks them too
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from re import fullmatch
from typing import Any, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gratis.atomic import atomic_write, fsync, open_nonblocking, sha256_file
from gratis.errors import GratisError
from gratis.train.network.alexnet import AlexNet
from gratis.train.optimiser import Optimiser
from gratis.train.recipes import Layer

FORMAT = 1
KEEP = 2
LATEST = "latest"
SUMS = "SHA256SUMS"
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # no such file
FILES = {"network.safetensors", "optimiser.safetensors", "progress.safetensors", "state.json"}


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything but the arrays. step counts the run's steps; epoch those that are complete."""

    step: int
    epoch: int
    seed: int
    classes: int
    dataset: str
    architecture: dict[str, object]
    loader: dict[str, Any]
    # on the validation split, after each complete epoch
    errors: list[float] = field(default_factory=list)
    format: int = FORMAT


Arrays = dict[str, dict[str, Tensor]]  # by file, by name; on the CPU, of the checkpoint alone


def collect(network: AlexNet, optimiser: Optimiser, seen: Tensor, *, writer: bool) -> Arrays:
    """What `write` puts on disk, copied off the device; empty but on the writing rank. seen: all
    ranks'. Collective."""
    arrays = {
        "network": _whole(network, dict(network.named_parameters()), writer),
        "optimiser": _whole(network, optimiser.steps, writer),
    }
    return arrays | {"progress": {"seen": seen.cpu().contiguous()}} if writer else {}


def write(folder: Path, arrays: Arrays, state: State) -> int:
    """Writes a checkpoint and makes it the latest; returns its bytes. No torch but arrays: for any
    thread.

    OSError (a full disk, a `latest` that cannot be read) leaves the previous checkpoint the latest,
    nothing of this."""
    target = of_step(folder, state.step)
    try:
        there = latest(folder) == target
    except GratisError as error:
        raise OSError(str(error)) from None  # what Saver survives
    if there:  # to replace it would leave, for a moment, no latest at all
        return _size(target)
    # not its parent: a run that was deleted must not come back as its last checkpoint
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{target.name}.tmp"
    for killed in folder.glob("*.tmp"):  # by another attempt, which died in the middle
        shutil.rmtree(killed, ignore_errors=True)
    try:
        size = _write(temporary, arrays, state)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
        fsync(folder)
        atomic_write(folder / LATEST, target.name.encode())
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # those of later steps first: they were left when `latest` was pointed at an older one
    others = [path for path in folder.glob("step-????????") if path != target]
    others.sort(key=lambda path: (path.name < target.name, path.name))
    for old in others[: 1 - KEEP]:
        # the new one is the latest, whatever becomes of these
        shutil.rmtree(old, ignore_errors=True)
    return size


def latest(folder: Path) -> Path | None:
    """The checkpoint that `latest` names; if there is none of that name, the newest; None before
    the first."""
    name = _read(folder / LATEST).strip()  # an editor ends it with a newline
    if fullmatch(r"step-[0-9]{8,}", name) and (folder / name).is_dir():
        return folder / name
    whole = sorted(state.parent for state in folder.glob("step-????????/state.json"))
    return whole[-1] if whole else None


def of_step(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def undamaged(folder: Path) -> tuple[Path | None, list[str]]:
    """The latest checkpoint that is as it was written, and a message on each newer one that is not.

    Those are set aside as `damaged-*`, so that they are neither read nor taken for saved when
    training comes by their step again. GratisError if there are checkpoints, and all are damaged:
    then nothing is touched."""
    if (first := latest(folder)) is None:
        return None, []
    older = [path for path in folder.glob("step-????????") if path.name < first.name]
    wrong: dict[Path, str] = {}
    for candidate in [first, *sorted(older, reverse=True)]:
        if why := damage(candidate):
            wrong[candidate] = why
            continue
        messages = []
        for path, why in wrong.items():
            aside = folder / path.name.replace("step-", "damaged-")
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
            messages.append(f"{path} is damaged ({why}): going on from {candidate.name}")
        return candidate, messages
    raise GratisError(
        f"{first} is damaged ({wrong[first]}), and no older one is whole; choose another --run"
    )


def damage(checkpoint: Path) -> str | None:
    """What is wrong with its files, by the sums that were written with them; None if nothing is.
    Reads all of them."""
    try:
        lines = _read(checkpoint / SUMS).splitlines()
        sums = {name: expected for expected, _, name in (line.partition("  ") for line in lines)}
        if sums.keys() != FILES:
            return f"{SUMS} does not name its files"
        for name, expected in sorted(sums.items()):
            if sha256_file(checkpoint / name) != expected:
                return f"{name} is not what was written"
    except ABSENT as error:
        return str(error)
    except OSError as error:  # it may be whole
        raise unreadable(error) from None
    return None


def read_state(checkpoint: Path) -> State:
    try:
        state = State(**json.loads((checkpoint / "state.json").read_text()))
        for name, hint in get_type_hints(State).items():
            if type(value := getattr(state, name)) is not (get_origin(hint) or hint):
                raise TypeError(f"{name} is {value!r}")
        if state.format != FORMAT:
            raise ValueError(f"format {state.format}")
        return state
    except (*ABSENT, ValueError, TypeError) as error:
        way_out = f"point its `{LATEST}` at an older one, or choose another --run"
        raise GratisError(
            f"{checkpoint} is no checkpoint of this version ({error}); {way_out}"
        ) from None
    except OSError as error:
        raise unreadable(error) from None


def check_fits(
    checkpoint: Path, state: State, *, architecture: dict[str, object], classes: int, dataset: str
) -> None:
    """GratisError naming the first thing of another network or dataset."""
    stored, why = state.architecture, ""
    if state.dataset != dataset:
        why = f"was trained on dataset {state.dataset[:8]}, not on {dataset[:8]}"
    if state.classes != classes:
        why = f"has {state.classes} classes, the dataset {classes}"
    if names := [name for name, value in architecture.items() if stored.get(name) != value]:
        why = f"has {names[0]} {stored.get(names[0])}, the recipe {architecture[names[0]]}"
    if why:
        raise GratisError(f"{checkpoint} {why}; choose another --run")


def load(checkpoint: Path, network: AlexNet, optimiser: Optimiser) -> Tensor:
    """Fills this rank's chunks in place; returns the ids seen in the begun epoch."""
    try:
        _fill(checkpoint / "network.safetensors", dict(network.named_parameters()), network)
        _fill(checkpoint / "optimiser.safetensors", optimiser.steps, network)
        with safe_open(checkpoint / "progress.safetensors", framework="pt") as file:
            seen: Tensor = file.get_tensor("seen")
            return seen
    except (*ABSENT, SafetensorError) as error:
        raise GratisError(
            f"{checkpoint} is damaged ({error}); point its `{LATEST}` at an older one"
        ) from None
    except OSError as error:
        raise unreadable(error, checkpoint) from None  # safetensors' errors name no file


def _read(path: Path) -> str:
    """Its text; empty if it is no file. GratisError where it cannot be read."""
    try:
        with open(path, errors="replace", opener=open_nonblocking) as file:
            return file.read(1 << 16)
    except ABSENT:
        return ""
    except OSError as error:
        raise unreadable(error) from None


def unreadable(error: OSError, where: Path | str = "a checkpoint") -> GratisError:
    why = f"cannot be read ({error.strerror or error}): not known to be damaged, and left as it is"
    way_out = f"mend that, point its `{LATEST}` at an older one, or choose another --run"
    return GratisError(f"{error.filename or where} {why}; {way_out}")


def shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Of the whole network's parameters, by name."""
    with safe_open(checkpoint / "network.safetensors", framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def load_layers(checkpoint: Path, network: AlexNet, layers: Collection[Layer]) -> None:
    """Fills this rank's chunks of some layers in place."""
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    own = {name: one for name, one in parameters.items() if name.split(".")[0] in layers}
    _fill(checkpoint / "network.safetensors", own, network)


def _whole(network: AlexNet, own: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    whole = {}
    # one at a time: the device holds one whole tensor more, never all
    for name, tensor in own.items():
        together = network.whole(tensor.detach(), name)
        if keep:
            # a copy even where nothing moved: training goes on while it is written
            whole[name] = together.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return whole


def _write(folder: Path, arrays: Arrays, state: State) -> int:
    folder.mkdir()
    for name, tensors in arrays.items():
        path = folder / f"{name}.safetensors"
        try:
            save_file(tensors, path)
        except SafetensorError as error:  # what it raises where a write fails
            raise OSError(str(error)) from error
        share(path)
        fsync(path)
    atomic_write(folder / "state.json", json.dumps(dataclasses.asdict(state), indent=1).encode())
    sums = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in sorted(FILES))
    atomic_write(folder / SUMS, sums.encode())
    return _size(folder)


def share(path: Path) -> None:
    """Gives a file of safetensors', which are their owner's alone (0600), what its folder lets
    others do."""
    with suppress(OSError):  # some file systems have no modes
        path.chmod(path.parent.stat().st_mode & 0o666)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@torch.no_grad()
def _fill(path: Path, own: dict[str, Tensor], network: AlexNet) -> None:
    with safe_open(path, framework="pt") as file:
        for name, tensor in own.items():
            rows = network.tower.share(network.outputs(name))
            tensor.copy_(file.get_slice(name)[rows.start : rows.stop])
