"""The last part of `gratis paper --hours`: recipe `released` at full width on the dataset enlarged
to 128 px, both towers in processes of their own, to its end; its report, figures and exported
model.

Its page is that of `gratis status --runs RUNS`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gratis.dataset import read_manifest
from gratis.extras import PACKAGES, importable
from gratis.history import outcome
from gratis.processes import OVER, timed
from gratis.train.analysis.figures import CAPTIONS, Which
from gratis.train.launcher.result import result
from gratis.train.paper.arguments import flags, recipe_flags
from gratis.train.paper.costs import cost_of, recorded, words
from gratis.train.paper.parts import SEARCHED, PartContext, PartResult, errors, progress
from gratis.train.paper.trainings import OVER_FOR_GOOD, stem_of
from gratis.train.recipes import RELEASED

SIZE, CROP = 128, 112  # half of the paper's
PROCESSES = 2  # a tower each
NAMES: tuple[Which, ...] = ("conv1", "top5", "neighbours", "curves")


def longest(context: PartContext) -> PartResult:
    recipe = replace(RELEASED, image_size=SIZE, crop=CROP, epochs=context.options.longest_epochs)
    shards, failure = resized(context, SIZE)
    if failure:
        return PartResult(failure)
    run = context.options.runs / f"longest-{stem_of('released', read_manifest(shards), recipe)}"
    if outcome(run) not in OVER_FOR_GOOD:
        command = ["train", *flags(shards=shards, run=run.name, runs=context.options.runs)]
        command += flags(gpus=PROCESSES, port=0, recipe="released")
        command += recipe_flags(recipe, RELEASED)
        with recorded(run):
            failure = timed(context.log("longest"), command, context.left)
    if not (run / "checkpoints").is_dir():
        return PartResult(failure or "ended before its first checkpoint")
    text = [*errors(run), f"The run took {words(cost_of([run]))}."]
    if outcome(run) != "finished":
        why = failure if failure and OVER not in failure else "the same command goes on"
        return PartResult(f"{progress(run)}; {why}", (" ".join(text),))
    own, verdict = result(run)
    text.append(
        f"{own['images_per_s']:,.0f} training images/s, waiting for data "
        f"{own['wait_fraction']:.1%} of the time; the loader could deliver "
        f"{own['headroom']:.1f} times as many. {verdict.title if verdict else ''}."
    )
    missing = [
        failure for failure in (drawn(context, run, shards), exported(run, shards)) if failure
    ]
    place = f"RUNS/{run.name}/{model()}"
    text.append(f"Seen by `gratis status --runs RUNS`; the exported model is `{place}`.")
    return PartResult("; ".join(missing) or "done", (" ".join(text), *pictures(context)))


def resized(context: PartContext, size: int) -> tuple[Path, str | None]:
    """The dataset's images at another size, made once; why they are not there, or None."""
    shards = context.folder / f"shards{size}"
    if (shards / "manifest.json").is_file():
        return shards, None
    command = ["shards", *flags(src=context.options.shards, out=shards, size=size)]
    return shards, timed(context.log(f"shards{size}"), command, context.left)


def drawn(context: PartContext, run: Path, shards: Path) -> str | None:
    """Into the folder of the page's pictures; why not, or None."""
    out = pictures_of(context)
    if all((out / f"{name}.png").exists() for name in NAMES):
        return None
    command = ["figures", *flags(run=run.name, runs=context.options.runs, shards=shards, out=out)]
    command += flags(only=NAMES, search=SEARCHED)
    return timed(context.log("longest-figures"), command, max(context.left, 600))


def exported(run: Path, shards: Path) -> str | None:
    """The trained network for other programs; why not, or None."""
    path = run / model()
    if path.exists():
        return None
    command = ["export", *flags(run=run.name, runs=run.parent, shards=shards), str(path)]
    return timed(run / "export.log", command, 1800)


def model() -> str:
    """Its file, in a form that can be written here."""
    return "alexnet.onnx" if all(map(importable, PACKAGES["onnx"])) else "alexnet.pt"


def pictures_of(context: PartContext) -> Path:
    docs = context.options.docs
    return context.folder / (docs.stem if docs else "figures")


def pictures(context: PartContext) -> tuple[str, ...]:
    folder = pictures_of(context)
    return tuple(
        f"![{name}]({folder.name}/{name}.png)\n\n{CAPTIONS[name]}"
        for name in NAMES
        if (folder / f"{name}.png").exists()
    )
