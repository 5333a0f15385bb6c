"""What is wrong with a run, before anything is started: its dataset, and how it is spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from gratis.dataset import Manifest, read_manifest, require_split, require_square
from gratis.errors import GratisError
from gratis.network import DEFAULT_LIMITS, NetworkLimits
from gratis.train.network.layers import plan
from gratis.train.options import Options
from gratis.train.recipes import RECIPES

# programs that start a command several times: what each copy learns of its number, and of how many
LAUNCHERS = (
    ("torchrun", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"),  # accelerate launch too, which calls it
    ("srun", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"),  # not what sbatch asks for and runs once
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("mpirun", "PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
    ("a launcher of distributed programs", "RANK", "WORLD_SIZE"),  # deepspeed, Kubeflow, ...
)


def check_launcher(nnodes: int, environment: Mapping[str, str]) -> None:
    """GratisError if the environment says that more copies of this command were started than
    `nnodes`, the machines that it was told of: each would train the same."""
    for launcher, rank, world in LAUNCHERS:
        copies = environment.get(world, "")
        if rank in environment and copies.isdecimal() and int(copies) > nnodes:
            raise GratisError(
                f"{launcher} started gratis train {copies} times ({world}), which would be as many "
                "equal trainings: start it once on each machine, where --gpus says how many "
                f"processes it starts (--nnodes for several machines); if this is a shell in which "
                f"you start it once, unset {world}"
            )


def manifest_of(shards: Path | str, limits: NetworkLimits = DEFAULT_LIMITS) -> Manifest:
    """Of a folder, or of an address: its manifest and indices are fetched here, its shards by the
    ranks."""
    from gratis.loader import dataset_folder

    manifest = read_manifest(dataset_folder(shards, limits=limits))
    for split in manifest.splits:
        dataset_folder(shards, split, limits=limits)
    return manifest


def check_dataset(shards: Path | str, manifest: Manifest, options: Options) -> None:
    """GratisError for a dataset that the recipe does not fit, or that is not whole."""
    require_split(shards, manifest, "train")
    require_square(shards, manifest, "training AlexNet")
    size, recipe = manifest.image_size, options.fields
    if size != recipe.image_size:
        fitting = " or ".join(name for name, other in RECIPES.items() if other.image_size == size)
        way_out = f"take --recipe {fitting}" if fitting else f"set --image-size {size} and a --crop"
        raise GratisError(
            f"{shards} holds {size}-pixel images, recipe {options.recipe} wants "
            f"{recipe.image_size}: {way_out}, or make shards with --size {recipe.image_size}"
        )
    classes = len(manifest.classes)
    if not classes:
        raise GratisError(
            f"{shards} was made with --unlabelled: it has no classes to learn; make shards with "
            f"labels, or train without them in a program of your own (gratis.Loader)"
        )
    if recipe.classes is not None and recipe.classes < classes:
        why = f"{shards} has {classes} classes; take at least those"
        raise GratisError(f"--classes {recipe.classes}: {why}")
    plan(recipe, recipe.classes or classes)
    if "://" not in str(shards):  # those are checked when they come
        check_files(Path(shards), manifest)
    if "val" not in manifest.splits:
        lack = f"{shards} has no validation split"
        if recipe.schedule == "plateau":
            raise GratisError(f"--schedule plateau follows the validation error, and {lack}")
        print(f"{lack}: training only, nothing can be evaluated")


def check_files(shards: Path, manifest: Manifest) -> None:
    """GratisError for a shard that is missing or cut short: validation comes after an epoch, too
    late to learn that it cannot be."""
    for split in manifest.splits.values():
        for shard in split.shards:
            path = shards / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                way_out = "verify the copy, or make the shards again"
                raise GratisError(f"{path} is missing or not as long as published; {way_out}")


def choose_world(gpus: int | None, *, present: int, share_device: bool) -> int:
    """How many processes to start on a machine of `present` GPUs. None: the largest even number of
    them, else 1.

    GratisError where the mesh cannot be built, with the way out.
    """
    even = max(1, present - present % 2)
    if gpus is None:
        return even
    if gpus < 1:
        raise GratisError(f"--gpus {gpus} must be at least 1")
    if gpus > 1 and gpus % 2:
        raise GratisError(f"--gpus {gpus}: towers come in pairs; take {gpus - 1} or {gpus + 1}")
    if 0 < present < gpus and not share_device:
        raise GratisError(
            f"--gpus {gpus}, but this machine has {present}; take --gpus {even}, "
            "or --share-device to put several processes on one"
        )
    return gpus


def check_world(options: Options, local: int) -> None:
    """`local` processes on each machine; GratisError where a mesh of them cannot be built."""
    nodes, batch, towers = options.nodes, options.fields.batch, options.settings.tower_ranks
    if nodes.most > 1 and local % min(towers, options.fields.towers):
        why = "the two towers of a network share a machine"
        way_out = "take an even --gpus, or --tower-ranks 1"
        raise GratisError(f"--gpus {local} on each of --nnodes {nodes.nnodes}: {why}; {way_out}")
    worlds = range(local * nodes.least, local * nodes.most + 1, local)
    for world in worlds:
        if batch % world:
            way_out = f"take a multiple of {math.lcm(*worlds[:100])}"
            raise GratisError(f"--batch {batch} cannot be split over {world} processes; {way_out}")
    if local > 1 and towers == 2 and options.fields.lrn_across_towers:
        raise GratisError(
            "this recipe normalises across the towers: take --gpus 1 or --tower-ranks 1"
        )
