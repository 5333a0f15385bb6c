"""The report: resumable, honest about what failed; and training on a device follows training on the
CPU."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks.report.ablations import NAME, ablate_options, ablations
from benchmarks.report.command import ReportOptions, report
from benchmarks.report.correctness import FILES, SUBSAMPLINGS, count_outcomes, decoding, output
from benchmarks.report.loading import LOADS
from benchmarks.report.page import page, summary
from benchmarks.report.plan import for_a_gpu
from benchmarks.report.results import (
    Measurement,
    OutOfTime,
    Result,
    ResultFile,
    describe_entry,
    failure,
)
from benchmarks.report.setting import Setting, sizes
from benchmarks.report.stages import by_stage
from gratis.atomic import exclusive
from gratis.errors import GratisError
from gratis.history import records
from gratis.train.mesh.mesh import full_float32
from gratis.train.metrics import share_of_loss
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.optimiser import Optimiser
from gratis.train.paper.switches import SWITCHES
from gratis.train.recipes import LAYERS, RECIPES, RELEASED, Recipe
from gratis.train.schedule import rates

ROOT = Path(__file__).resolve().parent.parent.parent
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = replace(
    RELEASED,
    image_size=73,
    crop=64,
    width=1 / 16,
    batch=16,
    init="he",
    input_scale=1 / 64,
    rate=0.05,
)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


def curve(
    recipe: Recipe, device: torch.device, steps: int, *, compiled: bool = False
) -> list[float]:
    """Losses of a training whose first weights, batches and dropout masks are the same on every
    device."""
    full_float32()
    network = AlexNet(recipe, 10).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        network.compile_layers()
    optimiser, losses = Optimiser(network, recipe), []
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(16, 3, 64, 64).normal_(0, 60, generator=generator).to(device)
    labels = (torch.arange(16) % 10).to(device)
    for step in range(steps):
        logits = network(images, DropoutKey(seed=0, step=step, rows=range(16)))
        loss = share_of_loss(logits, labels, 16)
        loss.backward()
        optimiser.step(rates(recipe, step, 100))
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", [*SUBSAMPLINGS, "grey"])
def test_two_decoders_agree(kind: str, device: torch.device) -> None:
    """On a CPU DALI and Pillow, to the level; on a GPU nvJPEG and the CPU, which round otherwise:
    DALI's own test allows a level in the mean. With chroma repeated instead of interpolated it
    would be 2.9 for 4:2:0."""
    differences = decoding(kind, device)
    print(f"{device}, {kind}: {describe_entry({'result': differences})}")
    assert differences["region against whole, largest"] == 0 or device.type == "cuda"
    if device.type == "cpu":
        assert (differences["largest difference, levels"], differences["mean"]) == (0.0, 0.0)
    else:
        assert float(str(differences["mean"])) < 1.0


def test_a_device_s_losses_are_the_cpu_s(device: torch.device) -> None:
    assert curve(SMALL, device, 10) == pytest.approx(
        curve(SMALL, torch.device("cpu"), 10), rel=1e-3
    )


def test_bfloat16_follows_float32(device: torch.device) -> None:
    narrow, wide = (
        curve(replace(SMALL, compute=kind), device, 20) for kind in ("bfloat16", "float32")
    )
    print(f"{device}: losses {narrow[-1]:.4f} and {wide[-1]:.4f} after 20 steps")
    assert narrow == pytest.approx(wide, rel=0.1, abs=0.05)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.starts
def test_compiled_equals_eager_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    eager, compiled = (
        curve(SMALL, torch.device("cuda"), 10, compiled=each) for each in (False, True)
    )
    assert compiled == pytest.approx(eager, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.slow
def test_a_checkpoint_goes_from_the_cpu_to_a_gpu_and_back(
    tmp_path: Path, sample_shards: Path
) -> None:
    """One run of twelve epochs on each in turn, ended after an epoch; the receipts of all say that
    it is one."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for visible in ("", "0", ""):
        command = [
            sys.executable,
            *"-m gratis train --shards".split(),
            str(sample_shards),
            "--runs",
            str(tmp_path),
            *(
                "--run a --port 0 --recipe sample --width 0.25 --epochs 12 --gpus 1 --save-every 0"
            ).split(),
        ]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True
        )
        done = len(_receipts(tmp_path / "a"))
        while process.poll() is None and len(_receipts(tmp_path / "a")) == done:
            time.sleep(0.05)
        if process.poll() is None:
            process.terminate()
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, 75), errors
    every = records(tmp_path / "a")
    devices = [record["device"] for record in every if record["kind"] == "start"]
    assert devices[:2] == ["cpu", "cuda:0"]
    assert all((r["missing"], r["duplicates"]) == (0, 0) for r in _receipts(tmp_path / "a"))


