"""Ablations: the switches, and the table of differences seed by seed."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
from handmade import as_validation

from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.events import EventWriter
from gratis.history import outcome, records
from gratis.train.network.layers import plan
from gratis.train.options import Options, parse, read
from gratis.train.paper import costs, trainings
from gratis.train.paper.ablate import Ablate, ablate, arguments_of, command_of
from gratis.train.paper.ablation_table import WHOLE, Ablation, Errors, row, signs, write
from gratis.train.paper.arguments import flags, recipe_flags
from gratis.train.paper.children import Children
from gratis.train.paper.costs import Cost, add, cost_of, recorded
from gratis.train.paper.differences import RULE, difference, shown, verdict
from gratis.train.paper.switches import SWITCHES
from gratis.train.paper.trainings import (
    Done,
    Queue,
    Run,
    Training,
    digest,
    errors_of,
    planned,
    run_of,
    stem_of,
)
from gratis.train.recipes import RECIPES, RELEASED, SAMPLE


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", ["released", "tiny", "paper"])
def test_a_switched_recipe_is_what_its_options_say(name: str, switch: str) -> None:
    switched = SWITCHES[switch].off(replace(RECIPES[name], epochs=7, exchange=()))
    arguments = ["--shards", "x", "--recipe", name, *recipe_flags(switched, RECIPES[name])]
    assert parse(arguments).fields == switched
    assert digest(switched) != digest(RECIPES[name])


def test_a_command_is_put_together() -> None:
    options = flags(gpus=None, save_probabilities=True, lrn=False, only=("a", "b"), port=0)
    assert options == ["--save-probabilities", "--no-lrn", "--only", "a", "b", "--port", "0"]


def test_what_is_switched_off_and_what_it_cost_the_authors() -> None:
    """Points of error, top-1 and top-5: specification, sections 0.1 and 5."""
    half: dict[str, object] = {"towers": 1, "channels": (48, 128, 192, 192, 256)}
    of: dict[str, tuple[dict[str, object], tuple[float | None, float | None]]] = {
        "lrn": ({"lrn": False, "map_norm": False}, (1.4, 1.2)),
        "overlap": ({"pool": "separate"}, (0.4, 0.3)),
        "towers": (half, (1.7, 1.2)),
        "color_noise": ({"noise": "off"}, (1.0, None)),
        "conv3": ({"without": "conv3"}, (2.0, None)),
        "conv4": ({"without": "conv4"}, (2.0, None)),
        "conv5": ({"without": "conv5"}, (2.0, None)),
        "dropout": ({"dropout": "off"}, (None, None)),
        "crops": ({"crop_positions": "centre", "flip": 0.0}, (None, None)),
        "exchange": ({"exchange": ()}, (1.2, 1.1)),
        "fc7": ({"without": "fc7"}, (None, None)),
        "tanh": ({"activation": "tanh"}, (None, None)),
    }
    assert [*of] == [*SWITCHES]
    for name, (fields, cost) in of.items():
        assert SWITCHES[name].off(RELEASED) == replace(RELEASED, **fields), name  # type: ignore[arg-type]
        assert SWITCHES[name].paper == cost, name
        assert (len(SWITCHES[name].rates) > 1) == (name == "tanh")


def test_a_run_of_an_ablation_is_trained_as_its_options_say() -> None:
    whole = replace(RECIPES["tiny64"], epochs=5)
    options = Ablate(shards="s", runs=Path("r"), recipe="tiny64", whole=whole, gpus=1)

    def parsed(run: Run) -> Options:
        command = command_of(options, run, SWITCHES["tanh"].off(whole))
        assert command[-len(command) + 1 : 5] == [
            "-m",
            "gratis.processes",
            str(os.getpid()),
            "train",
        ]
        return parse(command[5:])

    own = parsed(Run(Training(3, "tanh", 0.5), 0.5, Path("r/one")))
    # of the rate 0.04
    assert own.fields == replace(whole, activation="tanh", rate=0.02)
    assert (own.settings.seed, own.settings.save_probabilities) == (3, False)
    assert (own.shards, own.run, own.runs, own.port, own.gpus) == ("s", "one", Path("r"), 0, 1)
    assert parsed(Run(Training(0, WHOLE, 1.0), 1.0, Path("r/one"))).settings.save_probabilities


def test_an_ablation_s_command_is_its_options() -> None:
    options = Ablate(
        shards="s",
        fields="lrn,tanh",
        seeds="4,5",
        runs=Path("r"),
        out=Path("o"),
        gpus=2,
        jobs=3,
        recipe="tiny",
        whole=replace(RECIPES["tiny"], epochs=7, conv1_slow=None, drops=(0.25, 0.5)),
    )
    words = arguments_of(options, 90.0)
    assert read(Ablate, words, "released", "", fields="whole") == replace(options, minutes=1.5)


def test_the_one_column_network_is_the_authors_own() -> None:
    one = SWITCHES["towers"].off(RELEASED)
    # specification, section 3
    assert sum(own.parameters for own in plan(one, 1000).values()) == 59_798_312
    lrn = SWITCHES["lrn"].off(RELEASED)
    assert (lrn.lrn, lrn.map_norm) == (False, False)


def test_what_is_known_of_a_small_network_is_computed_from_its_settings() -> None:
    small = replace(RECIPES["tiny"], image_size=64, crop=56)
    # conv1 13 pixels a side, pooled to 6, conv2 6, pooled to 3; the paper's 13
    assert SWITCHES["conv4"].why(small).startswith("it works on 3x3 pixels here, on 13x13")
    # squares of inputs / 64 count 4096 times less beside k = 2: 2 ** -0.75
    assert "multiply by about 0.59 and do no more" in SWITCHES["lrn"].why(small)
    assert SWITCHES["lrn"].why(replace(small, lrn_alpha=1e-4 * 64**2)) == ""
    # 1e-4 of the squares by 0.2 or 0.09 squared: above a hundredth of what is released, and below
    assert SWITCHES["lrn"].why(replace(RELEASED, input_scale=0.2)) == ""
    assert SWITCHES["lrn"].why(replace(RELEASED, input_scale=0.09, lrn_k=1.0)) == (
        "at an input scale of 0.09 and alpha 0.0001 squares vanish beside k: the layers multiply "
        "by about 1.00 and do no more"
    )
    assert [name for name, switch in SWITCHES.items() if switch.why(RELEASED)] == []


def test_differences_are_taken_seed_by_seed() -> None:
    table = {
        WHOLE: {0: Errors(50.0, 20.0), 1: Errors(40.0, 10.0)},
        "lrn": {0: Errors(52.0, 20.5), 1: Errors(41.0, 11.5), 2: Errors(90.0, 90.0)},
    }
    own = row("lrn", table)
    assert own["top1_delta"] == [2, 1]
    assert own["top5_delta"] == [0.5, 1.5]
    assert own["seeds"] == [0, 1, 2]
    # deviations of +-0.5 from 1.5: variance 0.5 with n - 1, its root over that of 2
    assert own["top1_difference"] == {"mean": 1.5, "se": pytest.approx(0.5), "n": 2}
    assert row(WHOLE, table)["top1_difference"] is None


def test_a_standard_error_is_the_one_of_the_textbook() -> None:
    own = difference([1.0, 2.0, 3.0, 6.0])  # deviations -2, -1, 0, 3: 14 / 3 / 4
    assert own is not None
    assert (own.mean, own.n) == (3, 4)
    assert own.se == pytest.approx((14 / 12) ** 0.5)
    assert shown(own) == "+3.0 ± 1.1"
    assert shown(difference([-0.25])) == "-0.2"
    assert difference([]) is None


@pytest.mark.parametrize(
    ("deltas", "paper", "said"),
    [
        ((1.0, 1.2, 1.4), 1.4, "worse without, as in the paper"),
        ((2.0, 2.1, 2.2), 1.4, "worse without, as in the paper; told from 1.4"),
        ((-2.0, -2.1, -2.2), 1.4, "better without, against the paper; told from 1.4"),
        ((-2.0, -2.1, -2.2), None, "better without"),
        ((0.5, 0.6, 0.7), 0.55, "worse without, as in the paper"),
        ((-0.5, -0.6, -0.7), 0.55, "better without, against the paper; told from 0.55"),
        ((-1.0, 1.0, 0.2), 1.4, "not told from 0; told from 1.4"),  # 0.07, se 0.58
        ((-1.0, 1.0, 0.2), 1.0, "not told from 0"),
        ((5.0, 5.1), 1.4, "n below 3"),
    ],
)
def test_what_is_said_of_a_difference(
    deltas: tuple[float, ...], paper: float | None, said: str
) -> None:
    assert verdict(difference(deltas), paper) == said


def test_signs_are_listed_of_what_the_paper_has_a_number_for() -> None:
    whole = dict.fromkeys(range(3), Errors(50.0, 20.0))
    table = {WHOLE: whole}
    for name, mean in {"lrn": 2.0, "overlap": -2.0, "towers": 0.01, "dropout": 3.0}.items():
        table[name] = {seed: Errors(50 + mean + seed / 10, 20.0) for seed in range(3)}
    del table["towers"][2]
    table["color_noise"] = {seed: Errors(49.0 + seed, 20.0) for seed in range(3)}
    assert signs([row(name, table) for name in table]) == [
        "as in the paper: no normalisation layers",
        "against the paper: pooling 2x2 every 2",
        "not told from 0: no colour noise",
    ]


def test_the_page_of_an_ablation_has_each_number_in_its_place(
    jpeg_dataset: Path, tmp_path: Path
) -> None:
    """Means 47 and 45, differences 2, 1, 3 and 0.5, 1.5, 2.5: of deviation 1, and 1 / 1.73 of their
    mean's. The third seed of the network without overlap is not there, nor any of one column."""
    results = {
        WHOLE: {
            0: Errors(50.0, 20.0, (2.5, 3.0)),
            1: Errors(40.0, 10.0),
            2: Errors(45.0, 15.0, (1.0, 2.0)),
        },
        "lrn": {0: Errors(52.0, 20.5), 1: Errors(41.0, 11.5), 2: Errors(48.0, 17.5)},
        "overlap": {0: Errors(49.0, 20.0), 1: Errors(38.0, 10.25)},
        "color_noise": {1: Errors(39.0, 10.0)},
        "towers": {},
        "dropout": {0: Errors(54.0, 22.0), 1: Errors(44.0, 12.0), 2: Errors(49.0, 17.0)},
        "tanh": {0: Errors(55.0, 25.0)},
    }
    manifest = read_manifest(jpeg_dataset)
    val = replace(manifest.splits["train"], shards=manifest.splits["train"].shards[:3])
    manifest = replace(manifest, splits=manifest.splits | {"val": val})
    page = write(
        tmp_path,
        Ablation(
            manifest=manifest,
            recipe_name="tiny64",
            whole=replace(RECIPES["tiny64"], epochs=3),
            results=results,
            rates={"tanh": 0.5},
            cost=Cost(5400.0, 9000.0, 1.25),
        ),
    )
    assert page == tmp_path / "ablation.md"
    lines = page.read_text().splitlines()
    assert lines[0].startswith("Errors in % over ten views of 30 validation images, means over n")
    assert f"positive: worse without. {RULE} Losses are means too: of training in " in lines[0]
    assert lines[1].startswith(
        "Measured on 101 training images of 7 classes at 64 px, recipe tiny64, crop 56, width "
        "0.25, 3 epochs. The paper's"
    )
    cores = f"on {os.cpu_count()} cores"
    assert (
        lines[2] == f"The runs took 1.50 hours, 2.50 of CPU time, at a load average of 1.2 {cores}."
    )
    differences = "top-1 difference | top-5 difference | paper's | on | top-1 beside the paper's"
    assert lines[3:13] == [
        "",
        f"|  | n | top-1 | top-5 | loss, training / validation | {differences} |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| the whole network | 3 | 45.0 [40.0..50.0] | 15.0 [10.0..20.0] | 1.75 / 2.50 |  |  |  "
        "|  |  |",
        "| no normalisation layers | 3 | 47.0 [41.0..52.0] | 16.5 [11.5..20.5] |  | +2.0 ± 0.6 | "
        "+1.5 ± 0.6 | 1.4 / 1.2 | 2012 val | worse without, as in the paper |",
        "| pooling 2x2 every 2 | 2 | 43.5 [38.0..49.0] | 15.1 [10.2..20.0] |  | -1.5 ± 0.5 | "
        "+0.1 ± 0.1 | 0.4 / 0.3 | 2012 val | n below 3 |",
        '| no colour noise | 1 | 39.0 | 10.0 |  | -1.0 | +0.0 | 1 | not stated; "over 1 %" | '
        "n below 3 |",
        "| one column of half the channels | 0 |  |  |  |  |  | 1.7 / 1.2 | 2010 test |  |",
        "| no dropout | 3 | 49.0 [44.0..54.0] | 17.0 [12.0..22.0] |  | +4.0 ± 0.0 | +2.0 ± 0.0 "
        '|  | "substantial overfitting" | worse without |',
        "| tanh at its best rate | 1 | 55.0 | 25.0 |  | +5.0 | +5.0 |  | "
        "no error of it printed (figure 1: its speed) | n below 3 |",
    ]
    assert lines[13:] == [
        "",
        "- no dropout: dropout about doubles the iterations that training takes (the paper); here "
        "are 3 epochs.",
        "- tanh at its best rate: 0.5 times the whole network's rate, the best of the first seed's "
        "at 0.25, 0.5, 1, 2 times.",
        "- as in the paper: no normalisation layers.",
    ]
    report = json.loads((tmp_path / "ablation.json").read_text())
    terms = {"dataset": manifest.hash, "train_images": 101, "classes": 7, "image_size": 64}
    terms |= {"recipe": "tiny64", "rates": {"tanh": 0.5}}
    assert {name: report[name] for name in terms} == terms
    assert report["cost"] == {"wall_s": 5400, "cpu_s": 9000, "load": 1.25}
    assert (report["settings"]["epochs"], report["settings"]["width"]) == (3, 0.25)
    assert [own["setting"] for own in report["rows"]] == [*results]
    overlap = report["rows"][2]
    assert (overlap["seeds"], overlap["top1"], overlap["top5"]) == ([0, 1], [49, 38], [20, 10.25])
    assert (overlap["top1_delta"], overlap["top5_delta"]) == ([-1, -2], [0, 0.25])
    assert (overlap["paper"], overlap["words"]) == ([0.4, 0.3], "pooling 2x2 every 2")


