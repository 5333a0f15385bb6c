"""`gratis paper --hours`: what it computes from runs, and that a killed one goes on."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
import torch
from handmade import as_validation, picture, write_dataset
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from small import gratis, of_kind

from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.events import EventWriter
from gratis.history import attempts, outcome, records
from gratis.processes import OVER
from gratis.train.network.alexnet import AlexNet
from gratis.train.options import parse
from gratis.train.options import read as read_options
from gratis.train.paper import page_records
from gratis.train.paper.ablate import Ablate
from gratis.train.paper.ablation_table import WHOLE, Errors, _cells
from gratis.train.paper.claims import (
    CLAIMS,
    NUMBERED,
    OTHERS,
    ablation,
    colour,
    compared,
    compared_by_seed,
    ensemble_seeds,
    ensembles,
    figure1,
    make_half,
    names_for,
    numbered,
    others,
    pretraining,
    single_and_mean,
)
from gratis.train.paper.costs import cost_of
from gratis.train.paper.figure1_seeds import best_rates, common_target, read, summary
from gratis.train.paper.four_layers import TrainingCurve
from gratis.train.paper.halves import write_half
from gratis.train.paper.longest import longest
from gratis.train.paper.paper import copy_pictures, fuller, paper
from gratis.train.paper.parts import Paper, PartContext, PartResult, whole_of
from gratis.train.paper.specialisation import Specialisation, specialisation
from gratis.train.paper.specialisation import summary as specialised
from gratis.train.paper.switches import SWITCHES, same_as_without_conv3
from gratis.train.paper.trainings import digest, errors_of, last_epoch, run_of, stem_of
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
    assert lines[2] == "| seed | ReLU | tanh | ratio |"
    assert lines[0].startswith(
        "Epochs to 25% training error, each at its best rate of 0.1, 0.2; seeds after the first"
    )
    assert summary({0: first, 1: []}, 0.25)[4:6] == [lines[4], ""]  # of a seed without any


def test_curves_are_read_of_what_was_trained_to_its_end(tmp_path: Path) -> None:
    courses = [asdict(curve("relu", 0.1, 0.5, 0.25)), asdict(curve("tanh", 0.2, 0.75))]
    (tmp_path / "figure1.json").write_text(json.dumps({"courses": courses}))
    assert read(tmp_path) == [curve("relu", 0.1, 0.5, 0.25), curve("tanh", 0.2, 0.75)]
    assert read(tmp_path / "none") == []
    for broken in ("{", "[]", '{"courses": [{"rate": 1}]}'):
        (tmp_path / "figure1.json").write_text(broken)
        assert read(tmp_path) == []


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


def test_what_is_seen_of_colour_is_counted_at_one_deal_in_twenty() -> None:
    def of(first: float, second: float, by_chance: float) -> Specialisation:
        return Specialisation((first, second), by_chance)

    seeds = {
        3: (of(0.5, 0.625, 0.25), of(0.125, 0.75, 0.0004)),
        4: (of(0.5, 0.25, 0.5), of(0.5, 0.375, 0.05)),
        5: (of(0.5, 0.5, 1.0), of(0.5, 0.25, 0.049)),
    }
    lines = specialised(seeds)
    assert lines[1:8] == [
        "",
        "| seed | gap at first | colour share, tower 0 / 1 | gap | random deals as far |",
        "|---|---|---|---|---|",
        "| 3 | 0.12 | 0.12 / 0.75 | 0.62 | 0.000 |",
        "| 4 | 0.25 | 0.50 / 0.38 | 0.12 | 0.050 |",
        "| 5 | 0.00 | 0.50 / 0.25 | 0.25 | 0.049 |",
        "",
    ]
    assert lines[-1] == "Seen, at 1 deal in 20 or fewer, in 2 of 3 seeds."


def test_a_deal_with_a_gap_as_large_counts() -> None:
    """Of six ways to deal these out all have a gap of 0 or of 0.5: two of them, and with 0, 0, 0, 1
    all the same one."""
    grey, colour = np.ones((3, 4, 4), np.float32), np.ones((3, 4, 4), np.float32)
    colour[0] = -2
    odd = specialisation(np.stack([grey, grey, grey, colour]))
    assert odd.gap == pytest.approx(0.5)
    assert odd.by_chance == 1


def test_single_networks_and_their_mean_are_told_apart() -> None:
    scores = [{"top1": top1, "top5": 0.75, "nll": 1.0} for top1 in (0.5, 0.25, 0.375)]
    scores += [{"top1": 0.625, "top5": 0.875, "nll": 1.0}, {"top1": 0.7, "top5": 0.9, "nll": 1.0}]
    assert single_and_mean(3, scores) == [
        ("3 single ones, mean", "62.5", "25.0"),
        ("mean of 3", "37.5", "12.5"),
    ]


def of_colour(context: PartContext, seed: int, weight: NDArray[np.float32] | None) -> Path:
    """The finished run of a whole network, and its first weights, if they are here."""
    stem = stem_of("tiny64", context.manifest, whole_of(context))
    run = recorded_run(context.options.runs, run_of(stem, WHOLE, seed), top1=0.5)
    if weight is not None:
        saved = run / "checkpoints" / "step-00000001"
        saved.mkdir(parents=True)
        (saved / "state.json").touch()
        save_file({"conv1.weight": weight}, saved / "network.safetensors")
    return run


def test_colour_is_of_the_whole_networks_that_are_here(jpeg_dataset: Path, tmp_path: Path) -> None:
    """Seed 1's run is elsewhere, but for its records; of seed 2 there is none. Each is held against
    its own beginning."""
    context = of_dataset(jpeg_dataset, tmp_path)
    assert colour(context).state == "skipped: no whole network is trained yet"
    count = round(96 * RECIPES["tiny64"].width)
    towers = np.ones((count, 3, 11, 11), np.float32)
    towers[count // 2 :, 0] = -2  # of sum 0 over the channels
    of_colour(context, 0, towers)
    of_colour(context, 1, None)
    part = colour(context)
    assert part.state == "in part: 4 of 5 networks are not here"
    begun = AlexNet(RECIPES["tiny64"], 7, seed=0).get_parameter("conv1.weight").detach().numpy()
    gap = specialisation(begun).gap
    assert 0 < gap < 0.1
    (row,) = [line for line in part.lines[0].splitlines() if line.startswith("| 0 |")]
    assert row == f"| 0 | {gap:.2f} | 0.00 / 1.00 | 1.00 | 0.000 |"
    owt = replace(context, recipe_name="owt", recipe=replace(RECIPES["owt"], epochs=2))
    assert colour(owt).state == "skipped: this network has one tower"


class Commands:
    """Stands for the processes that parts start: `answer` is called with each one's words and its
    log, at once, and returns its exit code."""

    def __init__(self) -> None:
        self.given: list[list[str]] = []
        self.answer: Callable[[list[str], IO[str]], int] = lambda *_: 0

    def start(self, command: list[str], *, stdout: IO[str], **_: object) -> SimpleNamespace:
        words = command[4:]  # python -m gratis.processes PID
        self.given.append(words)
        code = self.answer(words, stdout)
        stdout.flush()
        return SimpleNamespace(wait=lambda _: code)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(subprocess, "Popen", commands.start)
    return commands


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def asked(words: list[str]) -> Ablate:
    return read_options(Ablate, words[1:], "released", "", fields="whole")


def train_at_once(words: list[str], top1: Callable[[Ablate, int], float]) -> None:
    """What `gratis ablate` leaves of the whole network."""
    options = asked(words)
    stem = stem_of(options.recipe, read_manifest(Path(str(options.shards))), options.whole)
    for seed in map(int, options.seeds.split(",")):
        if not (options.runs / run_of(stem, WHOLE, seed)).exists():
            recorded_run(options.runs, run_of(stem, WHOLE, seed), top1=top1(options, seed))


def test_an_ablation_s_page_is_a_part(
    jpeg_dataset: Path, tmp_path: Path, commands: Commands
) -> None:
    context = replace(of_dataset(jpeg_dataset, tmp_path), ends=time.monotonic() + 100)
    names = {"numbered": [one for one in NUMBERED if one != "conv4"], "others": OTHERS}
    said = ""

    def answer(words: list[str], log: IO[str]) -> int:
        own = asked(words)
        assert own.out is not None
        own.out.mkdir(parents=True)
        (own.out / "ablation.md").write_text(own.fields)
        log.write(said)
        return 0

    commands.answer = answer
    for part, name in ((numbered, "numbered"), (others, "others")):
        assert part(context)[:2] == ("done", (",".join(names[name]),))
        assert asked(commands.given[-1]).out == context.folder / name
        said = "a: skipped, it would end after --minutes 1\n"
        shutil.rmtree(context.folder / name)
        assert part(context)[:2] == (f"in part: {OVER}", (",".join(names[name]),))
        said = ""
    commands.answer = lambda *_: 75
    assert others(context).state.startswith("failed with exit code 75")
    shutil.rmtree(context.folder / "others")
    assert others(replace(context, ends=0.0))[:2] == (f"skipped: {OVER}", ())


def test_figure_1_takes_the_first_seed_s_best_rates_for_the_others(
    jpeg_dataset: Path, tmp_path: Path, commands: Commands
) -> None:
    shards = ["--shards", "small"]
    context = of_dataset(jpeg_dataset, tmp_path, shards32="small", seeds="4,2,9")
    context = replace(context, ends=time.monotonic() + 3600)
    short = ""

    def answer(words: list[str], log: IO[str]) -> int:
        out = Path(option(words, "--out"))
        out.mkdir(parents=True)
        found = [curve("relu", 0.008, 0.75, 0.25), curve("tanh", 0.032, 0.75, 0.5, 0.5, 0.25)]
        courses = [asdict(one) for one in found]
        (out / "figure1.json").write_text(json.dumps({"courses": courses}))
        log.write(short if out.name.endswith("s9") else "")
        return 0

    commands.answer = answer
    state, lines, _ = figure1(context)
    assert state == "done"
    rates = [["0.004", "0.032", "0.008", "0.016", "0.064", "0.002"], *[["0.008", "0.032"]] * 2]
    for words, seed, own in zip(commands.given, "429", rates, strict=True):
        assert words[:3] == ["figure1", *shards]
        assert option(words, "--seed") == seed
        assert (option(words, "--images"), option(words, "--target")) == ("10000", "0.25")
        assert words[words.index("--rates") + 1 : words.index("--target")] == own
        # a third of the hour
        assert float(option(words, "--minutes")) == pytest.approx(20, abs=0.5)
    assert lines[0].startswith("Four layers on the first 10,000 training images at 32 px; CIFAR-10")
    assert "tanh takes 2.0 times the epochs of ReLU [2.0..2.0], n = 3" in lines[1]
    folders = [context.folder / f"figure1-s{seed}" for seed in (4, 2, 9)]
    assert all((folder / "costs.jsonl").is_file() for folder in folders)
    short = "relu at rate 0.1: stopped after epoch 3, time is over\n"
    for folder in folders:
        shutil.rmtree(folder)
    assert figure1(context)[0] == f"in part: {OVER}"
    commands.given.clear()
    commands.answer = lambda *_: 1
    again = figure1(context)
    assert again.state.startswith("failed with exit code 1")
    assert len(commands.given) == 1  # the others would fail too
    assert again.lines[1] == lines[1]  # of the earlier call


def test_ensembles_are_of_networks_that_are_trained(
    jpeg_dataset: Path, tmp_path: Path, commands: Commands
) -> None:
    """Single ones err on 50, 51, ... %; the means of three and of five on 40 and 30 %."""
    context = replace(of_dataset(jpeg_dataset, tmp_path), ends=time.monotonic() + 100)
    trained = 5

    def answer(words: list[str], _: IO[str]) -> int:
        if words[0] == "ablate":
            whole = asked(words)
            assert (whole.seeds, whole.switches) == ("0,1,2,3,4", [])
            seeds = ",".join(map(str, range(trained)))
            changed = [seeds if word == whole.seeds else word for word in words]
            train_at_once(changed, lambda _, seed: 0.5 - seed / 100)
            return 0
        names = words[1 : words.index("--runs")]
        assert [name[-3:] for name in names] == [f"-s{seed}" for seed in range(len(names))]
        errors = [50.0 + seed for seed in range(len(names))] + [50 - 10 * (len(names) - 1) / 2, 9]
        scores = [{"top1": 1 - one / 100, "top5": 1 - one / 200, "nll": 1} for one in errors]
        out = Path(option(words, "--out"))
        out.write_text(json.dumps([{"scores": one} for one in scores]))
        return 0

    commands.answer = answer
    state, lines, _ = ensembles(context)
    assert state == "done"
    assert [words[0] for words in commands.given] == ["ablate", "ensemble", "ensemble"]
    assert lines[0].splitlines()[2:8] == [
        "|  | top-1 | top-5 |",
        "|---|---|---|",
        "| 3 single ones, mean | 51.0 | 25.5 |",
        "| mean of 3 | 40.0 | 20.0 |",
        "| 5 single ones, mean | 52.0 | 26.0 |",
        "| mean of 5 | 30.0 | 15.0 |",
    ]
    shutil.rmtree(tmp_path / "claims")
    for run in tmp_path.glob("ablate-*-s4"):
        shutil.rmtree(run)
    trained = 4
    assert "mean of 5" not in "".join(ensembles(context).lines)
    commands.answer = lambda words, _: 1 if words[0] == "ensemble" else 0
    failed = ensembles(context)
    assert (failed.state.split(":")[0], failed.lines) == ("failed with exit code 1", ())


def test_pretraining_trains_on_one_half_and_is_held_against_the_other(
    tmp_path: Path, commands: Commands
) -> None:
    """Errors of 50 % from new weights and of 40 % pretrained, of seed 1 one more of each."""
    pictures = [picture(number) for number in range(14)]
    shards = as_validation(write_dataset(tmp_path / "whole", pictures))
    context = of_dataset(shards, tmp_path / "runs", seeds="0,1", ablate_epochs=2)
    context = replace(context, ends=time.monotonic() + 100)
    halves = [context.folder / f"half{half}" / "shards" for half in (0, 1)]
    trained = list[tuple[int, str, str | None, float]]()

    def top1(options: Ablate, seed: int) -> float:
        own, whole = Path(str(options.shards)), options.whole
        began = whole.init_from and Path(whole.init_from).name[-3:]
        trained.append((seed, own.parent.name, began, whole.conv_rate))
        return (0.6 if whole.init_from else 0.5) - seed / 100

    late_run = "nowhere"

    def answer(words: list[str], log: IO[str]) -> int:
        if late_run in " ".join(words):
            log.write("a: skipped, it would end after --minutes 1\n")
        if words[0] == "shards":
            source, out = (Path(option(words, name)) for name in ("--src", "--out"))
            assert option(words, "--size") == "64"
            found = set()
            for path in source.glob("train-*.tar"):
                with tarfile.open(path) as tar:
                    found |= {int(tar.extractfile(one).read()) for one in tar if "cls" in one.name}  # type: ignore[union-attr]
            half = halves.index(out)
            assert found == {*range(4 - half)}  # of seven classes
            as_validation(write_dataset(out, pictures[: 4 + half]))
        else:
            train_at_once(words, top1)
        return 0

    commands.answer = answer
    state, lines, _ = pretraining(context)
    assert state == "done"
    assert trained == [
        (0, "half1", None, 1.0),
        (1, "half1", None, 1.0),
        (0, "half0", None, 1.0),
        (1, "half0", None, 1.0),
        (0, "half0", "-s0", 0.1),
        (1, "half0", "-s1", 0.1),
    ]
    assert not (halves[0].parent / "tars").exists()
    text = lines[0].splitlines()
    assert "over ten views of 4 images of every second class, after 2 epochs either way" in text[0]
    assert text[2:7] == [
        "|  | from new weights | pretrained | difference, top-1 | top-5 |",
        "|---|---|---|---|---|",
        "| seed 0 | 50.0 / 10.0 | 40.0 / 10.0 | -10.0 | +0.0 |",
        "| seed 1 | 51.0 / 10.0 | 41.0 / 10.0 | -10.0 | +0.0 |",
        "| mean | 50.5 / 10.0 | 40.5 / 10.0 | -10.0 ± 0.0 | +0.0 ± 0.0 |",
    ]
    # six runs of 3 s, and 4 of CPU
    assert text[8].startswith("The runs took 0.01 hours, 0.01 of CPU time")
    late_run = "tuned-s1"  # of six states the last
    assert pretraining(context)[:2] == (f"in part: {OVER}", lines)
    late = replace(context, ends=0.0)
    assert pretraining(late)[:2] == (f"skipped: {OVER}", lines)
    far = replace(context, options=replace(context.options, shards="file:///x"))
    assert pretraining(far).state.startswith("skipped: it reads local folders")
    assert make_half(late, 0, tmp_path / "none" / "shards") == f"skipped: {OVER}"
    commands.answer = lambda *_: 2
    failed = make_half(context, 1, tmp_path / "none" / "shards")
    assert (failed or "").startswith("failed with exit code 2")
    assert (tmp_path / "none" / "tars").is_dir()  # from which the same command goes on


def test_the_network_of_full_width_is_reported_by_its_own_records(
    jpeg_dataset: Path, tmp_path: Path, commands: Commands
) -> None:
    """Each of two ranks has 500 images in 10 s, of which one is waited; its loader works for 4."""
    context = of_dataset(jpeg_dataset, tmp_path, longest_epochs=3)
    context = replace(context, ends=time.monotonic() + 1000)
    outcome = "preempted"

    def answer(words: list[str], _: IO[str]) -> int:
        if words[0] == "shards":
            assert option(words, "--size") == "128"
            write_dataset(Path(option(words, "--out")), [picture(n, 128) for n in range(2)])
        elif words[0] == "train":
            own = parse(words[1:])
            assert own.fields == replace(RECIPES["released"], image_size=128, crop=112, epochs=3)
            assert (own.gpus, own.port, own.runs) == (2, 0, tmp_path)
            assert own.run is not None
            (tmp_path / own.run / "checkpoints").mkdir(parents=True, exist_ok=True)
            for rank in (0, 1):
                write_rank(tmp_path / own.run, rank, outcome)
        elif words[0] == "figures":
            assert option(words, "--search") == "2000"
            out = Path(option(words, "--out"))
            out.mkdir()
            for name in words[words.index("--only") + 1 : words.index("--search")]:
                (out / f"{name}.png").touch()
        else:
            assert words[0] == "export"
            Path(words[-1]).touch()
        return 75 if words[0] == "train" and outcome == "preempted" else 0

    commands.answer = answer
    state, lines, _ = longest(context)
    assert state == "stopped at step 20 of 30; failed with exit code 75: " + state.split(": ")[1]
    evaluated = "Errors by 10 views after epoch 3: top-1 37.5%, top-5 25.0% of 8 images."
    assert [line[: len(evaluated)] for line in lines] == [evaluated]
    outcome = "finished"
    state, lines, _ = longest(context)
    assert state == "done"
    text = lines[0]
    assert text.startswith(f"{evaluated} The run took 0.00 hours, ")
    assert (
        "100 training images/s, waiting for data 10.0% of the time; the loader could deliver 2.5 "
        "times as many. "
    ) in text
    names = ["conv1", "top5", "neighbours", "curves"]
    assert [line.split("\n")[0] for line in lines[1:]] == [
        f"![{n}](figures/{n}.png)" for n in names
    ]
    (run,) = tmp_path.glob("longest-released-*")
    assert f"`RUNS/{run.name}/alexnet." in text
    told = [words[0] for words in commands.given]
    assert told == ["shards", "train", "train", "figures", "export"]
    assert longest(context) == ("done", lines, "")
    assert len(commands.given) == 5  # nothing is done again
    commands.answer = lambda *_: 1
    shutil.rmtree(context.folder / "shards128")
    assert longest(context).state.startswith("failed with exit code 1")


def write_rank(run: Path, rank: int, outcome: str) -> None:
    """An attempt of two intervals, of which the first is its start-up."""
    attempt = 2 if outcome == "finished" else 1
    events = EventWriter(run / f"rank-{rank}.jsonl", attempt=attempt, rank=rank)
    events.write("start", {"world": 2, "epochs": 3, "steps_per_epoch": 10})
    loader = {"images": 500.0, "decode_s": 4.0}
    for step, wait_s in ((10, 5.0), (20, 1.0)):
        fields = {"steps": 10, "images": 500, "wall_s": 10.0, "wait_s": wait_s, "loader": loader}
        events.write("step", fields, epoch=1, step=step)
    if rank == 0:
        scores = {"views": 10, "images": 8, "top1": 0.625, "top5": 0.75, "nll": 1.0}
        events.write("eval", scores, epoch=3, step=20)
    events.write("end", {"outcome": outcome, "error": None})
    events.close()


def test_the_page_keeps_what_an_earlier_call_has_shown(
    jpeg_dataset: Path,
    tmp_path: Path,
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """First there is an ablation's page; then, elsewhere and with the records beside the page
    alone, everything fails, and it is shown as it was."""
    shards = as_validation(shutil.copytree(jpeg_dataset, tmp_path / "shards"))
    named = SimpleNamespace(stdout="1234567\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: named)  # git's answer
    monkeypatch.setattr(os, "getloadavg", lambda: (1.25, 0.0, 0.0))
    docs = tmp_path / "page.md"
    options = Paper(
        shards=str(shards), hours=2.5, runs=tmp_path / "runs", docs=docs, seeds="0, 3", jobs=2
    )

    def answer(words: list[str], log: IO[str]) -> int:
        if words[0] != "ablate" or "numbered" not in option(words, "--out"):
            log.write("error: no way\n")
            return 1
        out = Path(option(words, "--out"))
        out.mkdir(parents=True)
        (out / "ablation.md").write_text("the table\n")
        return 0

    commands.answer = answer
    report = paper(options)
    hash8, day = read_manifest(shards).hash[:8], time.strftime("%Y-%m-%d")
    assert report == tmp_path / "runs" / f"claims-tiny64-{hash8}" / "paper" / "report.md"
    page = docs.read_text()
    assert report.read_text() == page
    lines = page.splitlines()
    assert lines[0] == f"# The paper of 2012 on dataset {hash8}"
    assert lines[2].startswith(
        "Made by `gratis paper --shards SHARDS --hours 2.5 --docs page.md --jobs 2` on "
        f"{day} at commit 1234567, {os.cpu_count()} cores, load average at its end 1.2; not edited"
    )
    assert lines[4].startswith(
        "Measured on 101 train, 101 val images of 7 classes at 64 px, to which smaller originals"
    )
    titles = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert titles == [*CLAIMS]
    first = lines.index(f"## {titles[0]}")
    made = f", {day} at commit 1234567"
    assert lines[first : first + 5] == ["## " + titles[0], "", f"*done*{made}", "", "the table"]
    failed = f"*failed with exit code 1: no way*{made}"
    assert lines.count(failed) == len(titles) - 2  # nor the colour by tower
    assert f"*skipped: no whole network is trained yet*{made}" in lines
    assert "1 of 7: numbered, 150 minutes left" in capsys.readouterr().out
    settings = f"tiny64-{hash8}-{digest(RECIPES['tiny64'])}-s0-3"
    assert json.loads((tmp_path / "page.json").read_text())["settings"] == settings
    named.stdout = ""  # of an installed package
    commands.given.clear()
    paper(replace(options, runs=tmp_path / "elsewhere"))
    again = docs.read_text().splitlines()
    assert again[first : first + 5] == lines[first : first + 5]
    assert failed.replace("1234567", "unknown") in again
    # what is done is not asked for again
    assert not any("numbered" in " ".join(words) for words in commands.given)
    with pytest.raises(GratisError, match=r"is of .*-s0-3, this is .*-s0; name another --docs"):
        paper(replace(options, seeds="0"))


def of_dataset(shards: Path, runs: Path, **options: Any) -> PartContext:
    return PartContext(
        options=Paper(shards=str(shards), hours=1.0, runs=runs, **options),
        manifest=read_manifest(shards),
        recipe_name="tiny64",
        recipe=RECIPES["tiny64"],
        run=runs / "claims",
        ends=time.monotonic() - 1,
    )


def test_an_ablation_of_the_page_is_of_its_options(jpeg_dataset: Path, tmp_path: Path) -> None:
    """What switches nothing off in this network is left out."""
    context = of_dataset(jpeg_dataset, tmp_path, jobs=2, gpus=1, ablate_epochs=3)
    lrn_off = replace(context, recipe=replace(context.recipe, lrn=False, map_norm=False))
    one = ablation(lrn_off, ["lrn", "overlap", "tanh"], tmp_path / "out", "4,5")
    assert one == Ablate(
        shards=str(jpeg_dataset),
        fields="overlap,tanh",
        seeds="4,5",
        runs=tmp_path,
        out=tmp_path / "out",
        gpus=1,
        jobs=2,
        recipe="tiny64",
        whole=replace(lrn_off.recipe, epochs=3),
    )
    other = ablation(context, [], tmp_path, "0", shards="half", whole=RECIPES["tiny"])
    assert (other.shards, other.whole, other.switches) == ("half", RECIPES["tiny"], [])


@pytest.mark.parametrize(
    ("chosen", "seeds"),
    [("0,1,2", [0, 1, 2, 3, 4]), ("7", [7, 0, 1, 2, 3]), ("9,8,7,6,5,4", [9, 8, 7, 6, 5])],
)
def test_ensembles_are_of_the_chosen_seeds_and_further_ones(
    chosen: str, seeds: list[int], jpeg_dataset: Path, tmp_path: Path
) -> None:
    assert ensemble_seeds(of_dataset(jpeg_dataset, tmp_path, seeds=chosen)) == seeds


def test_halves_are_every_second_class_with_the_images_as_they_were(tmp_path: Path) -> None:
    """Of seven classes 0, 2, 4 and 6 become 0 to 3, and 1, 3 and 5 become 0 to 2. A shard of one
    image is in one of the halves."""
    pictures = [picture(number) for number in range(15)]
    shards = as_validation(write_dataset(tmp_path / "whole", pictures, per_shard=2))
    manifest = read_manifest(shards)

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
        write_half(shards, manifest, half, tmp_path / "halves" / str(half))
    whole = samples(shards, "*.tar")
    for split in ("train", "val"):
        halves = [samples(tmp_path / "halves" / str(half), f"{split}-*.tar") for half in (0, 1)]
        labels = [[label for label, _ in half.values()] for half in halves]
        assert labels == [[0, 1, 2, 3, 0, 1, 2, 3, 0], [0, 1, 2, 0, 1, 2]]
        for half, own in enumerate(halves):
            for key, (label, image) in own.items():
                assert whole[key] == (2 * label + half, image)
    names = sorted(path.name for path in (tmp_path / "halves" / "1").iterdir())
    shards_with_odd = (0, 1, 2, 4, 5, 6)  # number 3 has labels 6 and 0, the last 0 alone
    expected = [f"{one}-train-{n:05d}.tar" for one in ("train", "val") for n in shards_with_odd]
    assert names == expected
    write_half(shards, manifest, 1, tmp_path / "halves" / "1")  # after a copy that was killed
    assert sorted(path.name for path in (tmp_path / "halves" / "1").iterdir()) == names
    write_half(shards, replace(manifest, classes=manifest.classes[:4]), 0, tmp_path / "four")
    few = replace(manifest, classes=manifest.classes[:3])
    with pytest.raises(GratisError, match="has 3 classes; halves of them want at least 4"):
        write_half(shards, few, 0, tmp_path / "none")


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
    seeds = dict(enumerate(tuned)) | {2: tmp_path / "elsewhere"}
    assert compared_by_seed(dict(enumerate(new)), dict(reversed(seeds.items()))) == [
        ["seed 1", "75.0 / 25.0", "62.5 / 25.0", "-12.5", "+0.0"],
        ["seed 0", "50.0 / 25.0", "25.0 / 25.0", "-25.0", "+0.0"],
        row,
    ]
    assert compared_by_seed({0: new[0]}, {1: tuned[1]}) == []


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


def small_claims(tmp_path: Path, **options: Any) -> PartContext:
    """Of 260 drawn pictures in ten classes, and 50 to evaluate; one epoch a run."""
    drawn, shards, runs = str(tmp_path / "drawn"), tmp_path / "shards64", tmp_path / "runs"
    few = "--train-per-class 26 --val-per-class 5".split()
    for command in (
        ["sample", "--out", drawn, *few],
        ["shards", "--src", drawn, "--out", str(shards), "--size", "64"],
    ):
        done = gratis(*command)
        assert done.returncode == 0, done.stderr
    common: dict[str, Any] = {"shards": str(shards), "hours": 1.0, "runs": runs, "seeds": "0"}
    return PartContext(
        options=Paper(**common, **options),
        manifest=read_manifest(shards),
        recipe_name="tiny64",
        recipe=RECIPES["tiny64"],
        run=runs / "claims",
        ends=time.monotonic() + 900,
    )


@pytest.mark.slow
def test_ensembles_and_pretraining_are_of_the_runs_that_they_name(tmp_path: Path) -> None:
    """The ensemble's errors are those of its members' mean probabilities; the other half's
    convolutions are what a pretrained network begins with."""
    context = small_claims(tmp_path, ablate_epochs=1, jobs=2)
    runs = context.options.runs
    part = ensembles(context)
    assert part.state == "done", part
    members = [load_file(runs / one / "probabilities.safetensors") for one in whole_runs(runs)]
    assert len(members) == 5
    lines = "\n".join(part.lines)
    for count in (3, 5):
        mean = np.mean([one["probabilities"].astype(np.float64) for one in members[:count]], 0)
        error = 100 * np.mean(mean.argmax(1) != members[0]["labels"])
        assert f"| mean of {count} | {error:.1f} |" in lines
        single = [one["probabilities"].argmax(1) != one["labels"] for one in members[:count]]
        assert f"| {count} single ones, mean | {100 * np.mean(single):.1f} |" in lines
    assert colour(context).state == "done"
    part = pretraining(context)
    assert part.state == "done", part
    assert "of 25 images of every second class, after 1 epochs" in part.lines[0]
    (tuned,) = [one for one in runs.glob("ablate-*") if recipe_of(one)["init_from"]]
    assert recipe_of(tuned)["conv_rate"] == 0.1
    source = Path(recipe_of(tuned)["init_from"])
    datasets = [records(one)[0]["dataset"] for one in (tuned, source)]
    halves = [read_manifest(context.folder / f"half{half}" / "shards") for half in (0, 1)]
    assert datasets == [half.hash for half in halves]
    (scratch,) = [
        one
        for one in runs.glob("ablate-*")
        if records(one)[0]["dataset"] == datasets[0] and one != tuned
    ]
    errors = [errors_of(one) for one in (scratch, tuned)]
    cells = " | ".join(f"{one[0]:.1f} / {one[1]:.1f}" for one in errors if one)
    assert f"| seed 0 | {cells} |" in part.lines[0]


def whole_runs(runs: Path) -> list[str]:
    return sorted(folder.name for folder in runs.glob("ablate-*-whole-s*"))


def recipe_of(run: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = records(run)[0]["config"]["recipe"]
    return recipe


@pytest.mark.slow
def test_the_network_of_full_width_is_trained_reported_and_exported(tmp_path: Path) -> None:
    """One epoch of 260 drawn pictures."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs make install ARGS=--extra")
    context = small_claims(tmp_path, docs=tmp_path / "page.md", longest_epochs=1)
    runs = context.options.runs
    part = longest(context)
    assert part.state == "done", part
    (run,) = runs.glob("longest-released-*")
    start = records(run)[0]
    recipe = start["config"]["recipe"]
    assert (start["world"], recipe["image_size"], recipe["width"]) == (2, 128, 1.0)
    scores = [one for one in records(run) if one["kind"] == "eval" and one["views"] == 10][-1]
    assert f"top-1 {100 - 100 * scores['top1']:.1f}%" in part.lines[0]
    assert "training images/s" in part.lines[0]
    session = onnxruntime.InferenceSession(run / "alexnet.onnx")
    assert session.get_inputs()[0].shape[1:] == [3, 112, 112]
    assert f"`RUNS/{run.name}/alexnet.onnx`" in part.lines[0]
    copy_pictures(context)
    pictures = sorted((tmp_path / "page").glob("*.png"))
    assert [png.stem for png in pictures] == ["conv1", "curves", "neighbours", "top5"]
    assert all(f"](page/{png.name})" in "".join(part.lines) for png in pictures)
    assert sum(png.stat().st_size for png in pictures) < 1 << 20
    events = [(path, path.stat().st_size) for path in runs.glob("longest-*/rank-*.jsonl")]
    assert longest(context) == part  # nothing is done again
    assert [(path, path.stat().st_size) for path, _ in events] == events


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
        "losses": [(1.5, 2.0), (2.5, 4.0)],
        "top1_delta": [1.0, 2.0],
        "top5_delta": [1.0, 2.0],
        "paper": (None, None),
        "paper_on": "",
    }
    assert _cells(row)[1] == "2"
    assert _cells(row)[4] == "2.00 / 3.00"
    assert _cells(row | {"losses": []})[4] == ""


