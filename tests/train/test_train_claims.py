"""`gratis paper --hours`: what it computes from runs, and that a killed one goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import gratis, of_kind

from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.events import EventWriter
from gratis.history import attempts, outcome
from gratis.processes import OVER
from gratis.train.network.alexnet import AlexNet
from gratis.train.paper.ablate import errors_of
from gratis.train.paper.ablation_table import _cells
from gratis.train.paper.claims import CLAIMS, NUMBERED, OTHERS, compared, make_half, names_for
from gratis.train.paper.figure1_seeds import best_rates, common_target, summary
from gratis.train.paper.four_layers import TrainingCurve
from gratis.train.paper.halves import write_half
from gratis.train.paper.paper import read_sections
from gratis.train.paper.parts import Paper, PartContext, PartResult
from gratis.train.paper.specialisation import specialisation
from gratis.train.paper.switches import SWITCHES, same_as_without_conv3
from gratis.train.recipes import RECIPES


def curve(activation: str, rate: float, *errors: float) -> TrainingCurve:
    return TrainingCurve(activation=activation, rate=rate, errors=list(errors))  # type: ignore[arg-type]


def test_the_ratio_is_taken_at_each_one_s_best_rate_and_its_range_over_seeds() -> None:
    first = [
        curve("relu", 0.1, 0.8, 0.25),  # 2 epochs
        curve("relu", 0.2, 0.9, 0.8),
        curve("tanh", 0.1, 0.9, 0.9),
        curve("tanh", 0.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25),  # 6
    ]
    second = [curve("relu", 0.1, 0.75, 0.5, 0.25), curve("tanh", 0.2, 0.9, 0.8, 0.25)]  # 3, 3
    assert best_rates(first, 0.25) == (0.1, 0.2)
    lines = summary({0: first, 1: second}, 0.25)
    assert "| 0 | 2.0 (rate 0.1) | 6.0 (rate 0.2) | 3.0 |" in lines
    assert "| 1 | 3.0 (rate 0.1) | 3.0 (rate 0.2) | 1.0 |" in lines
    assert "tanh takes 2.0 times the epochs of ReLU [1.0..3.0], n = 2" in lines[-1]


def test_where_one_stays_above_the_goal_the_nearest_error_of_both_is_taken() -> None:
    curves = [curve("relu", 0.1, 0.5, 0.2), curve("tanh", 0.1, 0.9, 0.301, 0.4)]
    assert common_target({0: curves}, 0.25) == 0.31
    assert common_target({0: curves}, 0.5) == 0.5
    assert common_target({0: curves[:1]}, 0.25) is None
    assert "31% is the nearest" in summary({0: curves}, 0.25)[0]


def test_specialisation_is_held_against_random_deals() -> None:
    grey = np.ones((2, 3, 4, 4), np.float32)
    colour = np.ones((2, 3, 4, 4), np.float32)
    colour[:, 0] = -2  # of sum 0 over the channels
    split = specialisation(np.concatenate([grey, colour]))
    assert split.scores == (pytest.approx(0), pytest.approx(1))
    assert split.gap == pytest.approx(1)
    # two of the six ways to deal four kernels out
    assert split.by_chance == pytest.approx(1 / 3, abs=0.02)
    mixed = specialisation(np.concatenate([grey[:1], colour, grey[:1]]))
    assert mixed.gap == pytest.approx(0)
    assert mixed.by_chance == 1


def test_halves_are_every_second_class_with_the_images_as_they_were(
    sample_shards: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(sample_shards)

    def samples(folder: Path, pattern: str) -> dict[str, tuple[int, bytes]]:
        found = {}
        for path in sorted(folder.glob(pattern)):
            with tarfile.open(path) as tar:
                files = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
            for name in (name for name in files if not name.endswith(".cls")):
                label = files[f"{name.rsplit('.', 1)[0]}.cls"]
                found[name] = int(label), files[name]
        return found

    for half in (0, 1):
        write_half(sample_shards, manifest, half, tmp_path / str(half))
    for split, total in (("train", 1000), ("val", 200)):
        whole = samples(sample_shards, f"{split}-*.tar")
        halves = [samples(tmp_path / str(half), f"{split}-*.tar") for half in (0, 1)]
        assert [len(half) for half in halves] == [total // 2, total // 2]
        for half, own in enumerate(halves):
            for key, (label, image) in own.items():
                assert whole[key] == (2 * label + half, image)
    few = replace(manifest, classes=manifest.classes[:3])
    with pytest.raises(GratisError, match="has 3 classes; halves of them want at least 4"):
        write_half(sample_shards, few, 0, tmp_path / "none")


def test_a_network_that_is_another_one_is_not_trained_twice(sample_shards: Path) -> None:
    """Without conv3 and without conv4 are one network where both have the same channels and no
    bias of their own; where biases begin at 1 in conv4 and at 0 in conv3, they are two."""
    for recipe, twins in ((RECIPES["tiny64"], True), (RECIPES["released"], False)):
        small = replace(recipe, width=1 / 16, crop=56, image_size=64)
        one, other = (
            [*AlexNet(replace(small, without=name), 10).parameters()] for name in ("conv3", "conv4")
        )
        same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert same == twins == same_as_without_conv3(small)
        assert ("conv4" in names_for(NUMBERED, small)) == (not twins)
        assert ("the same network" in SWITCHES["conv3"].why(small)) == twins


def test_pretrained_and_new_are_compared_seed_by_seed(tmp_path: Path) -> None:
    folders = {}
    for name, top1 in (("new0", 0.5), ("new1", 0.25), ("tuned0", 0.75), ("tuned1", 0.375)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        events = EventWriter(folders[name] / "rank-0.jsonl", attempt=1, rank=0)
        scores = {"views": 10, "images": 8, "top1": top1, "top5": 0.75, "nll": 1.0, "wall_s": 1.0}
        events.write("eval", scores, epoch=1, step=1)
        events.write("end", {"outcome": "finished", "error": None})
    new, tuned = ([folders[f"{name}{seed}"] for seed in (0, 1)] for name in ("new", "tuned"))
    # differences -25 and -12.5: deviations of 6.25, their standard error too
    row = ["mean", "62.5 / 25.0", "43.8 / 25.0", "-18.8 ± 6.2", "+0.0 ± 0.0"]
    assert compared("mean", new, tuned) == row


def test_the_claims_with_a_number_come_first_and_none_is_left_out() -> None:
    assert {*NUMBERED, *OTHERS} == {*SWITCHES}
    assert {"lrn", "overlap", "towers", "color_noise", "conv3", "conv4", "conv5"} <= {*NUMBERED}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hours": 0.0}, "--hours 0 must be above 0"),
        ({"hours": 1.0, "run": "a"}, "leave --run out"),
        ({"docs": Path("a.md")}, "--docs a.md is for --hours"),
        ({"hours": 1.0, "seeds": "x"}, "--seeds x must be whole numbers"),
    ],
)
def test_wrong_hours_stop_with_an_error(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(GratisError, match=message):
        Paper(shards="s", **wrong)  # type: ignore[arg-type]
    assert Paper(shards="s", hours=1.0).chosen_seeds == "0,1,2"


def wait_for(path: Path, pattern: str, seconds: float = 120) -> Path:
    ends = time.monotonic() + seconds
    while not (found := sorted(path.glob(pattern))):
        assert time.monotonic() < ends, pattern
        time.sleep(0.05)
    return found[0]


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(sample_source: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of the first run, the same command again: the run is the one that it
    would have been, and the page says what is missing."""
    shards, runs, docs = tmp_path / "shards64", tmp_path / "runs", tmp_path / "paper.md"
    done = gratis("shards", "--src", str(sample_source), "--out", str(shards), "--size", "64")
    assert done.returncode == 0, done.stderr
    more = ["--shards", str(shards), "--seeds", "0", "--gpus", "1"]
    claims = ["paper", *more, "--ablate-epochs", "9", "--hours", "0.02", "--runs", str(runs)]
    claims += ["--docs", str(docs)]
    first = subprocess.Popen([sys.executable, "-m", "gratis", *claims])
    saved = wait_for(runs, "ablate-*-whole-s0/rank-0.jsonl")
    while not of_kind(saved.parent, "receipt"):  # of its first epoch
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    again = gratis(*claims)
    assert again.returncode == 0, again.stderr
    run = saved.parent
    assert outcome(run) == "finished"
    assert attempts(run) == 2
    resumed = [one["step"] for one in of_kind(run, "step") if one["attempt"] == 2]
    assert min(resumed) > 8  # the first epoch's steps are not done again
    whole = "--fields= --recipe tiny64 --epochs 9".split()
    control = gratis("ablate", *more, *whole, "--runs", str(tmp_path / "control"))
    assert control.returncode == 0, control.stderr
    assert errors_of(run) == errors_of(tmp_path / "control" / run.name)
    costs = [json.loads(line) for line in (run / "costs.jsonl").read_text().splitlines()]
    # the killed command's ablation ended with it, after the run was saved and its cost written
    assert len(costs) == 2
    assert all(one["cpu_s"] > 1 for one in costs)
    page = docs.read_text()
    report = next(runs.glob("claims-*/paper/report.md"))
    assert page == report.read_text()
    assert "the same command goes on" in page
    assert "| the whole network | 1 |" in page
    assert str(tmp_path) not in page
    # a call that was stopped in its second part leaves what was known of those after it
    known = page[page.index("## Colour by tower") : page.index("## Pretraining")]
    assert "| 0 |" in known
    last = subprocess.Popen([sys.executable, "-m", "gratis", *claims[:-1], str(tmp_path / "b.md")])
    wait_for(tmp_path, "b.md", 300)
    last.kill()
    last.wait()
    assert known in (tmp_path / "b.md").read_text()
    assert (tmp_path / "b.md").read_text().count("\n## ") == page.count("\n## ") == len(CLAIMS)