def _receipts(run: Path) -> list[dict[str, Any]]:
    return (
        [record for record in records(run) if record["kind"] == "receipt"] if run.exists() else []
    )


def result(*values: float) -> Result:
    return {"images/s": list(values)}


def test_what_is_in_the_book_is_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def measured(name: str) -> Result:
        made.append(name)
        if name == "bad" and made.count("bad") == 1:
            raise RuntimeError("no such engine\nand more")
        return result(1.0, 3.0, 2.0)

    for names in (("bad", "good"), ("bad", "good", "late")):
        results = ResultFile.open(tmp_path / "report.json", {"cpu": "a"}, 100)
        results.begin()
        for results.again in (False, True):
            for name in names:
                results.measure(2, Measurement(name, "command", lambda n=name: measured(n)))  # type: ignore[misc]
    # what has not been tried comes before what failed
    assert made == ["bad", "good", "late", "bad"]
    printed = capsys.readouterr().out
    assert "part 2, good: images/s 2 [1..3] (n = 3)" in printed
    assert "part 2, bad: failed: no such engine\n" in printed
    assert json.loads((tmp_path / "report.json").read_text())["parts"]["2"]["bad"][
        "result"
    ] == result(1.0, 3.0, 2.0)


def test_a_defect_is_told_whole_and_a_mistake_ends_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ResultFile(path=tmp_path / "report.json", seconds=100)
    results.begin()

    def raises(error: Exception) -> Result:
        raise error

    results.measure(2, Measurement("defect", "", lambda: raises(KeyError("nvjpg"))))
    assert "Traceback" in capsys.readouterr().err
    for error in (GratisError("--shards is none"), OutOfTime()):
        with pytest.raises(type(error)):
            results.measure(2, Measurement("mistake", "", lambda error=error: raises(error)))  # type: ignore[misc]
    assert json.loads(results.path.read_text())["parts"] == {"2": results.entries["2"]}
    assert results.entries["2"]["defect"]["error"] == "KeyError: 'nvjpg'"
    assert list(results.entries["2"]) == ["defect"]


def test_every_test_that_wants_a_gpu_is_in_the_report() -> None:
    marked = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("tests/*/test_*.py")
        if "mark.gpu" in path.read_text()
    }
    assert marked == set(FILES)


def test_a_part_ends_with_its_time_and_another_machine_begins_anew(tmp_path: Path) -> None:
    results = ResultFile.open(tmp_path / "report.json", {"cpu": "a"}, 5)
    results.begin()
    results.measure(2, Measurement("short", "", lambda: result(1.0), needs=1))
    with pytest.raises(OutOfTime):
        results.measure(2, Measurement("long", "", lambda: result(1.0), needs=60))
    path = tmp_path / "report.json"
    assert list(ResultFile.open(path, {"cpu": "a"}, 5).entries["2"]) == ["short"]
    other = ResultFile.open(path, {"cpu": "b"}, 5)
    assert other.entries == {}
    assert other.mark != results.mark
    (kept,) = tmp_path.glob("report-*.json")
    assert json.loads(kept.read_text())["machine"] == {"cpu": "a"}
    other.begin()
    other.measure(2, Measurement("other", "", lambda: result(1.0), needs=1))
    # of the same code
    again = ResultFile.open(tmp_path / "report.json", {"cpu": "a", "commit": "another"}, 5)
    assert list(again.entries["2"]) == ["short"]
    assert again.machine["commit"] == "another"
    assert list(ResultFile.open(path, {"cpu": "b"}, 5).entries["2"]) == ["other"]