def test_another_machine_goes_on_from_the_records_beside_the_page(tmp_path: Path) -> None:
    """Errors and costs of runs that are over come back; one that was under way does not."""
    runs, there, path = tmp_path / "here", tmp_path / "there", tmp_path / "paper.json"
    over = recorded_run(runs, "ablate-a-whole-s0", top1=0.25)
    recorded_run(runs, "ablate-a-lrn-s0", top1=0.5, ended=False)
    recorded_run(runs, "other-a-whole-s0", top1=0.5)
    (over / "weights").write_bytes(b"1")
    for name in ("rank-0.jsonl", "costs.jsonl"):  # lines that a power cut has torn
        with (over / name).open("ab") as file:
            file.write(b'{"kind": "eval", "views": 10, \xff')
    sections = {"One": PartResult("done", ["a", "b"], "then"), "Two": PartResult("skipped: why")}
    page_records.write(path, "a-s0", sections, runs, "ablate-a-")
    text = path.read_text()
    assert str(tmp_path) not in text
    assert text.count("\n") > 15  # so that changes of the page can be read
    read = page_records.read_sections(path, "a-s0")
    assert read["One"] == ("done", ["a", "b"], "then")
    assert read["Two"].state == "skipped: why"
    page_records.restore_runs(path, there)
    assert [folder.name for folder in there.iterdir()] == [over.name]
    # (30 images at 2 + 10 at 4) / 40
    errors = Errors(75.0, pytest.approx(10.0), (2.5, 1.0))
    assert errors_of(over) == errors_of(there / over.name) == errors
    assert cost_of([there / over.name]) == (3, 4, 2.0)
    assert [own.name for own in sorted((there / over.name).iterdir())] == [
        "costs.jsonl",
        "rank-0.jsonl",
    ]
    # a run that is here stays as it is
    (there / over.name / "rank-0.jsonl").unlink()
    page_records.restore_runs(path, there)
    assert errors_of(there / over.name) is None


