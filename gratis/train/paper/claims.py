"""The parts of `gratis paper --hours`: the paper's claims at a size that a CPU can afford, in the
order of worth. Each run is over once; what a stop left goes on with the same command."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gratis.dataset import Manifest, read_manifest
from gratis.processes import OVER, timed
from gratis.train.paper.ablate import Ablate, ablate_within, has, seeds_of
from gratis.train.paper.ablation_table import WHOLE
from gratis.train.paper.arguments import flags
from gratis.train.paper.costs import cost_of, recorded, words
from gratis.train.paper.differences import RULE, difference, shown
from gratis.train.paper.longest import longest, resized
from gratis.train.paper.markdown import table
from gratis.train.paper.parts import FIGURE1_SIZE, PartContext, PartResult, ran_short, whole_of
from gratis.train.paper.switches import SWITCHES, same_as_without_conv3
from gratis.train.paper.trainings import errors_of, run_of, stem_of
from gratis.train.recipes import Recipe

if TYPE_CHECKING:
    from gratis.train.paper.four_layers import TrainingCurve

# by whether the authors' number of what it costs is known
NUMBERED = [name for name, switch in SWITCHES.items() if switch.paper[0] is not None]
OTHERS = [name for name in SWITCHES if name not in NUMBERED]
ENSEMBLES = (3, 5)
TARGET = 0.25
FIGURE1_SHARE = 1 / 3  # of the time that is left when it begins
EPOCH_S = 120.0
FIGURE1_IMAGES = 10_000  # a fifth of CIFAR-10
CONV_RATE = 0.1  # the authors', of pretrained convolutions


def train_whole(
    context: PartContext, seeds: list[int], name: str, shards: str, whole: Recipe
) -> tuple[str, dict[int, Path]]:
    """The whole network with these seeds; how far that came, and the runs that are finished."""
    from gratis.loader import dataset_folder

    out = context.folder / name
    options = ablation(context, [], out, ",".join(map(str, seeds)), shards=shards, whole=whole)
    state = ablate_within(context.left, context.log(name), options)
    stem = stem_of(context.recipe_name, read_manifest(dataset_folder(shards)), whole)
    folders = {seed: context.options.runs / run_of(stem, WHOLE, seed) for seed in seeds}
    return state, {seed: folder for seed, folder in folders.items() if errors_of(folder)}


def ablation(
    context: PartContext, names: list[str], out: Path, seeds: str, **changes: Any
) -> Ablate:
    options, whole = context.options, whole_of(context)
    own: dict[str, Any] = {
        "shards": options.shards,
        "whole": whole,
        "gpus": options.gpus,
        "jobs": options.jobs,
    }
    own |= {
        "fields": ",".join(names_for(names, whole)),
        "seeds": seeds,
        "runs": options.runs,
        "out": out,
    }
    return Ablate(recipe=context.recipe_name, **(own | changes))


def names_for(names: list[str], whole: Recipe) -> list[str]:
    """Those that switch something off in this network, each network once."""
    twins = {"conv4"} if same_as_without_conv3(whole) else set()
    return [name for name in names if has(name, whole) and name not in twins]


def numbered(context: PartContext) -> PartResult:
    return switched(context, NUMBERED, "numbered")


def others(context: PartContext) -> PartResult:
    return switched(context, OTHERS, "others")


def switched(context: PartContext, names: list[str], name: str) -> PartResult:
    out = context.folder / name
    options = ablation(context, names, out, context.options.chosen_seeds)
    state = ablate_within(context.left, context.log(name), options)
    page = out / "ablation.md"
    return PartResult(state, (page.read_text(),) if page.exists() else ())


def figure1(context: PartContext) -> PartResult:
    from gratis.train.paper.figure1_seeds import RATES, best_rates, read, summary

    ends, seeds = time.monotonic() + FIGURE1_SHARE * context.left, context.options.chosen_seeds
    shards, failure = context.options.shards32, None
    if not shards:
        own, failure = resized(context, FIGURE1_SIZE)
        shards = str(own)
    curves: dict[int, list[TrainingCurve]] = {}
    rates = RATES
    for seed in seeds_of(seeds):
        out, left = context.folder / f"figure1-s{seed}", ends - time.monotonic()
        if not failure:
            options = flags(shards=shards, out=out, seed=seed, images=FIGURE1_IMAGES, rates=rates)
            options += flags(target=TARGET, minutes=f"{max(left, 1) / 60:.4g}")
            # it ends itself with the epoch that is under way
            with recorded(out):
                failure = timed(context.log(out.name), ["figure1", *options], left + EPOCH_S)
            failure = failure or (f"in part: {OVER}" if ran_short(context.log(out.name)) else None)
        curves[seed] = read(out)  # of an earlier call, where this one has failed
        if not failure and rates == RATES:
            rates = best_rates(curves[seed], TARGET)
    data = (
        f"Four layers on the first {FIGURE1_IMAGES:,} training images at {FIGURE1_SIZE} px"
        f"{'' if context.options.shards32 else ', made of the larger ones'}; CIFAR-10 is not to "
        f"be had here. The trainings took {words(cost_of(context.folder.glob('figure1-s*')))}."
    )
    lines = (data, "\n".join(summary(curves, TARGET))) if any(curves.values()) else ()
    return PartResult(failure or "done", lines)


def colour(context: PartContext) -> PartResult:
    """Of the whole networks that are there; trains nothing."""
    from safetensors.numpy import load_file

    from gratis.train import checkpoint
    from gratis.train.network.alexnet import AlexNet
    from gratis.train.paper.specialisation import specialisation, summary

    whole = whole_of(context)
    if whole.towers != 2:
        return PartResult("skipped: this network has one tower")
    stem, seeds = stem_of(context.recipe_name, context.manifest, whole), {}
    wanted = ensemble_seeds(context)
    for seed in wanted:
        folder = context.options.runs / run_of(stem, WHOLE, seed)
        saved = checkpoint.latest(folder / "checkpoints") if errors_of(folder) else None
        if saved:
            ended = load_file(saved / "network.safetensors")["conv1.weight"]
            network = AlexNet(whole, len(context.manifest.classes), seed=seed)
            begun = network.get_parameter("conv1.weight").detach().numpy()
            seeds[seed] = specialisation(begun), specialisation(ended)
    if not seeds:
        return PartResult("skipped: no whole network is trained yet")
    missing = len(wanted) - len(seeds)
    state = f"in part: {missing} of {len(wanted)} networks are not here" if missing else "done"
    return PartResult(state, ("\n".join(summary(seeds)),))


def ensembles(context: PartContext) -> PartResult:
    """Of whole networks with different seeds: the first ones' and further ones."""
    seeds = ensemble_seeds(context)
    state, folders = train_whole(
        context, seeds, "ensembles", context.options.shards, whole_of(context)
    )
    rows = list[tuple[str, ...]]()
    for count in (count for count in ENSEMBLES if count <= len(folders)):
        names = [folder.name for folder in folders.values()][:count]
        path = context.folder / f"ensemble-{count}.json"
        command = ["ensemble", *names, *flags(runs=context.options.runs, out=path)]
        if failure := timed(context.log(path.stem), command, max(context.left, 60)):
            state = failure
            break
        scores = [row["scores"] for row in json.loads(path.read_text())]
        rows += single_and_mean(count, scores)
    if not rows:
        return PartResult(state)
    paper = "The paper, ILSVRC-2012 validation: one 40.7 / 18.2, five 38.1 / 16.4."
    lines = ["Errors in % over ten views.", "", *table(("", "top-1", "top-5"), rows), "", paper]
    return PartResult(state, ("\n".join(lines),))