def test_the_page_says_what_was_found_and_what_is_missing(tmp_path: Path) -> None:
    results = ResultFile(path=tmp_path / "x.json", machine={"gpu": "none"}, seconds=1)
    entry: dict[str, object] = {"command": "a | b", "wall_s": 1.0, "load": 0.5}
    ours, plain = {"images/s": [20.0, 30.0, 22.0]}, {"images/s": [10.0, 11.0, 12.0]}
    results.entries = {
        "1": {"pytest a.py": entry | {"result": {"passed": 3.0, "failed": "test_a, test_b"}}},
        "3": {
            "ours, bfloat16, batch 32": entry | {"result": ours},
            "torchvision's layout, batch 32": entry | {"result": plain},
            "update rule": entry | {"error": "no"},
        },
        "4": {
            "jpeg, batch 32": entry
            | {"result": {"free ratio": [0.9, 1.0, 0.95], "agree": "no: input-bound"}}
        },
        "5": {NAME: entry | {"result": {"top-1 error in %, the whole network": [40.0, 41.0]}}},
    }
    results.complete = ["1", "3"]
    results.runs.joinpath("ablation").mkdir(parents=True)
    (results.runs / "ablation" / "ablation.md").write_text("| no dropout | 2 | 48.7 |\n")
    text = page(copy.deepcopy(results), {"2": ["hardware", "device"]})
    assert "ours, bfloat16, batch 32, 2.00 times (goal of 2 met)" in text
    assert "Failed: update rule." in text
    assert "Failed: pytest a.py." in text
    assert "Best: jpeg, batch 32, 0.95 (goal of 0.99 missed)" in text
    assert "Needs a GPU, not measured here: hardware; device." in text
    assert "does not agree for jpeg, batch 32" in text
    assert "| ablations | top-1 error in %, the whole network 40.5 [40..41] (n = 2) |" in text
    assert "\n| no dropout | 2 | 48.7 |\n" in text
    assert "`gratis paper --shards ...` trains longer" in text
    assert "a \\| b" in text
    assert text.count("Not measured: `gratis report --part") == 1
    assert text.count("Not complete: `gratis report --part") == 2


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([0.9, 0.98, 0.99], "0.98 (goal of 0.99 missed)"),
        ([0.98, 0.99, 1.2], "0.99 (goal of 0.99 met)"),
        ([0.9, 1.2, 2.0], "1.2 (above 1 the machine was busy: nothing is decided)"),
    ],
)
def test_a_goal_is_not_met_by_noise(ratios: list[float], words: str) -> None:
    result: dict[str, object] = {"free ratio": ratios, "agree": "yes"}
    assert words in summary("4", {"jpeg, batch 32": {"result": result}})[0]


def cpu_setting(out: Path, shards: Path, recipe: Recipe = RECIPES["sample"]) -> Setting:
    own = sizes(cuda=False, images=1000)
    return Setting(out=out, jpeg=shards, raw=shards, recipe=recipe, recipe_name="sample", **own)


@pytest.mark.slow
def test_part_5_is_the_ablation_runner(tmp_path: Path, sample_shards: Path) -> None:
    """It goes on where it was ended, shows what there is, and keeps no checkpoint."""
    recipe = replace(RECIPES["sample"], width=1 / 16, batch=100)
    results = ResultFile.open(tmp_path / "report.json", {"gpu": "none"}, 0)
    options = ablate_options(cpu_setting(tmp_path, sample_shards, recipe), results)
    assert options.whole == replace(recipe, epochs=4)
    assert (options.switches, options.seeds) == (list(SWITCHES), "0,1")
    whole = replace(options.whole, epochs=1)
    options = replace(options, whole=whole, fields="overlap", seeds="0")
    results.begin()
    with pytest.raises(OutOfTime):  # after a second; a run may have begun
        ablations(options, results)
    results.seconds = 400
    results.begin()
    results.measure(5, Measurement(NAME, "", lambda: ablations(options, results)))
    errors = results.entries["5"][NAME]["result"]
    assert isinstance(errors, dict)
    names = ("the whole network", SWITCHES["overlap"].words)
    assert list(errors) == [f"top-1 error in %, {name}" for name in names]
    assert f"| {names[1]} | 1 |" in page(results, {})
    runs = sorted(results.runs.glob("ablate-*"))
    assert len(runs) == 2
    assert not list(results.runs.glob("*/checkpoints"))
    before = [(run / "rank-0.jsonl").stat().st_size for run in runs]
    assert ablations(options, results) == errors
    assert [(run / "rank-0.jsonl").stat().st_size for run in runs] == before


