"""Tables and the report that puts the paper's parts together."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gratis.atomic import atomic_output, exclusive
from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.events import EventWriter
from gratis.processes import timed
from gratis.train.analysis.figures import CAPTIONS
from gratis.train.analysis.trained_network import last_launch
from gratis.train.launcher.launch import Launch
from gratis.train.paper.ablate import has
from gratis.train.paper.paper import Paper, fitting, of_run, paper
from gratis.train.paper.parts import PartContext, explain, train, whole_of
from gratis.train.paper.switches import SWITCHES
from gratis.train.paper.tables import main, tables
from gratis.train.recipes import RECIPES, RELEASED, SAMPLE, TINY, Recipe


def finished(
    run: Path,
    recipe: Recipe,
    sizes: tuple[int, int, int],
    top1: float,
    *,
    base: str | None = None,
    views: tuple[int, ...] = (1, 10),
) -> None:
    """A run's events as training writes them. sizes: training and validation images, classes."""
    run.mkdir(parents=True, exist_ok=True)
    events = EventWriter(run / "rank-0.jsonl", attempt=1, rank=0)
    base = base or next(
        (
            key
            for key, own in RECIPES.items()
            if own == replace(recipe, init_from=None, conv_rate=1.0)
        ),
        "tiny",
    )
    train, val, classes = sizes
    events.write(
        "start",
        {
            "recipe": base,
            "config": {"recipe": asdict(recipe)},
            "epochs": recipe.epochs,
            "train_images": train,
            "val_images": val,
            "classes": classes,
            "dataset": "e" * 64,
        },
    )
    for count in views:
        more = 0.02 if count == 10 else 0.0
        fields = {
            "views": count,
            "images": val,
            "top1": top1 + more,
            "top5": 0.8,
            "nll": 1.0,
            "wall_s": 1.0,
        }
        events.write("eval", fields, epoch=recipe.epochs, step=1)
    events.write("end", {"outcome": "finished", "error": None})


def test_only_ilsvrc_runs_stand_beside_the_paper(tmp_path: Path) -> None:
    ilsvrc = (1_281_167, 50_000, 1000)
    finished(tmp_path / "small", TINY, (50_000, 5_000, 100), 0.3)
    text = tables(tmp_path)
    assert "| 1 CNN | 40.7 | 18.2 |  |  |  |  |" in text
    assert "No run here is on ILSVRC-2012" in text
    assert (
        "| small | tiny | 3 | 68.0 | 20.0 | 70.0 | dataset eeeeeeee: 5,000 validation images of "
        "100 classes" in text
    )
    finished(tmp_path / "changed", replace(RELEASED, epochs=5), ilsvrc, 0.9)
    assert "| 1 CNN | 40.7 | 18.2 |  |  |  |  |" in tables(tmp_path)
    finished(tmp_path / "whole", RELEASED, ilsvrc, 0.57)
    finished(tmp_path / "tuned", replace(RELEASED, init_from="runs/x", conv_rate=0.1), ilsvrc, 0.58)
    text = tables(tmp_path)
    assert "| 1 CNN | 40.7 | 18.2 |  | 41.0 | 20.0 | whole |" in text
    assert "| 1 CNN* | 39.0 | 16.6 |  | 40.0 | 20.0 | tuned |" in text
    assert "| 7 CNNs* | 36.7 | 15.4 | 15.3 |  |  |  |" in text