def test_what_is_trained_already_is_tabulated(
    jpeg_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that diverged is over too, and is no number; of another rate or seed is another run."""
    shards = shutil.copytree(jpeg_dataset, tmp_path / "shards")
    as_validation(shards)
    whole, runs = replace(SAMPLE, image_size=64, crop=56), tmp_path / "runs"
    runs.mkdir()
    stem = stem_of("sample", read_manifest(shards), whole)
    evaluated(runs / run_of(stem, WHOLE, 0), 0.25)
    evaluated(runs / run_of(stem, WHOLE, 1), 0.0, "diverged")
    evaluated(runs / run_of(stem, "overlap", 0), 0.125)
    evaluated(runs / run_of(stem, "overlap", 1), 0.5)
    add(runs / run_of(stem, "overlap", 1), Cost(7200.0, 3600.0, 2.0))
    options = Ablate(shards=str(shards), fields="overlap", runs=runs, recipe="sample", whole=whole)
    page = ablate(options)
    assert page == runs / f"ablation-{stem}" / "ablation.md"
    text = page.read_text()
    assert "| the whole network | 1 | 75.0 | 10.0 |" in text
    assert "| pooling 2x2 every 2 | 1 | 68.8 [50.0..87.5] | 10.0 [10.0..10.0] |  | +12.5 |" in text
    assert "The runs took 2.00 hours, 1.00 of CPU time, at a load average of 2.0 on" in text
    assert capsys.readouterr().out == ""  # nothing is begun


def test_runs_are_trained_one_after_the_other_and_what_is_over_stays(
    jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their processes end at once: the whole network with 25 % right, others with half of it; each
    takes 1.5 s of CPU. One that fails ends the ablation, with a page of what there is."""
    shards = as_validation(shutil.copytree(jpeg_dataset, tmp_path / "shards"))
    runs, begun, failing = tmp_path / "runs", list[Options](), list[str]()
    runs.mkdir()

    class Process:
        pid, returncode = 7, None

        def __init__(self, command: list[str], stdout: int) -> None:
            assert stdout == subprocess.DEVNULL
            own = parse(command[5:])
            begun.append(own)
            assert own.run is not None
            if not failing:
                evaluated(runs / own.run, 0.25 if "-whole-" in own.run else 0.125)

        def send_signal(self, _: int) -> None:
            pytest.fail("none is under way")

    def wait4(pid: int, _: int) -> tuple[int, int, SimpleNamespace]:
        return pid, 256 if failing else 0, SimpleNamespace(ru_utime=1.0, ru_stime=0.5)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(os, "wait4", wait4)
    whole = replace(SAMPLE, image_size=64, crop=56)
    options = Ablate(
        shards=str(shards), fields="overlap", seeds="4,2", runs=runs, recipe="sample", whole=whole
    )
    page = ablate(options)
    assert [(own.settings.seed, own.fields.pool) for own in begun] == [
        (4, "overlapping"),
        (4, "separate"),
        (2, "overlapping"),
        (2, "separate"),
    ]
    assert (
        "| pooling 2x2 every 2 | 2 | 87.5 [87.5..87.5] | 10.0 [10.0..10.0] |  | +12.5 ± 0.0 |"
        in (page.read_text())
    )
    assert cost_of(runs.glob("ablate-*")).cpu_s == 6
    failing.append("from now on")
    with pytest.raises(GratisError, match=r"-s3 ended with exit code 1; the same command goes on"):
        ablate(replace(options, seeds="4,3"))
    assert len(begun) == 5
    assert "| pooling 2x2 every 2 | 1 |" in page.read_text()


def test_runs_have_the_names_that_earlier_versions_gave_them(jpeg_dataset: Path) -> None:
    """By settings that differ from the defaults, as JSON: else what is trained is trained again."""
    manifest = read_manifest(jpeg_dataset)
    changed = hashlib.sha256(b'{"noise": "off", "epochs": 7}').hexdigest()[:6]
    whole = replace(RELEASED, epochs=7, noise="off")
    assert stem_of("tiny", manifest, whole) == f"tiny-{manifest.hash[:8]}-{changed}"
    assert run_of("stem", "tanh", 3, 0.25) == "ablate-stem-tanh-x0.25-s3"
    assert run_of("stem", WHOLE, 0, 1.0) == run_of("stem", WHOLE, 0) == "ablate-stem-whole-s0"


def test_errors_are_the_last_ones_of_ten_views(tmp_path: Path) -> None:
    assert errors_of(evaluated(tmp_path / "cut", 0.5, "preempted")) is None
    folder = evaluated(tmp_path / "a", 0.5)
    events = EventWriter(folder / "rank-0.jsonl", attempt=1, rank=0)
    events.write("end", {"outcome": "finished", "error": None})
    for views, top1, top5 in ((10, 0.625, 0.75), (1, 0.25, 0.5)):
        scores = {"views": views, "images": 10, "top1": top1, "top5": top5, "nll": 1.0}
        events.write("eval", scores, epoch=1, step=1)
    events.write("end", {"outcome": "finished", "error": None})
    assert errors_of(folder) == Errors(37.5, 25.0)
    (tmp_path / "none").mkdir()
    events = EventWriter(tmp_path / "none" / "rank-0.jsonl", attempt=1, rank=0)
    events.write("end", {"outcome": "finished", "error": None})
    assert errors_of(tmp_path / "none") is None
    events.write("eval", {"views": 10, "top1": 0.5, "top5": 0.5}, epoch=1, step=1)
    events.write("end", {"outcome": "preempted", "error": None})
    assert errors_of(tmp_path / "none") is None


def test_no_run_is_begun_that_would_end_after_the_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 10 minutes; the longest so far took 4."""
    now = [1000.0]
    monkeypatch.setattr(trainings, "time", SimpleNamespace(monotonic=lambda: now[0]))
    queue = Queue(tmp_path, "stem", [0, 1, 2], Done(errors={WHOLE: {}, "tanh": {}}), 10.0)
    assert queue.next(set()) is not None
    queue.longest = 240.0
    now[0] += 360.0
    run = queue.next({WHOLE})
    assert run is not None
    assert run == (Training(0, "tanh", 1.0), 1.0, tmp_path / "ablate-stem-tanh-s0")
    now[0] += 0.5
    assert queue.next({WHOLE}) is None
    begun, second, *late = capsys.readouterr().out.splitlines()
    assert (begun, second) == ("1 of 9: whole, seed 0", "2 of 9: tanh, seed 0")
    after = "skipped, it would end after --minutes 10"
    assert late[0] == f"ablate-stem-tanh-x0.5-s0: {after}"
    assert "tanh, seed 1: skipped, it would begin before its rate is known" in late
    assert len(late) == 7
    other = Queue(tmp_path, "stem", [0], Done(errors={"tanh": {}}))
    assert [other.next(set()) is None for _ in range(5)] == [False] * 4 + [True]
    assert "2 of 4: tanh at 0.5 times the rate, seed 0" in capsys.readouterr().out


def test_an_attempt_s_cost_is_its_children_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.5 s of the clock, 3 s of user's and 0.5 of the system's time; a load of 1 and of 3."""
    clock, loads = iter([10.0, 12.5]), iter([1.0, 3.0])
    used = iter([(1.0, 0.25), (4.0, 0.75)])

    def getrusage(who: int) -> SimpleNamespace:
        assert who == resource.RUSAGE_CHILDREN
        user, system = next(used)
        return SimpleNamespace(ru_utime=user, ru_stime=system)

    monkeypatch.setattr(costs, "LOOK_S", 0.0)
    monkeypatch.setattr(
        costs, "time", SimpleNamespace(monotonic=lambda: next(clock), time=lambda: 7)
    )
    monkeypatch.setattr(resource, "getrusage", getrusage)
    looked, over = Event(), Event()

    def getloadavg() -> tuple[float, float, float]:
        if (load := next(loads, None)) is None:
            looked.set()  # the thread has seen both
            over.wait()
        return load or 0.0, 9.0, 9.0

    monkeypatch.setattr(os, "getloadavg", getloadavg)
    with recorded(tmp_path):
        assert looked.wait(30)
    over.set()
    line = (tmp_path / "costs.jsonl").read_text()
    assert json.loads(line) == {"t": 7, "wall_s": 2.5, "cpu_s": 3.5, "load": 2.0}
    add(tmp_path, Cost(1.0, 2.0, 3.0))
    assert (tmp_path / "costs.jsonl").read_text().startswith(line)
    assert cost_of([tmp_path]) == (3.5, 5.5, pytest.approx((2.5 * 2 + 1 * 3) / 3.5))
    add(tmp_path / "none", Cost(1.0, 2.0, 3.0))
    assert not (tmp_path / "none").exists()


@pytest.mark.starts
def test_what_a_child_costs_is_measured(tmp_path: Path) -> None:
    work = "import time\nwhile time.process_time() < 0.7: pass"
    with recorded(tmp_path):
        subprocess.run([sys.executable, "-c", work], check=True)
    cost = cost_of([tmp_path])
    assert 0.6 < cost.cpu_s < 5
    assert cost.wall_s > 0.6


def evaluated(folder: Path, top1: float, outcome: str = "finished") -> Path:
    """A run's records, as training writes them."""
    folder.mkdir()
    events = EventWriter(folder / "rank-0.jsonl", attempt=1, rank=0)
    scores = {"views": 10, "images": 10, "top1": top1, "top5": 0.9, "nll": 1.0, "wall_s": 1.0}
    if outcome == "finished":
        events.write("eval", scores, epoch=1, step=1)
    events.write("end", {"outcome": outcome, "error": None})
    return folder


def test_the_rate_is_chosen_with_the_first_seed_alone(tmp_path: Path) -> None:
    begun = list(planned([WHOLE, "tanh"], [3, 4]))
    assert [(one.seed, one.name, one.factor) for one in begun] == [
        (3, WHOLE, 1.0),
        *((3, "tanh", factor) for factor in SWITCHES["tanh"].rates),
        (4, WHOLE, 1.0),
        (4, "tanh", None),
    ]
    done = Done(errors={WHOLE: {}, "tanh": {}})
    top1 = {1.0: 0.4, 0.5: 0.375, 2.0: 0.5, 0.25: None}
    for number, (factor, right) in enumerate(top1.items()):
        assert done.rates == {}
        assert done.errors["tanh"] == {}
        ended = "finished" if right else "diverged"
        folder = evaluated(tmp_path / str(number), right or 0.0, ended)
        done.add(Run(Training(3, "tanh", factor), factor, folder))
    assert done.rates == {"tanh": 2.0}
    assert done.errors["tanh"] == {3: Errors(50.0, pytest.approx(10))}
    done.add(Run(Training(4, "tanh", None), 2.0, evaluated(tmp_path / "later", 0.25)))
    assert done.errors["tanh"][4][0] == 75


def test_runs_side_by_side_wait_for_a_rate_that_is_not_known_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rates of the first seed are under way: the second seed's whole network comes before its
    tanh, and that with the best rate; what an earlier call has trained is taken as it is."""
    done = Done(errors={WHOLE: {}, "tanh": {}})
    queue = Queue(tmp_path, "stem", [3, 4], done)
    evaluated(tmp_path / "ablate-stem-whole-s3", 0.5)

    def begun(running: set[str]) -> tuple[str, int, float] | None:
        run = queue.next(running)
        return run and (run.training.name, run.training.seed, run.factor)

    rates = SWITCHES["tanh"].rates
    assert [begun({"tanh"}) for _ in rates] == [("tanh", 3, factor) for factor in rates]
    assert done.errors[WHOLE] == {3: Errors(50.0, pytest.approx(10))}
    assert begun({"tanh"}) == (WHOLE, 4, 1.0)
    assert begun({"tanh", WHOLE}) is None
    for factor, top1 in zip(rates, (0.25, 0.75, 0.5, 0.25), strict=True):
        folder = evaluated(tmp_path / f"of-{factor:g}", top1)
        done.add(Run(Training(3, "tanh", factor), factor, folder))
    assert begun(set()) == ("tanh", 4, 0.5)
    assert queue.next(set()) is None
    assert "skipped" not in capsys.readouterr().out


@pytest.mark.starts
def test_children_have_cores_and_costs_of_their_own(tmp_path: Path) -> None:
    """Two at a time: one works for half a second of CPU, the other sleeps; each one's share of the
    cores is disjoint from the other's."""
    work = (
        "import os, sys, time, pathlib\n"
        "folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])\n"
        "time.sleep(0.2)\n"
        "(folder / 'cores').write_text(repr(os.sched_getaffinity(0)))\n"
        "while time.process_time() < seconds: pass\n"
        "time.sleep(float(sys.argv[3]))\n"
    )
    children = Children(2)
    assert not children.full
    for name, *seconds in (("busy", "0.6", "0"), ("idle", "0", "0.1"), ("kept", "0", "60")):
        (tmp_path / name).mkdir()
        if children.full:
            assert name != "busy"
            child = children.next_ended()
            assert child.process.returncode == 0
        words = [sys.executable, "-c", work, str(tmp_path / name), *seconds]
        children.start(words, tmp_path / name)
    ended = children.next_ended()
    assert ended.process.returncode == 0
    began = time.monotonic()
    children.end()  # of the one that would sleep for a minute
    assert time.monotonic() - began < 30
    costs = {name: cost_of([tmp_path / name]) for name in ("busy", "idle", "kept")}
    assert costs["busy"].cpu_s > 0.5
    assert costs["idle"].cpu_s < costs["busy"].cpu_s
    assert costs["kept"].wall_s < 60
    cores = [ast.literal_eval((tmp_path / name / "cores").read_text()) for name in ("busy", "idle")]
    every = os.sched_getaffinity(0)
    assert all(own <= every for own in cores)
    if len(every) > 1:
        assert not cores[0] & cores[1]


def test_costs_are_summed_and_their_load_is_weighted_by_time(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    line = '{"wall_s": 100, "cpu_s": 150, "load": 2}\n'
    (first / "costs.jsonl").write_text(line + line + '{"wall_s": 1, "cp')
    (second / "costs.jsonl").write_text('{"wall_s": 600, "cpu_s": 600, "load": 6}\n')
    assert cost_of([first, second, tmp_path / "none"]) == Cost(800, 900, 5.0)
    assert cost_of([]) == Cost(0, 0, 0)


@pytest.mark.slow
def test_ablation_trains_once_and_tabulates(
    ablated: Path,
    sample_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    options = Ablate(
        shards=str(sample_shards),
        runs=runs,
        fields="overlap",
        seeds="0",
        recipe="sample",
        whole=quick,
    )
    # the same dataset at an address: nothing is trained again
    table = ablate(replace(options, shards=f"file://{sample_shards}"))
    assert sorted(runs.glob("ablate-*")) == folders
    assert [(folder / "rank-0.jsonl").stat().st_size for folder in folders] == sizes
    assert "| pooling 2x2 every 2 | 1 |" in table.read_text()
    rows = json.loads((table.parent / "ablation.json").read_text())["rows"]
    last = [
        next(r for r in reversed(records(folder)) if r["kind"] == "eval" and r["views"] == 10)
        for folder in folders
    ]
    cost = cost_of(folders)
    # an epoch, its evaluation and the start of torch take some seconds of both
    assert 2 < cost.cpu_s < 600
    assert 2 < cost.wall_s < 600
    assert cost.load > 0
    assert (folders[1] / "probabilities.safetensors").is_file()  # of the whole network alone
    assert not (folders[0] / "probabilities.safetensors").exists()
    assert rows[1]["top1"] == pytest.approx([100 - 100 * last[0]["top1"]])
    assert rows[1]["top1_delta"] == pytest.approx([100 * (last[1]["top1"] - last[0]["top1"])])
    ablate(replace(options, whole=replace(quick, batch=50), minutes=1e-9))
    assert capsys.readouterr().out.count("skipped, it would end after --minutes") == 2


@pytest.mark.slow
def test_a_stopped_ablation_tabulates_what_earlier_calls_have_trained(
    sample_shards: Path, tmp_path: Path
) -> None:
    whole = replace(RECIPES["sample"], epochs=1)
    stem = stem_of("sample", read_manifest(sample_shards), whole)
    evaluated(tmp_path / run_of(stem, WHOLE, 0), 0.25)
    command = ["ablate", *flags(shards=sample_shards, runs=tmp_path, fields="overlap", seeds="0")]
    command += flags(recipe="sample", epochs=1)
    process = subprocess.Popen([sys.executable, "-m", "gratis", *command])
    began = tmp_path / run_of(stem, "overlap", 0) / "rank-0.jsonl"
    ends = time.monotonic() + 120
    while not began.exists():
        assert time.monotonic() < ends
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 75
    assert outcome(began.parent) in ("preempted", None)
    table = (tmp_path / f"ablation-{stem}" / "ablation.md").read_text()
    assert "| the whole network | 1 | 75.0 |" in table
    assert "| pooling 2x2 every 2 | 0 |" in table


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fields": "lrn,nose"}, "'nose' is none of"),
        ({"seeds": "0,x"}, "0,x must be whole numbers"),
        ({"jobs": 0}, "--jobs 0 must be at least 1"),
    ],
)
def test_wrong_ablations_stop_with_an_error(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(GratisError, match=message):
        Ablate(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("switch", ["lrn", "towers"])
def test_what_is_off_already_is_not_switched(
    sample_shards: Path, tmp_path: Path, switch: str
) -> None:
    whole = replace(RECIPES["owt"], image_size=128, crop=112)
    with pytest.raises(
        GratisError, match=f"--fields {switch}: these settings have that off already"
    ):
        ablate(
            Ablate(
                shards=str(sample_shards), runs=tmp_path, recipe="owt", whole=whole, fields=switch
            )
        )
    assert not list(tmp_path.iterdir())