@pytest.mark.slow
def test_a_part_that_is_ended_keeps_what_it_has_and_goes_on(
    tmp_path: Path, sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Part 3, ended at its second measurement; the next call begins with that, and is ended in its
    turn."""
    command = [
        sys.executable,
        *"-m gratis report --part 3 --out".split(),
        str(tmp_path),
        "--shards",
        str(sample_shards),
    ]
    books = [{}]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("part 3, "):
                    break
            process.send_signal(number)
            _, printed = process.communicate(timeout=120)
        assert process.returncode == code, printed
        assert "Traceback" not in printed
        books.append(json.loads((tmp_path / "report.json").read_text())["parts"]["3"])
        assert books[-2].items() < books[-1].items()
        assert all("result" in entry for entry in books[-1].values())
    text = (tmp_path / "report.md").read_text()
    assert "Not complete: `gratis report --part 3` goes on" in text
    assert "TFLOP/s" in text
    assert "ours, tf32" in text.partition("Needs a GPU, not measured here: ")[2]
    report(ReportOptions(part=3, out=tmp_path, shards=sample_shards, seconds=1))
    assert "its time is over; --part 3 goes on" in capsys.readouterr().out


def test_a_training_of_another_machine_is_not_taken_for_this_one_s(
    tmp_path: Path, sample_shards: Path
) -> None:
    setting = cpu_setting(tmp_path, sample_shards)
    path = tmp_path / "report.json"
    both = [ResultFile(path=path, machine={"cpu": cpu}, seconds=1) for cpu in "ab"]
    mine, other = (ablate_options(setting, results) for results in both)
    assert mine.runs != other.runs
    assert mine.out != other.out
    assert replace(mine, runs=other.runs, out=other.out) == other


def test_tests_that_are_not_there_have_not_passed() -> None:
    with pytest.raises(RuntimeError, match="no test was found"):
        count_outcomes(ET.fromstring("<testsuites><testsuite/></testsuites>"))


def test_what_a_gpu_alone_could_measure_is_named(tmp_path: Path, sample_shards: Path) -> None:
    """By the code that would measure it, asked for its names."""
    setting = cpu_setting(tmp_path, sample_shards)
    missing = for_a_gpu(setting)
    assert set(missing) == {"1", "2", "3", "4", "5"}
    assert {
        "limit: host to device, pinned (PCIe)",
        "limit: device memory, copied (HBM)",
        "decoded, device",
    } < set(missing["2"])
    assert sum("hw_decoder_load" in name for name in missing["2"]) == len(LOADS)
    assert {"ours, tf32", "ours, bfloat16, compiled", "matrix product, bfloat16"} < set(
        missing["3"]
    )
    assert missing["4"] == []  # the same routes, at other sizes
    assert missing["5"] == []
    assert for_a_gpu(replace(setting, **sizes(cuda=True, images=1000))) == {}


def test_shares_of_a_step_s_time_are_by_layer() -> None:
    """Backward's too: without it the shares of layers would be less than half of the whole."""
    with torch.random.fork_rng():
        shares, seconds = by_stage(SMALL, torch.device("cpu"))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["rest"] < 0.4
    assert set(shares) >= {
        *LAYERS,
        "normalisation conv1",
        "pooling conv5",
        "activation fc7",
        "dropout 6",
        "update",
    }
    assert seconds > 0


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"machine": {}, "parts": {"2": {"a": {}}}}', '{"parts": {}}', "\0"]
)
def test_a_damaged_book_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(
        GratisError, match=r"report.json cannot be read \(.+\); move it away to measure anew"
    ):
        ResultFile.open(tmp_path / "report.json", {"cpu": "a"}, 1)
    assert (tmp_path / "report.json").read_text() == text


@pytest.mark.starts
def test_tests_that_fail_or_hang_are_failures_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    cases = """<testsuites><testsuite><testcase name="test_a[x]"><failure message="m">a = 1
E   assert
E     no module
    </failure></testcase><testcase name="test_b[x]">
    <skipped message="needs a GPU"/></testcase>
    <testcase name="test_b[y]"><skipped message="needs a GPU"/></testcase>
    <testcase name="test_c"/></testsuite></testsuites>"""
    outcome = count_outcomes(ET.fromstring(cases))
    assert outcome == {
        "passed": 1.0,
        "skipped": 2.0,
        "failed": "test_a[x]",
        "why": "no module",
        "not run": "test_b (needs a GPU)",
    }
    assert failure({"result": outcome}) == "test_a[x]"
    assert (
        failure({"result": count_outcomes(ET.fromstring("<a><testcase name='test_c'/></a>"))})
        is None
    )
    sleep = ["sleep", f"987.{os.getpid()}"]  # another run of this test has its own
    child = (
        f"import subprocess, sys; subprocess.Popen({sleep}).wait(); "
        f"open({str(tmp_path / 'a')!r}, 'w')"
    )
    with pytest.raises(OutOfTime):
        output([sys.executable, "-c", child], 3, OutOfTime())
    with pytest.raises(RuntimeError, match="not done in 1 s"):
        output([sys.executable, "-c", child], 1, None)

    def left() -> bool:
        return any(one.info["cmdline"] == sleep for one in psutil.process_iter(["cmdline"]))

    patience = time.monotonic() + 10  # a killed process is there until it is reaped
    while left() and time.monotonic() < patience:
        time.sleep(0.05)
    assert not left()


@pytest.mark.starts
def test_two_reports_in_one_place_take_turns(tmp_path: Path) -> None:
    with exclusive(tmp_path / "report", "the first"):
        done = subprocess.run(
            [sys.executable, "-m", "gratis", "report", "--out", str(tmp_path / "report")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another report is being made there" in done.stderr


@pytest.mark.starts
def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, words in (
        (["--seconds", "0"], "error: --seconds 0 must be above 0"),
        (["--out", str(tmp_path / "file")], "is not a folder"),
        (["--out", str(tmp_path), "--shards", str(tmp_path / "none")], "is no dataset"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "gratis", "report", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