def single_and_mean(count: int, scores: list[dict[str, float]]) -> list[tuple[str, ...]]:
    """Errors of `count` networks, their mean, and of the mean of their probabilities. scores: in
    the order of `gratis ensemble`, each network's, then the plain mean's."""
    single = {key: sum(one[key] for one in scores[:count]) / count for key in ("top1", "top5")}
    both = ((f"{count} single ones, mean", single), (f"mean of {count}", scores[count]))
    return [(what, *(f"{100 - 100 * own[key]:.1f}" for key in single)) for what, own in both]


def ensemble_seeds(context: PartContext) -> list[int]:
    seeds = seeds_of(context.options.chosen_seeds)
    seeds += [seed for seed in range(max(seeds) + max(ENSEMBLES)) if seed not in seeds]
    return seeds[: max(ENSEMBLES)]


def pretraining(context: PartContext) -> PartResult:
    """Half of the classes learned from new weights and from the convolutions of a network trained
    on the other half, in equal steps."""
    if "://" in context.options.shards:
        return PartResult("skipped: it reads local folders; copy the dataset, or give its mount")
    whole, seeds = whole_of(context), seeds_of(context.options.chosen_seeds)
    halves = [context.folder / f"half{half}" / "shards" for half in (0, 1)]
    for half, shards in enumerate(halves):
        if failure := make_half(context, half, shards):
            return PartResult(failure)
    state, sources = train_whole(context, seeds, "pretraining", str(halves[1]), whole)
    states, tuned = [state], dict[int, Path]()
    state, scratch = train_whole(context, seeds, "scratch", str(halves[0]), whole)
    states.append(state)
    for seed, source in sources.items():
        recipe = replace(whole, init_from=str(source), conv_rate=CONV_RATE)
        state, own = train_whole(context, [seed], f"tuned-s{seed}", str(halves[0]), recipe)
        states.append(state)
        tuned |= own
    state = next((state for state in states if state != "done"), "done")
    rows = compared_by_seed(scratch, tuned)
    if not rows:
        return PartResult(state)
    cost = cost_of([*sources.values(), *scratch.values(), *tuned.values()])
    headings = ("", "from new weights", "pretrained", "difference, top-1", "top-5")
    val = read_manifest(halves[0]).splits["val"].samples
    lines = [
        f"Top-1 / top-5 errors in % over ten views of {val:,} images of every second class, after "
        f"{whole.epochs} epochs either way; pretrained: convolutions of as many epochs on the "
        f"other classes, which go on at {CONV_RATE:g} of the rate. Negative: pretraining helps. "
        f"{RULE} The paper's, top-5: 18.2, and 16.6 pretrained on all of ImageNet.",
        "",
        *table(headings, rows),
        "",
        f"The runs took {words(cost)}.",
    ]
    return PartResult(state, ("\n".join(lines),))


