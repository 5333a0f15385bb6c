"""Figure 1, ablations, ensembles, pretraining, tables and the report that puts them together."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from preprocess.dataset import read_manifest
from preprocess.errors import UserError
from preprocess.events import EventWriter
from train import checkpoint
from train.launch import Launch, outcome, records
from train.layers import plan
from train.network import AlexNet
from train.optim import Optimiser
from train.options import parse
from train.paper.ablate import WHOLE, Ablate, ablate, as_arguments, digest, has, row
from train.paper.cifar import Checkpoint, Course, FourLayers, Training
from train.paper.ensemble import Ensemble, compare, load, tune
from train.paper.figure1 import Figure1, fastest, figure1, train_one, verdict
from train.paper.figures import CAPTIONS
from train.paper.finetune import take_convolutions
from train.paper.paper import Paper, fitting, of_run, paper
from train.paper.parts import Work, explain, train, whole_of
from train.paper.switches import SWITCHES
from train.paper.tables import tables
from train.paper.timed import timed
from train.paper.trained import last_launch
from train.recipes import KEPT, RECIPES, RELEASED, SAMPLE, TINY, Recipe
from train.schedule import rates
from train.scores import score_sums, scores
from train.written import alone

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = replace(SAMPLE, width=0.0625)
QUICK = ("--recipe", "sample", "--width", "0.0625", "--epochs", "1", "--batch", "100")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def shards32(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "shards32"
    done = python("preprocess", "shards", "--src", str(sample_source), "--out", str(out), "--size", "32")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def ablated(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of runs after an ablation of one switch and one seed."""
    runs = tmp_path_factory.mktemp("runs")
    done = python("train", "ablate", "--shards", str(sample_shards), "--runs", str(runs), "--fields", "overlap",
                  "--seeds", "0", "--gpus", "1", *QUICK)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).name == "ablation.md"
    return runs


# figure 1


def test_four_layers_are_those_of_the_small_cuda_convnet_net() -> None:
    network = FourLayers("relu", 10, 0)
    assert sum(one.numel() for one in network.parameters()) == 89_578  # 2,432 + 25,632 + 51,264 + 10,250
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    same = FourLayers("tanh", 10, 0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))


def test_epochs_to_a_target_are_read_off_between_two_epochs() -> None:
    def reached(*errors: float) -> float | None:
        return Course(activation="relu", rate=0.001, errors=list(errors)).epochs_to(0.25)

    assert reached(0.8, 0.5, 0.3, 0.2) == pytest.approx(3.5)
    assert reached(0.25) == 1
    assert reached(0.8, 0.26) is None
    assert reached() is None


def test_the_best_rate_of_each_decides_the_ratio() -> None:
    courses = [
        Course(activation="relu", rate=0.001, errors=[0.8, 0.2]),
        Course(activation="relu", rate=0.002, errors=[0.5, 0.4, 0.3]),
        Course(activation="tanh", rate=0.001, errors=[0.8, 0.7, 0.6]),
    ]
    best = fastest(courses, "relu", 0.25)
    assert best is not None
    assert best.rate == 0.001
    assert "tanh did not reach 25% training error in 3 epochs (60.0%); no ratio" in verdict(courses, 0.25)
    courses.append(Course(activation="tanh", rate=0.002, errors=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.25]))
    assert "ratio 3.7" in verdict(courses, 0.25)  # 7 epochs against 1 + 0.55 / 0.6


@pytest.fixture
def brightness() -> tuple[torch.Tensor, torch.Tensor]:
    """32 images of two classes, dark and bright."""
    labels = torch.arange(32) % 2
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 20
    return images + 160 * (labels[:, None, None, None] - 0.5), labels


def test_a_network_learns_brightness_and_repeats_itself(brightness: tuple[torch.Tensor, torch.Tensor]) -> None:
    def errors() -> list[float]:
        course = Training("relu", *brightness, rate=0.01, classes=2, seed=1).epochs()
        return [error for error, _ in zip(course, range(6), strict=False)]

    first = errors()
    assert min(first) <= 0.25 < first[0]
    assert first == errors()


