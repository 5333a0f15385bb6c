"""The paper on one's own shards: `make paper SHARDS=...`, `gratis paper --shards S --minutes 60`.

Trains a network (or takes a run that --run names), draws the paper's figures from it, one image's
way through the loader, figure 1, the ablation table and the tables beside the paper's, as far as
the minutes go, and writes one report, `report.md` with its PNGs, into the run's folder `paper`.
What does not fit is left out with its reason; the same command later does what is missing: training
goes on from its checkpoint, finished ablations stand.

`gratis paper --shards S --hours 6 --docs docs/paper.md` is the other form: the paper's claims with
three seeds each, by the parts in `gratis.train.paper.claims`, into one page."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from gratis.atomic import atomic_output, exclusive
from gratis.command_line import parse
from gratis.dataset import Manifest, read_manifest, require_square
from gratis.errors import GratisError
from gratis.extras import require
from gratis.history import records
from gratis.signals import terminate_exits
from gratis.train.paper import page_records
from gratis.train.paper.claims import CLAIMS
from gratis.train.paper.longest import pictures_of
from gratis.train.paper.parts import PARTS, Paper, PartContext, PartResult, whole_of
from gratis.train.paper.trainings import stem_of
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
    kind, parts = ("claims", CLAIMS) if options.hours else ("paper", PARTS)
    run = options.runs / (options.run or f"{kind}-{name}-{manifest.hash[:8]}")
    context = PartContext(
        options=options,
        manifest=manifest,
        recipe_name=name,
        recipe=last_launch(run).recipe if options.run else RECIPES[name],
        run=run,
        ends=time.monotonic() + (3600 * options.hours if options.hours else 60 * options.minutes),
    )
    with exclusive(context.folder, f"run {run.name}"):
        # of an earlier call, until its part comes: a page never holds less than before
        results = known(context) if options.hours else {}
        for number, (title, part) in enumerate(parts.items(), 1):
            left = f"{max(0, context.left) / 60:.0f} minutes left"
            print(f"{number} of {len(parts)}: {part.__name__}, {left}", flush=True)
            if title not in results or results[title].state != "done":
                section = part(context)._replace(made=f"{today()} at commit {commit()}")
                results[title] = fuller(results.get(title), section)
            print(f"  {title}: {results[title].state}, {results[title].made}", flush=True)
            report = write(context, {name: results[name] for name in parts if name in results})
    return report


def known(context: PartContext) -> page_records.Sections:
    """What earlier calls wrote, those on other machines too; their runs are laid out again."""
    settings, results = settings_of(context), page_records.Sections()
    for path in reversed(records_of(context)):
        results |= page_records.read_sections(path, settings)  # or an error, before runs are made
        page_records.restore_runs(path, context.options.runs)
    return results


def fuller(before: PartResult | None, now: PartResult) -> PartResult:
    """What this call has of a part, or an earlier one's where it has nothing to show: its time was
    over, or weights are on another machine."""
    return before if before and before.lines and not now.lines else now


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
    order: tuple[RecipeName, ...] = ("released", *(("sample",) if few else ()), "tiny", "tiny64")
    for name in order:
        if RECIPES[name].image_size == manifest.image_size:
            return name
    sizes = sorted({recipe.image_size for recipe in RECIPES.values()})
    raise GratisError(
        f"no recipe is for {manifest.image_size}-pixel images; make shards with --size "
        f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]}"
    )


def settings_of(context: PartContext) -> str:
    """What other settings, seeds or data make another page of."""
    seeds = context.options.chosen_seeds.replace(",", "-").replace(" ", "")
    return f"{stem_of(context.recipe_name, context.manifest, whole_of(context))}-s{seeds}"


def records_of(context: PartContext) -> list[Path]:
    """The files of the page's records: the run's own, and the one beside --docs."""
    docs = context.options.docs
    own = context.folder / f"records-{settings_of(context)}.json"
    return [own, *([docs.with_suffix(".json")] if docs else [])]


def write(context: PartContext, results: dict[str, PartResult]) -> Path:
    """report.md: what was measured on what, then every part with its state; --docs, if asked for,
    is the same."""
    manifest, docs = context.manifest, context.options.docs
    data = ", ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
    lines = [
        f"# The paper of 2012 on dataset {manifest.hash[:8]}"
        + ("" if context.options.hours else f", run {context.run.name}"),
        "",
        *(made(context) if context.options.hours else ()),
        f"Measured on {data} images of {len(manifest.classes):,} classes at {manifest.image_size} "
        "px, to which smaller originals were enlarged; what is of other data is marked. The "
        "paper's numbers are on ILSVRC at 256 px (1.2 million images of 1,000 classes), 90 epochs: "
        "a target for that dataset, not for another.",
        "",
    ]
    for title, (state, texts, when) in results.items():
        lines += [f"## {title}", "", f"*{state}*{f', {when}' if context.options.hours else ''}", ""]
        lines += [line for text in texts for line in (text, "")]
    if context.options.hours:
        prefix = f"ablate-{context.recipe_name}-"
        for path in records_of(context):
            page_records.write(path, settings_of(context), results, context.options.runs, prefix)
        copy_pictures(context)
    path = context.folder / "report.md"
    for page in (path, *((docs,) if docs else ())):
        with atomic_output(page, "make room, or choose other --runs") as draft:
            draft.write_text("\n".join(lines).rstrip("\n") + "\n")
    return path


def copy_pictures(context: PartContext) -> None:
    """Beside --docs, where the page names them, with 256 colours each: a third of the bytes."""
    from PIL import Image

    docs, folder = context.options.docs, pictures_of(context)
    if docs is None:
        return
    for png in sorted(folder.glob("*.png")):
        own = docs.parent / folder.name / png.name
        own.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(png) as image, atomic_output(own, "make room") as draft:
            image.convert("RGB").quantize(256).save(draft, format="PNG", optimize=True)


def made(context: PartContext) -> list[str]:
    """By what, when, of which source and on what machine the page was made."""
    options = context.options
    command = f"gratis paper --shards SHARDS --hours {options.hours:g}"
    if options.docs:
        command += f" --docs {options.docs.name if options.docs.is_absolute() else options.docs}"
    if options.jobs > 1:
        command += f" --jobs {options.jobs}"
    return [
        f"Made by `{command}` on {today()} at commit {commit()}, "
        f"{os.cpu_count()} cores, load average at its end {os.getloadavg()[0]:.1f}; not edited by "
        "hand. The same command goes on with what is missing.",
        "",
    ]


def today() -> str:
    return time.strftime("%Y-%m-%d")


def commit() -> str:
    """Of the source that this is run from; "unknown" of an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