def test_the_paper_s_tables_are_as_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tables(tmp_path).splitlines()
    assert lines[2:7] == [
        "| model | top-1, paper | top-5, paper | top-1, ours | top-5, ours |",
        "|---|---|---|---|---|",
        "| sparse coding | 47.1 | 28.2 |  |  |",
        "| SIFT + FVs | 45.7 | 25.7 |  |  |",
        "| CNN | 37.5 | 17.0 |  |  |",
    ]
    assert lines[7] == ""
    own = "top-1 val, ours | top-5 val, ours | run |"
    assert lines[10:17] == [
        f"| model | top-1 val, paper | top-5 val, paper | top-5 test, paper | {own}",
        "|---|---|---|---|---|---|---|",
        "| SIFT + FVs |  |  | 26.2 |  |  |  |",
        "| 1 CNN | 40.7 | 18.2 |  |  |  |  |",
        "| 5 CNNs | 38.1 | 16.4 | 16.4 |  |  |  |",
        "| 1 CNN* | 39.0 | 16.6 |  |  |  |  |",
        "| 7 CNNs* | 36.7 | 15.4 | 15.3 |  |  |  |",
    ]
    assert lines[-1] == "No run here is finished and evaluated yet."
    main(["--runs", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == lines
    page = tmp_path / "tables.md"
    main(["--runs", str(tmp_path), "--out", str(page)])
    assert (capsys.readouterr().out, page.read_text().splitlines()) == (f"{page}\n", lines)
    with pytest.raises(GratisError, match="is no folder"):
        tables(tmp_path / "none")


def test_our_runs_are_listed_with_what_they_were_measured_on(tmp_path: Path) -> None:
    """The best of several stands beside the paper; its numbers are the last start's and the last
    evaluations', and of a run that goes on again there is none."""
    ilsvrc = (1_281_167, 50_000, 1000)
    for name, top1 in (("a", 0.5), ("b", 0.625), ("c", 0.5625)):
        finished(tmp_path / name, RELEASED, ilsvrc, top1 - 0.02)
    finished(tmp_path / "b", RELEASED, ilsvrc, 0.605)  # once more, and no better
    others = ((1_281_166, 50_000, 1000), (1_281_167, 1, 1000), (1_281_167, 50_000, 1))
    for number, sizes in enumerate(others):
        finished(tmp_path / f"other{number}", RELEASED, sizes, 0.75)
    finished(tmp_path / "longer", replace(RELEASED, epochs=91), ilsvrc, 0.75, base="released")
    finished(tmp_path / "under way", RELEASED, ilsvrc, 0.75)
    EventWriter(tmp_path / "under way" / "rank-0.jsonl", attempt=2, rank=0).write("start", {})
    finished(tmp_path / "centre", RELEASED, ilsvrc, 0.75, views=(1,))
    finished(tmp_path / "ten", RELEASED, ilsvrc, 0.25, views=(10,))
    (tmp_path / "file").touch()
    lines = tables(tmp_path).splitlines()
    assert "| 1 CNN | 40.7 | 18.2 |  | 37.5 | 20.0 | b |" in lines
    assert "No run here is on ILSVRC-2012" not in "".join(lines)
    own = lines[lines.index("|---|---|---|---|---|---|---|", 20) - 1 :]
    assert own[0] == "| run | recipe | epochs | top-1 | top-5 | top-1, centre | measured on |"
    on = "ILSVRC-2012: 50,000 validation images of 1,000 classes at 256 px, trained on 1,281,167"
    assert own[2:6] == [
        f"| a | released | 90 | 50.0 | 20.0 | 52.0 | {on} |",
        f"| b | released | 90 | 37.5 | 20.0 | 39.5 | {on} |",
        f"| c | released | 90 | 43.8 | 20.0 | 45.8 | {on} |",
        f"| longer | released, changed | 91 | 23.0 | 20.0 | 25.0 | {on} |",
    ]
    other = "dataset eeeeeeee: 50,000 validation images of 1,000 classes at 256 px, trained on"
    assert own[6] == f"| other0 | released | 90 | 23.0 | 20.0 | 25.0 | {other} 1,281,166 |"
    assert [line.split(" | ")[0] for line in own[7:9]] == ["| other1", "| other2"]
    assert own[9:] == [f"| ten | released | 90 | 73.0 | 20.0 |  | {on} |"]


@pytest.mark.starts
def test_a_command_that_fails_or_takes_too_long_is_reported(tmp_path: Path) -> None:
    assert timed(tmp_path / "a.log", ["summary"], 100) is None
    failure = timed(tmp_path / "b.log", ["summary", "--recipe", "nose"], 100) or ""
    assert failure.startswith("failed with exit code 2: --recipe nose is none of")
    assert (
        timed(tmp_path / "c.log", ["status", "--runs", str(tmp_path), "--port", "0"], 1) or ""
    ).startswith("stopped after")
    assert (timed(tmp_path / "d.log", ["train"], 0) or "").startswith(
        "skipped: the minutes are over"
    )


@pytest.mark.parametrize(
    ("ended", "run", "state"),
    [
        ("preempted", None, "stopped at step 3 of 20; the same command goes on"),
        ("preempted", "a", "stopped at step 3 of 20"),  # a run that is named is reported as it is
        ("diverged", None, "diverged at step 3 of 20"),
        ("finished", None, "done"),
    ],
)
def test_how_far_training_is_reported(
    ended: str, run: str | None, state: str, jpeg_dataset: Path, tmp_path: Path
) -> None:
    """With the last errors of each kind, a sentence each."""
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    events = EventWriter(tmp_path / "a" / "rank-0.jsonl", attempt=1, rank=0)
    events.write("start", {"epochs": 2, "steps_per_epoch": 10})
    events.write("step", {"steps": 3}, epoch=0, step=3)
    events.write("step", {"steps": 1}, epoch=0, step=2)
    for views, epoch, top1 in ((10, 1, 0.25), (1, 1, 0.5), (1, 2, 0.625)):
        scores = {"views": views, "images": 5000, "top1": top1, "top5": 0.875}
        events.write("eval", scores, epoch=epoch, step=3)
    events.write("end", {"outcome": ended, "error": None})
    options = Paper(shards=str(jpeg_dataset), runs=tmp_path, run=run)
    context = PartContext(
        options=options,
        manifest=read_manifest(jpeg_dataset),
        recipe_name="sample",
        recipe=SAMPLE,
        run=tmp_path / "a",
        ends=0,
    )
    own = "top-1 37.5%, top-5 12.5% of 5,000 images."
    assert train(context)[:2] == (
        state,
        (
            f"Errors by the centre view after epoch 2: {own}",
            "Errors by 10 views after epoch 1: top-1 75.0%, top-5 12.5% of 5,000 images.",
        ),
    )


def test_the_recipe_fits_the_dataset(jpeg_dataset: Path) -> None:
    """The sample's is for ten classes at most."""
    manifest = read_manifest(jpeg_dataset)
    many = manifest.classes * 2
    for size, classes, name in (
        (64, manifest.classes, "tiny64"),
        (128, manifest.classes, "sample"),
        (128, many[:10], "sample"),
        (128, many[:11], "tiny"),
        (256, manifest.classes, "released"),
    ):
        assert fitting(replace(manifest, image_size=size, classes=classes)) == name
    with pytest.raises(
        GratisError,
        match="no recipe is for 32-pixel images; make shards with --size 64, 128 or 256",
    ):
        fitting(replace(manifest, image_size=32))


def started(run: Path, name: str, recipe: Recipe, dataset: str) -> None:
    """A run with a checkpoint, as far as its folder and first event tell."""
    (run / "checkpoints").mkdir(parents=True)
    launch = Launch(
        runs=str(run.parent),
        run=run.name,
        shards="x",
        recipe_name=name,
        recipe=recipe,
        seed=0,
        attempt=1,
        tower_ranks=1,
        share_device=False,
    )
    config = json.loads(launch.to_json())
    fields = {
        "recipe": name,
        "config": config,
        "dataset": dataset,
        "epochs": 2,
        "steps_per_epoch": 10,
    }
    EventWriter(run / "rank-0.jsonl", attempt=1, rank=0).write("start", fields)


def test_a_named_run_is_reported_with_its_own_settings(jpeg_dataset: Path, tmp_path: Path) -> None:
    manifest = read_manifest(jpeg_dataset)
    own = replace(
        TINY,
        crop=96,
        mean="offset",
        crop_positions="printed",
        lrn=False,
        map_norm=False,
        init_from="x",
    )
    started(tmp_path / "a", "tiny", own, manifest.hash)
    options = Paper(shards=str(jpeg_dataset), runs=tmp_path, run="a", minutes=0.001)
    assert of_run(options, manifest) == "tiny"
    context = PartContext(
        options=options,
        manifest=manifest,
        recipe_name="tiny",
        recipe=last_launch(tmp_path / "a").recipe,
        run=tmp_path / "a",
        ends=0,
    )
    assert context.recipe == own
    assert whole_of(context) == replace(own, init_from=None)  # epochs are 3 in both
    with pytest.raises(GratisError, match=r"run a was trained on dataset \w{8}, .* is "):
        of_run(options, replace(manifest, source="another"))
    with pytest.raises(GratisError, match="there is no run b with a checkpoint in"):
        of_run(replace(options, run="b"), manifest)
    chosen = replace(context, options=replace(options, recipe="sample"))
    assert whole_of(chosen) == replace(SAMPLE, epochs=3)
    assert [name for name in SWITCHES if not has(name, own)] == ["lrn"]


def test_resized_crops_are_not_drawn_as_plain_ones(jpeg_dataset: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPES["torchvision"], image_size=128, crop=112)
    context = PartContext(
        options=Paper(shards=str(jpeg_dataset), runs=tmp_path),
        manifest=read_manifest(jpeg_dataset),
        recipe_name="torchvision",
        recipe=recipe,
        run=tmp_path / "a",
        ends=0,
    )
    assert (
        explain(context).state
        == "skipped: it draws plain crops, and this run trains on resized ones"
    )
    assert explain(replace(context, recipe=replace(recipe, crop_area=None))).state.startswith(
        "skipped: the minutes are"
    )


def test_two_who_write_one_file_at_once_do_not_touch_each_other_s_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic_output(path, "") as first:
        first.write_text("first")
        with atomic_output(path, "") as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_without_locks_is_not_told_as_another_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    with (
        pytest.raises(GratisError, match=r"lock cannot be locked \(No locks available\)"),
        exclusive(tmp_path, "a"),
    ):
        pass


@pytest.mark.slow
def test_the_report_holds_what_there_was_time_for(
    ablated: Path, sample_shards: Path, shards32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ablated
    run = next(path for path in runs.iterdir() if "-whole-" in path.name)
    options = Paper(
        shards=str(sample_shards), run=run.name, runs=runs, minutes=20, gpus=3, recipe="sample"
    )
    report = paper(options)
    text = report.read_text()
    assert report == run / "paper" / "report.md"
    for png in ("conv1", "top5", "neighbours", "curves", "rates", "explain"):
        assert f"![{png}]({png}.png)" in text
        assert (report.parent / f"{png}.png").exists()
        assert png == "explain" or CAPTIONS[png] in text  # type: ignore[index]
    assert text.count("    measured ") == 3  # rows of the colours' covariance
    assert "skipped: it wants 32-pixel images: gratis shards" in text
    assert (
        "Ablations\n\n*failed with exit code 2: " in text
    )  # three processes: reported, and gone on
    assert "| 1 CNN | 40.7 | 18.2 |" in text
    drawn = (report.parent / "top5.png").stat().st_mtime_ns
    with pytest.raises(
        GratisError, match=r"was trained on dataset \w{8}, .* is \w{8}: give the --shards"
    ):
        paper(replace(options, shards=str(shards32)))
    assert report.read_text() == text
    with pytest.raises(GratisError, match="--seeds x must be whole numbers"):
        replace(options, seeds="x")
    with (
        exclusive(run / "paper", "the first"),
        pytest.raises(
            GratisError, match=rf"run {run.name}: another report is being made there; wait for it"
        ),
    ):
        paper(options)
    paper(replace(options, minutes=1e-9))
    assert (report.parent / "top5.png").stat().st_mtime_ns == drawn
    assert "Ablations\n\n*skipped: the minutes are over" in report.read_text()
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs / "cache"))
    paper(replace(options, shards=f"file://{sample_shards}", minutes=1e-9))
    assert "*skipped: it reads local folders; copy the dataset" in report.read_text()