def test_a_training_that_is_cut_goes_on_as_if_it_had_not_been(
    brightness: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, path = Figure1(shards="", out=tmp_path, epochs=4, target=0.001), tmp_path / "relu.safetensors"

    images, labels = brightness[0], torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(1))

    def call(ends: float, path: Path = path) -> tuple[Course, bool, list[torch.Tensor]]:
        training = Training("relu", images, labels, rate=0.01, classes=2, seed=1)
        return *train_one(options, training, Checkpoint.read(path, "terms"), ends), list(training.network.parameters())

    calls = [call(0) for _ in range(4)]  # of an epoch each
    assert [len(course.errors) for course, _, _ in calls] == [1, 2, 3, 4]
    assert [whole for _, whole, _ in calls] == [False, False, False, True]
    assert capsys.readouterr().out.count("stopped after epoch") == 3
    course, whole, weights = call(float("inf"), tmp_path / "other.safetensors")
    assert (course, whole) == calls[3][:2]
    assert all(torch.equal(a, b) for a, b in zip(weights, calls[3][2], strict=True))
    assert Checkpoint.read(path, "other terms").errors == []
    path.write_bytes(path.read_bytes()[:1000])
    assert Checkpoint.read(path, "terms").errors == []


def test_figure1_draws_and_does_not_train_again(
    shards32: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Figure1(shards=str(shards32), out=tmp_path, epochs=2, rates=(0.001,), images=300)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch begins
    lines = figure1(options)
    assert not torch.backends.cudnn.allow_tf32
    assert "relu did not reach 25% training error in 2 epochs" in lines[0]
    with Image.open(tmp_path / "figure1.png") as picture:
        assert min(picture.size) > 300
    said = json.loads((tmp_path / "figure1.json").read_text())
    assert [len(course["errors"]) for course in said["courses"]] == [2, 2]
    assert all(0.5 < error <= 1 for course in said["courses"] for error in course["errors"])
    capsys.readouterr()
    assert figure1(options) == lines
    assert "not reached" not in capsys.readouterr().out
    figure1(replace(options, target=0.2))  # no epoch's error depends on it
    assert "not reached" not in capsys.readouterr().out
    figure1(replace(options, epochs=3))  # goes on after the second
    longer = json.loads((tmp_path / "figure1.json").read_text())["courses"]
    assert [len(course["errors"]) for course in longer] == [3, 3]
    figure1(replace(options, epochs=3, out=tmp_path / "anew"))
    assert json.loads((tmp_path / "anew" / "figure1.json").read_text())["courses"] == longer


def test_figure1_is_the_same_from_an_address(shards32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = []
    for name, shards in (("near", str(shards32)), ("far", f"file://{shards32}")):
        figure1(Figure1(shards=shards, out=tmp_path / name, epochs=1, rates=(0.001,), images=300))
        said.append((tmp_path / name / "figure1.json").read_text())
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rates": ()}, "--rates has no value; give learning rates, such as --rates 0.004 0.032"),
        ({"rates": (0.1, float("nan"))}, "--rates nan must be a number above 0"),
        ({"minutes": -1.0}, "--minutes -1 must be above 0; leave it out for as long as it takes"),
    ],
)
def test_wrong_figures_are_told(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Figure1(shards="x", **wrong)  # type: ignore[arg-type]


def test_figure1_wants_small_images(sample_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"128-pixel images, figure 1 wants 32: make shards .* ARGS='--size 32'"):
        figure1(Figure1(shards=str(sample_shards), out=tmp_path))


# ablations


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", ["released", "tiny", "paper"])
def test_a_switched_recipe_is_what_its_options_say(name: str, switch: str) -> None:
    switched = SWITCHES[switch].off(replace(RECIPES[name], epochs=7, exchange=()))
    arguments = ["--shards", "x", "--recipe", name, *as_arguments(switched, RECIPES[name])]
    assert parse(arguments).fields == switched
    assert digest(switched) != digest(RECIPES[name])


def test_the_one_column_network_is_the_authors_own() -> None:
    one = SWITCHES["towers"].off(RELEASED)
    assert sum(own.parameters for own in plan(one, 1000).values()) == 59_798_312  # specification, section 3
    lrn = SWITCHES["lrn"].off(RELEASED)
    assert (lrn.lrn, lrn.map_norm) == (False, False)


def test_differences_are_taken_seed_by_seed() -> None:
    found = {WHOLE: {0: (50.0, 20.0), 1: (40.0, 10.0)}, "lrn": {0: (52.0, 20.5), 1: (41.0, 11.5), 2: (90.0, 90.0)}}
    own = row("lrn", found)
    assert own["top1_delta"] == [2, 1]
    assert own["top5_delta"] == [0.5, 1.5]
    assert own["seeds"] == [0, 1, 2]


@pytest.mark.slow
def test_ablation_trains_once_and_tabulates(
    ablated: Path, sample_shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ablated
    folders = sorted(runs.glob("ablate-*"))
    assert [outcome(folder) for folder in folders] == ["finished"] * 2
    recipes = [records(folder)[0]["config"]["recipe"] for folder in folders]
    assert [recipe["pool"] for recipe in recipes] == ["separate", "overlapping"]
    assert recipes[0] | {"pool": "overlapping"} == recipes[1]
    sizes = [(folder / "rank-0.jsonl").stat().st_size for folder in folders]
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs / "cache"))
    quick = replace(SAMPLE, width=0.0625, epochs=1, batch=100)  # what the command says
    options = Ablate(shards=str(sample_shards), runs=runs, fields="overlap", seeds="0", recipe="sample", whole=quick)
    # the same dataset at an address: nothing is trained again
    table = ablate(replace(options, shards=f"file://{sample_shards}"))
    assert sorted(runs.glob("ablate-*")) == folders
    assert [(folder / "rank-0.jsonl").stat().st_size for folder in folders] == sizes
    assert "| pooling 2x2 every 2 | 1 |" in table.read_text()
    rows = json.loads((table.parent / "ablation.json").read_text())["rows"]
    last = [
        next(r for r in reversed(records(folder)) if r["kind"] == "eval" and r["views"] == 10) for folder in folders
    ]
    assert rows[1]["top1"] == pytest.approx([100 - 100 * last[0]["top1"]])
    assert rows[1]["top1_delta"] == pytest.approx([100 * (last[1]["top1"] - last[0]["top1"])])
    ablate(replace(options, whole=replace(quick, batch=50), minutes=1e-9))
    assert capsys.readouterr().out.count("skipped, it would end after --minutes") == 2