def test_a_loss_of_training_is_the_last_epoch_s_of_the_last_attempt(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, "ablate-a-whole-s0", top1=0.25, ended=False)
    events = EventWriter(run / "rank-0.jsonl", attempt=2, rank=0)
    for images, loss in ((1, 3.0), (3, 1.0)):
        events.write("step", {"steps": 1, "images": images, "loss": loss}, epoch=1, step=1)
    step = last_epoch(records(run))
    assert step is not None
    assert (step["images"], step["loss"]) == (4, 1.5)
    events.write("step", {"steps": 1, "images": 3, "loss": math.nan}, epoch=1, step=1)
    assert last_epoch(records(run)) is None
    assert last_epoch([]) is None


def test_a_part_that_has_nothing_to_show_leaves_what_was_known() -> None:
    before = PartResult("in part: the minutes are over", ["table"], "then")
    skipped, more = PartResult("skipped: why"), PartResult("in part", ["longer table"])
    assert fuller(before, skipped) == before
    assert fuller(before, more) == more
    assert fuller(None, skipped) == skipped
    assert fuller(PartResult("skipped: why"), PartResult("failed")).state == "failed"


def recorded_run(runs: Path, name: str, *, top1: float, ended: bool = True) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    events = EventWriter(folder / "rank-0.jsonl", attempt=1, rank=0)
    events.write("start", {"config": {"runs": str(runs)}})
    for views, share in ((10, 0.9), (10, top1), (1, 0.8)):
        scores = {"views": views, "images": 10, "top1": share, "top5": 0.9, "nll": 1.0}
        events.write("eval", scores, epoch=1, step=1)
    for epoch, images, loss in ((0, 10, 7.0), (1, 30, 2.0), (1, 10, 4.0)):
        events.write("step", {"steps": 1, "images": images, "loss": loss}, epoch=epoch, step=1)
    if ended:
        events.write("end", {"outcome": "finished", "error": None})
    (folder / "costs.jsonl").write_text('{"wall_s": 3, "cpu_s": 4, "load": 2}\n')
    return folder


def test_records_of_other_settings_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "paper.json"
    assert page_records.read_sections(path, "a-s0") == {}
    page_records.write(path, "a-s0", {}, tmp_path, "ablate-")
    with pytest.raises(GratisError, match="is of a-s0, this is a-s0-1; name another --docs"):
        page_records.read_sections(path, "a-s0-1")
    for broken in ('{"sections": 3}', '["a"]', '{"sections": {"One": ["done"'):
        path.write_text(broken)
        assert page_records.read_sections(path, "a-s0-1") == {}
        page_records.restore_runs(path, tmp_path / "none")
    assert not (tmp_path / "none").exists()