def test_half_of_a_dataset_is_not_copied_when_the_time_is_over(
    jpeg_dataset: Path, tmp_path: Path
) -> None:
    context = PartContext(
        options=Paper(shards=str(jpeg_dataset), hours=1.0),
        manifest=read_manifest(jpeg_dataset),
        recipe_name="tiny",
        recipe=RECIPES["tiny"],
        run=tmp_path / "run",
        ends=time.monotonic() - 1,
    )
    shards = tmp_path / "half0" / "shards"
    assert make_half(context, 0, shards) == f"skipped: {OVER}"
    assert not shards.parent.exists()
    (shards.parent / "tars").mkdir(parents=True)
    shards.mkdir()
    (shards / "manifest.json").touch()
    assert make_half(context, 0, shards) is None
    assert [path.name for path in shards.parent.iterdir()] == ["shards"]


def test_a_row_s_n_is_of_its_differences() -> None:
    """The whole network has diverged with one of three seeds."""
    row = {
        "words": "no dropout",
        "seeds": [0, 1, 2],
        "top1": [50.0, 51.0, 52.0],
        "top5": [20.0, 21.0, 22.0],
        "top1_delta": [1.0, 2.0],
        "top5_delta": [1.0, 2.0],
        "paper": (None, None),
        "paper_on": "",
    }
    assert _cells(row)[1] == "2"


def test_sections_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "sections.json"
    assert read_sections(path) == {}
    sections = {"One": PartResult("done", ("a", "b")), "Two": PartResult("skipped: why")}
    path.write_text(json.dumps(sections))
    assert read_sections(path) == sections
    for broken in ('{"One": 3}', '["a"]', '{"One": ["done"'):
        path.write_text(broken)
        assert read_sections(path) == {}