@pytest.mark.parametrize(
    ("wrong", "said"), [({"fields": "lrn,nose"}, "'nose' is none of"), ({"seeds": "0,x"}, "0,x must be whole numbers")]
)
def test_wrong_ablations_are_told(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Ablate(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("switch", ["lrn", "towers"])
def test_what_is_off_already_is_not_switched(sample_shards: Path, tmp_path: Path, switch: str) -> None:
    whole = replace(RECIPES["owt"], image_size=128, crop=112)
    with pytest.raises(UserError, match=f"--fields {switch}: these settings have that off already"):
        ablate(Ablate(shards=str(sample_shards), runs=tmp_path, recipe="owt", whole=whole, fields=switch))
    assert not list(tmp_path.iterdir())


# ensembles


@pytest.fixture
def members(tmp_path: Path) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """Three runs' probabilities over 400 images of 10 classes: two that know something, one that knows nothing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (400,), generator=generator)
    logits = torch.randn(3, 400, 10, generator=generator)
    logits[:2, torch.arange(400), labels] += 2
    probabilities = logits.softmax(2)
    for number, own in enumerate(probabilities):
        (tmp_path / f"r{number}").mkdir()
        save_file(
            {"labels": labels, "probabilities": own.contiguous()}, tmp_path / f"r{number}" / "probabilities.safetensors"
        )
    return tmp_path, labels, probabilities.double()


def test_an_ensemble_beats_its_members(members: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    runs, labels, probabilities = members
    found = load(Ensemble(members=("r0", "r1", "r2"), runs=runs))
    assert torch.equal(found[1], probabilities)
    rows = compare(["r0", "r1", "r2"], *found)
    assert rows[3].scores == scores(score_sums(probabilities.sum(0) / 3, labels))
    assert rows[4].scores.nll < min(one.scores.nll for one in rows[:4])
    assert rows[4].scores.nll < rows[5].scores.nll < rows[3].scores.nll
    assert "tuned" in rows[4].what
    assert rows[4].coefficients is not None
    assert rows[4].coefficients[2] < 0.05
    assert sum(rows[4].coefficients) == pytest.approx(1)


def test_coefficients_are_those_of_a_fine_grid(members: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    _, labels, probabilities = members
    right = probabilities[[0, 2]][:, torch.arange(400), labels]
    shares = torch.linspace(0, 1, 2001, dtype=torch.float64)
    likelihood = (shares[:, None] * right[0] + (1 - shares[:, None]) * right[1]).log().mean(1)
    assert tune(labels, probabilities[[0, 2]])[0].item() == pytest.approx(shares[likelihood.argmax()].item(), abs=1e-3)


def test_ensembles_of_different_images_are_refused(members: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    runs, labels, probabilities = members
    save_file({"labels": labels.flip(0), "probabilities": probabilities[0].float()}, runs / "other.safetensors")
    with pytest.raises(UserError, match="of other images or classes"):
        load(Ensemble(members=("r0", str(runs / "other.safetensors")), runs=runs))
    with pytest.raises(UserError, match=r"r9 has no probabilities\.safetensors in .*--save-probabilities"):
        load(Ensemble(members=("r0", "r9"), runs=runs))
    with pytest.raises(UserError, match="at least two runs"):
        Ensemble(members=("r0",))
    with pytest.raises(UserError, match="r0 is given twice"):
        Ensemble(members=("r0", "r1", "r0"))


# pretraining


def saved(folder: Path, recipe: Recipe, classes: int) -> AlexNet:
    network = AlexNet(recipe, classes, seed=3)
    arrays = checkpoint.collect(network, Optimiser(network, recipe), torch.zeros(0, dtype=torch.int64), writer=True)
    state = checkpoint.State(
        step=7, epoch=1, seed=3, classes=classes, dataset="d" * 64, architecture=recipe.architecture, loader={}
    )
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint.write(folder / "checkpoints", arrays, state)
    return network


def test_convolutions_are_taken_and_the_head_is_new(tmp_path: Path) -> None:
    source = saved(tmp_path / "pretrained", SMALL, 7)
    recipe = replace(SMALL, conv6=True, dropout="original")
    network, fresh = AlexNet(recipe, 10, seed=5), AlexNet(recipe, 10, seed=5)
    said = take_convolutions(tmp_path / "pretrained", network)
    assert said.endswith("trained on dataset dddddddd; conv6, fc6, fc7, fc8 are new")
    before, unused = dict(source.named_parameters()), dict(fresh.named_parameters())
    for name, own in network.named_parameters():
        kept = name.split(".")[0] in KEPT
        assert torch.equal(own, before[name] if kept else unused[name]), name
        assert kept == (not name.endswith("weight") or not torch.equal(own, unused[name])) or name.endswith("bias")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"width": 0.125}, r"conv1 \(6, 3, 11, 11\), this recipe \(12, 3, 11, 11\)"),
        ({"input_scale": 1.0}, "has input_scale 0.015625, this recipe 1.0"),
        ({"exchange": ("fc6", "fc7")}, "conv3"),
    ],
)
def test_other_convolutions_are_refused(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    saved(tmp_path / "pretrained", SMALL, 7)
    with pytest.raises(UserError, match=said):
        take_convolutions(tmp_path / "pretrained", AlexNet(replace(SMALL, **changed), 10))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds no checkpoint"):
        take_convolutions(tmp_path, AlexNet(SMALL, 10))


@pytest.mark.parametrize("name", ["released", "tiny", "paper"])
def test_convolutions_learn_at_exactly_a_tenth(name: str) -> None:
    recipe = replace(RECIPES[name], conv_rate=0.1)
    for step in (0, 30, 60_000):
        own, whole = rates(recipe, step, 1000), rates(RECIPES[name], step, 1000)
        assert (own["weights"], own["biases"]) == (whole["weights"], whole["biases"])
        for kind in ("weights", "biases"):
            tenth = 0.1 * whole[kind]  # type: ignore[literal-required]
            assert own[f"conv_{kind}"] == own[f"conv1_{kind}"] == tenth  # type: ignore[literal-required]


def test_a_step_moves_convolutions_by_a_tenth() -> None:
    moved = {}
    for share in (1.0, 0.1):
        recipe = replace(SMALL, conv_rate=share, warmup_steps=0)
        network = AlexNet(recipe, 10).double()
        before = {name: own.detach().clone() for name, own in network.named_parameters()}
        for own in network.parameters():
            own.grad = torch.full_like(own, 0.5)
        Optimiser(network, recipe).step(rates(recipe, 0, 100))
        moved[share] = {name: own.detach() - before[name] for name, own in network.named_parameters()}
    for name, whole in moved[1.0].items():
        expected = whole / 10 if name.split(".")[0] in KEPT else whole
        torch.testing.assert_close(moved[0.1][name], expected, rtol=1e-9, atol=1e-15)
        assert whole.abs().min() > 0


@pytest.mark.slow
def test_a_run_begins_with_another_ones_convolutions(ablated: Path, sample_shards: Path, tmp_path: Path) -> None:
    source = next(path for path in ablated.iterdir() if "-whole-" in path.name)
    command = ["train", "--shards", str(sample_shards), "--runs", str(tmp_path), "--port", "0", "--gpus", "2", *QUICK]
    done = python(*command, "--seed", "9", "--init-from", str(source), "--conv-rate", "0", "--run", "tuned")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("conv1, conv2, conv3, conv4, conv5 begin as in") == 1
    before, after = (checkpoint.latest(folder / "checkpoints") for folder in (source, tmp_path / "tuned"))
    assert before is not None
    assert after is not None
    from safetensors.torch import load_file

    old, new = load_file(before / "network.safetensors"), load_file(after / "network.safetensors")
    assert {name for name in old if torch.equal(old[name], new[name])} == {
        f"{layer}.{which}" for layer in KEPT for which in ("weight", "bias")
    }
    wrong = python(*command, "--init-from", str(tmp_path / "nothing"))
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "nothing holds no checkpoint" in wrong.stderr


# tables and the report


def finished(runs: Path, name: str, recipe: Recipe, sizes: tuple[int, int, int], top1: float) -> None:
    """A run's events as training writes them. sizes: training and validation images, classes."""
    (runs / name).mkdir(parents=True)
    events = EventWriter(runs / name / "rank-0.jsonl", attempt=1, rank=0)
    base = next((key for key, own in RECIPES.items() if own == replace(recipe, init_from=None, conv_rate=1.0)), "tiny")
    train, val, classes = sizes
    events.write(
        "start",
        {
            "recipe": base, "config": {"recipe": asdict(recipe)}, "epochs": recipe.epochs, "train_images": train,
            "val_images": val, "classes": classes, "dataset": "e" * 64,
        },
    )  # fmt: skip
    for views, more in ((1, 0.0), (10, 0.02)):
        fields = {"views": views, "images": val, "top1": top1 + more, "top5": 0.8, "nll": 1.0, "wall_s": 1.0}
        events.write("eval", fields, epoch=recipe.epochs, step=1)
    events.write("end", {"outcome": "finished", "error": None})


def test_only_ilsvrc_runs_stand_beside_the_paper(tmp_path: Path) -> None:
    ilsvrc = (1_281_167, 50_000, 1000)
    finished(tmp_path, "small", TINY, (50_000, 5_000, 100), 0.3)
    text = tables(tmp_path)
    assert "| 1 CNN | 40.7 | 18.2 |  |  |  |  |" in text
    assert "No run here is on ILSVRC-2012" in text
    assert "| small | tiny | 3 | 68.0 | 20.0 | 70.0 | dataset eeeeeeee: 5,000 validation images of 100 classes" in text
    finished(tmp_path, "changed", replace(RELEASED, epochs=5), ilsvrc, 0.9)
    assert "| 1 CNN | 40.7 | 18.2 |  |  |  |  |" in tables(tmp_path)
    finished(tmp_path, "whole", RELEASED, ilsvrc, 0.57)
    finished(tmp_path, "tuned", replace(RELEASED, init_from="runs/x", conv_rate=0.1), ilsvrc, 0.58)
    text = tables(tmp_path)
    assert "| 1 CNN | 40.7 | 18.2 |  | 41.0 | 20.0 | whole |" in text
    assert "| 1 CNN* | 39.0 | 16.6 |  | 40.0 | 20.0 | tuned |" in text
    assert "| 7 CNNs* | 36.7 | 15.4 | 15.3 |  |  |  |" in text


def test_a_command_that_fails_or_takes_too_long_is_said(tmp_path: Path) -> None:
    assert timed(tmp_path / "a.log", ["train", "summary"], 100) is None
    said = timed(tmp_path / "b.log", ["train", "summary", "--recipe", "nose"], 100) or ""
    assert said.startswith("failed with exit code 2: --recipe nose is none of")
    assert (timed(tmp_path / "c.log", ["http.server", "--bind", "127.0.0.1", "0"], 1) or "").startswith("stopped after")
    assert (timed(tmp_path / "d.log", ["train"], 0) or "").startswith("skipped: the minutes are over")


@pytest.mark.parametrize(
    ("told", "run", "state"),
    [
        ("preempted", None, "stopped at step 3 of 20; the same command goes on"),
        ("preempted", "a", "stopped at step 3 of 20"),  # a run that is named is reported as it is
        ("diverged", None, "diverged at step 3 of 20"),
        ("finished", None, "done"),
    ],
)
def test_how_far_training_is_said(told: str, run: str | None, state: str, sample_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    events = EventWriter(tmp_path / "a" / "rank-0.jsonl", attempt=1, rank=0)
    events.write("start", {"epochs": 2, "steps_per_epoch": 10})
    events.write("step", {"steps": 3}, epoch=0, step=3)
    events.write("end", {"outcome": told, "error": None})
    options = Paper(shards=str(sample_shards), runs=tmp_path, run=run)
    work = Work(
        options=options, manifest=read_manifest(sample_shards), recipe_name="sample", recipe=SAMPLE,
        run=tmp_path / "a", ends=0,
    )  # fmt: skip
    assert train(work).state == state


def test_the_recipe_fits_the_dataset(sample_shards: Path, shards32: Path) -> None:
    assert fitting(read_manifest(sample_shards)) == "sample"
    with pytest.raises(UserError, match="no recipe is for 32-pixel images; make shards with --size 128 or 256"):
        fitting(read_manifest(shards32))


def started(run: Path, name: str, recipe: Recipe, dataset: str) -> None:
    """A run with a checkpoint, as far as its folder and first event tell."""
    (run / "checkpoints").mkdir(parents=True)
    launch = Launch(runs=str(run.parent), run=run.name, shards="x", recipe_name=name, recipe=recipe, seed=0, attempt=1,
                    tower_ranks=1, share_device=False)  # fmt: skip
    config = json.loads(launch.to_json())
    fields = {"recipe": name, "config": config, "dataset": dataset, "epochs": 2, "steps_per_epoch": 10}
    EventWriter(run / "rank-0.jsonl", attempt=1, rank=0).write("start", fields)


def test_a_named_run_is_reported_with_its_own_settings(sample_shards: Path, tmp_path: Path) -> None:
    manifest = read_manifest(sample_shards)
    own = replace(TINY, crop=96, mean="offset", crop_positions="printed", lrn=False, map_norm=False, init_from="x")
    started(tmp_path / "a", "tiny", own, manifest.hash)
    options = Paper(shards=str(sample_shards), runs=tmp_path, run="a", minutes=0.001)
    assert of_run(options, manifest) == "tiny"
    work = Work(options=options, manifest=manifest, recipe_name="tiny", recipe=last_launch(tmp_path / "a").recipe,
                run=tmp_path / "a", ends=0)  # fmt: skip
    assert work.recipe == own
    assert whole_of(work) == replace(own, init_from=None)  # epochs are 3 in both
    chosen = replace(work, options=replace(options, recipe="sample"))
    assert whole_of(chosen) == replace(SAMPLE, epochs=3)
    assert [name for name in SWITCHES if not has(name, own)] == ["lrn"]


def test_resized_crops_are_not_drawn_as_plain_ones(sample_shards: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPES["torchvision"], image_size=128, crop=112)
    work = Work(options=Paper(shards=str(sample_shards), runs=tmp_path), manifest=read_manifest(sample_shards),
                recipe_name="torchvision", recipe=recipe, run=tmp_path / "a", ends=0)  # fmt: skip
    assert explain(work).state == "skipped: it draws plain crops, and this run trains on resized ones"
    assert explain(replace(work, recipe=replace(recipe, crop_area=None))).state.startswith("skipped: the minutes are")


def test_a_disk_without_locks_is_not_told_as_another_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(UserError, match=r"lock cannot be locked \(No locks available\)"), alone(tmp_path, "a"):
        pass


@pytest.mark.slow
def test_the_report_holds_what_there_was_time_for(
    ablated: Path, sample_shards: Path, shards32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ablated
    run = next(path for path in runs.iterdir() if "-whole-" in path.name)
    options = Paper(shards=str(sample_shards), run=run.name, runs=runs, minutes=20, gpus=3, recipe="sample")
    report = paper(options)
    text = report.read_text()
    assert report == run / "paper" / "report.md"
    for png in ("conv1", "top5", "neighbours", "curves", "rates", "explain"):
        assert f"![{png}]({png}.png)" in text
        assert (report.parent / f"{png}.png").exists()
        assert png == "explain" or CAPTIONS[png] in text  # type: ignore[index]
    assert text.count("    measured ") == 3  # rows of the colours' covariance
    assert "skipped: it wants 32-pixel images: make shards" in text
    assert "Ablations\n\n*failed with exit code 2: " in text  # three processes; told, and gone on
    assert "| 1 CNN | 40.7 | 18.2 |" in text
    drawn = (report.parent / "top5.png").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"was trained on dataset \w{8}, .* is \w{8}: give the --shards"):
        paper(replace(options, shards=str(shards32)))
    assert report.read_text() == text
    with pytest.raises(UserError, match="--seeds x must be whole numbers"):
        replace(options, seeds="x")
    with (
        alone(run / "paper", "the first"),
        pytest.raises(UserError, match=rf"run {run.name}: another report is being made there; wait for it"),
    ):
        paper(options)
    paper(replace(options, minutes=1e-9))
    assert (report.parent / "top5.png").stat().st_mtime_ns == drawn
    assert "Ablations\n\n*skipped: the minutes are over" in report.read_text()
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs / "cache"))
    paper(replace(options, shards=f"file://{sample_shards}", minutes=1e-9))
    assert "*skipped: it reads local folders; copy the dataset" in report.read_text()