def compared_by_seed(scratch: dict[int, Path], tuned: dict[int, Path]) -> list[list[str]]:
    """A row for each seed that both have, and one for their mean; none without such a seed."""
    both = [seed for seed in tuned if seed in scratch]
    rows = [compared(f"seed {seed}", [scratch[seed]], [tuned[seed]]) for seed in both]
    if both:
        rows += [compared("mean", *([runs[seed] for seed in both] for runs in (scratch, tuned)))]
    return rows


def compared(what: str, scratch: list[Path], tuned: list[Path]) -> list[str]:
    """A row: errors of both and their difference, run by run."""
    pairs = [(errors_of(one), errors_of(other)) for one, other in zip(scratch, tuned, strict=True)]
    both = [(one[:2], other[:2]) for one, other in pairs if one and other]
    cells = [what]
    for side in (0, 1):
        means = (sum(pair[side][key] for pair in both) / len(both) for key in (0, 1))
        cells.append(" / ".join(f"{mean:.1f}" for mean in means))
    return cells + [shown(difference([b[key] - a[key] for a, b in both])) for key in (0, 1)]


def make_half(context: PartContext, half: int, shards: Path) -> str | None:
    """The dataset of every second class, once; why it is not there, or None."""
    from gratis.train.paper.halves import write_half

    tars = shards.parent / "tars"
    if (shards / "manifest.json").is_file():
        shutil.rmtree(tars, ignore_errors=True)  # of a call that ended just behind it
        return None
    if context.left <= 0:
        return f"skipped: {OVER}"
    manifest: Manifest = context.manifest
    write_half(Path(context.options.shards), manifest, half, tars)
    command = ["shards", *flags(src=tars, out=shards, size=manifest.image_size)]
    failure = timed(context.log(f"half{half}"), command, context.left)
    if not failure:
        shutil.rmtree(tars)
    return failure


CLAIMS = {
    "Parts with a number in the paper": numbered,
    "ReLU against tanh (figure 1)": figure1,
    "Other parts": others,
    "Ensembles": ensembles,
    "Colour by tower (figure 3)": colour,
    "Pretraining": pretraining,
    "Both towers at full width": longest,
}
"""By their titles in the report, in the order in which they are done."""
