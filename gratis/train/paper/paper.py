"""The paper on one's own shards: `make paper SHARDS=...`, `gratis paper --shards S --minutes 60`.

Trains a network (or takes a run that --run names), draws the paper's figures from it, one image's
way through the loader, figure 1, the ablation table and the tables beside the paper's, as far as
the minutes go, and writes one report, `report.md` with its PNGs, into the run's folder `paper`.
What does not fit is left out with its reason; the same command later does what is missing: training
goes on from its checkpoint, finished ablations stand."""

from __future__ import annotations

import time
from pathlib import Path

from gratis.atomic import atomic_output, exclusive
from gratis.command_line import parse
from gratis.dataset import Manifest, read_manifest, require_square
from gratis.errors import GratisError
from gratis.extras import require
from gratis.history import records
from gratis.signals import terminate_exits
from gratis.train.paper.parts import PARTS, Paper, PartContext, PartResult
from gratis.train.recipes import RECIPES, RecipeName


def main(arguments: list[str]) -> None:
    options = parse(Paper, arguments, "gratis paper")
    require("figures", "gratis paper")
    terminate_exits()
    print(paper(options), flush=True)


def paper(options: Paper) -> Path:
    """Does what is missing as far as the time goes; the report's path. It is renewed after each
    part."""
    from gratis.loader import dataset_folder
    from gratis.train.analysis.trained_network import last_launch

    manifest = read_manifest(dataset_folder(options.shards))
    require_square(options.shards, manifest, "paper")
    if options.shards32:
        # that it is there is known before an hour is spent
        read_manifest(dataset_folder(options.shards32))
    own = of_run(options, manifest) if options.run else None
    name = options.recipe or own or fitting(manifest)
    run = options.runs / (options.run or f"paper-{name}-{manifest.hash[:8]}")
    context = PartContext(
        options=options,
        manifest=manifest,
        recipe_name=name,
        recipe=last_launch(run).recipe if options.run else RECIPES[name],
        run=run,
        ends=time.monotonic() + 60 * options.minutes,
    )
    results: dict[str, PartResult] = {}
    with exclusive(context.folder, f"run {run.name}"):
        for number, (title, part) in enumerate(PARTS.items(), 1):
            left = f"{max(0, context.left) / 60:.0f} minutes left"
            print(f"{number} of {len(PARTS)}: {part.__name__}, {left}", flush=True)
            results[title] = part(context)
            print(f"  {title}: {results[title].state}", flush=True)
            report = write(context, results)
    return report


def of_run(options: Paper, manifest: Manifest) -> RecipeName:
    """The recipe of --run. GratisError unless the run has a checkpoint and was trained on this
    dataset."""
    run = options.runs / str(options.run)
    if not (run / "checkpoints").is_dir():
        missing = f"there is no run {options.run} with a checkpoint in {options.runs}"
        raise GratisError(f"{missing}; choose another --run")
    starts = [one for one in records(run) if one["kind"] == "start"]
    if not starts or starts[-1]["dataset"] != manifest.hash:
        other = starts[-1]["dataset"][:8] if starts else "an unknown one"
        raise GratisError(
            f"run {options.run} was trained on dataset {other}, {options.shards} is "
            f"{manifest.hash[:8]}: give the --shards it was trained on, or another --run"
        )
    name: RecipeName = starts[-1]["recipe"]
    return name


def fitting(manifest: Manifest) -> RecipeName:
    """The recipe for images of this size; GratisError if there is none."""
    few = len(manifest.classes) <= 10
    order: tuple[RecipeName, ...] = ("released", "sample", "tiny") if few else ("released", "tiny")
    for name in order:
        if RECIPES[name].image_size == manifest.image_size:
            return name
    sizes = sorted({recipe.image_size for recipe in RECIPES.values()})
    raise GratisError(
        f"no recipe is for {manifest.image_size}-pixel images; make shards with --size "
        f"{' or '.join(map(str, sizes))}"
    )


def write(context: PartContext, results: dict[str, PartResult]) -> Path:
    """report.md: what was measured on what, then every part with its state."""
    manifest = context.manifest
    data = ", ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    lines = [
        f"# The paper of 2012 on dataset {manifest.hash[:8]}, run {context.run.name}",
        "",
        f"Measured on {data} images of {len(manifest.classes):,} classes at {manifest.image_size} "
        "px, to which smaller originals were enlarged; what is of other data is marked. The "
        "paper's numbers are on ILSVRC at 256 px (1.2 million images of 1,000 classes), 90 epochs: "
        "a target for that dataset, not for another.",
        "",
    ]
    for title, (state, texts) in results.items():
        lines += [f"## {title}", "", f"*{state}*", ""]
        lines += [line for text in texts for line in (text, "")]
    path = context.folder / "report.md"
    with atomic_output(path, "make room, or choose other --runs") as draft:
        draft.write_text("\n".join(lines))
    return path
