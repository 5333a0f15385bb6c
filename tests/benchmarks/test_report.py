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

from benchmarks.report import whole
from benchmarks.report.book import Book, OutOfTime, Result, described, failure
from benchmarks.report.command import Report, report
from benchmarks.report.correctness import FILES, SUBSAMPLINGS, counted, decoding, output
from benchmarks.report.live import trained
from benchmarks.report.loading import LOADS
from benchmarks.report.page import page, summary
from benchmarks.report.plan import for_a_gpu
from benchmarks.report.setting import Setting, sizes
from benchmarks.report.stages import by_stage
from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.history import records
from gratis.train.mesh.mesh import full_float32
from gratis.train.metrics import share_of_loss
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.optimiser import Optimiser
from gratis.train.options import parse
from gratis.train.paper.switches import SWITCHES
from gratis.train.recipes import LAYERS, RECIPES, RELEASED, Recipe
from gratis.train.schedule import rates
from gratis.written import alone

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
    optimiser, found = Optimiser(network, recipe), []
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(16, 3, 64, 64).normal_(0, 60, generator=generator).to(device)
    labels = (torch.arange(16) % 10).to(device)
    for step in range(steps):
        logits = network(images, DropoutKey(seed=0, step=step, rows=range(16)))
        loss = share_of_loss(logits, labels, 16)
        loss.backward()
        optimiser.step(rates(recipe, step, 100))
        found.append(loss.item())
    return found


@pytest.mark.parametrize("kind", [*SUBSAMPLINGS, "grey"])
def test_two_decoders_agree(kind: str, device: torch.device) -> None:
    """On a CPU DALI and Pillow, to the level; on a GPU nvJPEG and the CPU, which round otherwise:
    DALI's own test allows a level in the mean. With chroma repeated instead of interpolated it
    would be 2.9 for 4:2:0."""
    found = decoding(kind, device)
    print(f"{device}, {kind}: {described({'result': found})}")
    assert found["region against whole, largest"] == 0 or device.type == "cuda"
    if device.type == "cpu":
        assert (found["largest difference, levels"], found["mean"]) == (0.0, 0.0)
    else:
        assert float(str(found["mean"])) < 1.0


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
        book = Book.opened(tmp_path / "report.json", {"cpu": "a"}, 100)
        book.begin()
        for book.again in (False, True):
            for name in names:
                book.measure(2, name, "command", lambda n=name: measured(n))  # type: ignore[misc]
    # what has not been tried comes before what failed
    assert made == ["bad", "good", "late", "bad"]
    said = capsys.readouterr().out
    assert "part 2, good: images/s 2 [1..3] (n = 3)" in said
    assert "part 2, bad: failed: no such engine\n" in said
    assert json.loads((tmp_path / "report.json").read_text())["parts"]["2"]["bad"][
        "result"
    ] == result(1.0, 3.0, 2.0)


def test_a_defect_is_told_whole_and_a_mistake_ends_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = Book(path=tmp_path / "report.json", seconds=100)
    book.begin()

    def raises(error: Exception) -> Result:
        raise error

    book.measure(2, "defect", "", lambda: raises(KeyError("nvjpg")))
    assert "Traceback" in capsys.readouterr().err
    for error in (GratisError("--shards is none"), OutOfTime()):
        with pytest.raises(type(error)):
            book.measure(2, "mistake", "", lambda error=error: raises(error))  # type: ignore[misc]
    assert json.loads(book.path.read_text())["parts"] == {"2": book.entries["2"]}
    assert book.entries["2"]["defect"]["error"] == "KeyError: 'nvjpg'"
    assert list(book.entries["2"]) == ["defect"]


def test_every_test_that_wants_a_gpu_is_in_the_report() -> None:
    marked = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("tests/*/test_*.py")
        if "mark.gpu" in path.read_text()
    }
    assert marked == set(FILES)


def test_a_part_ends_with_its_time_and_another_machine_begins_anew(tmp_path: Path) -> None:
    book = Book.opened(tmp_path / "report.json", {"cpu": "a"}, 5)
    book.begin()
    book.measure(2, "short", "", lambda: result(1.0), needs=1)
    with pytest.raises(OutOfTime):
        book.measure(2, "long", "", lambda: result(1.0), needs=60)
    assert list(Book.opened(tmp_path / "report.json", {"cpu": "a"}, 5).entries["2"]) == ["short"]
    other = Book.opened(tmp_path / "report.json", {"cpu": "b"}, 5)
    assert other.entries == {}
    assert other.mark != book.mark  # so that it takes none of the first one's trainings for its own
    (kept,) = tmp_path.glob("report-*.json")
    assert json.loads(kept.read_text())["machine"] == {"cpu": "a"}
    other.begin()
    other.measure(2, "other", "", lambda: result(1.0), needs=1)
    # of the same code
    again = Book.opened(tmp_path / "report.json", {"cpu": "a", "commit": "another"}, 5)
    assert list(again.entries["2"]) == ["short"]
    assert again.machine["commit"] == "another"
    assert list(Book.opened(tmp_path / "report.json", {"cpu": "b"}, 5).entries["2"]) == ["other"]


def test_the_page_says_what_was_found_and_what_is_missing(tmp_path: Path) -> None:
    book = Book(path=tmp_path / "x.json", machine={"gpu": "none"}, seconds=1)
    entry: dict[str, object] = {"command": "a | b", "wall_s": 1.0, "load": 0.5}
    ours, plain = {"images/s": [20.0, 30.0, 22.0]}, {"images/s": [10.0, 11.0, 12.0]}
    book.entries = {
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
        "5": {
            f"{name}, seed {seed}": entry
            | {
                "result": {
                    "error top1, %": 50.0,
                    "error top1_10view, %": 40.0 + up + seed,
                    "error top5_10view, %": 18.0,
                }
            }
            for name, up, seeds in (("whole", 0, 2), ("pooling 2x2 every 2", 0.5, 3))
            for seed in range(seeds)
        },
    }
    book.entries["5"]["whole, seed 2"] = entry | {"error": "training diverged"}
    book.entries["5"]["no dropout, seed 0"] = entry | {
        "result": {"note": "a run without validation images"}
    }
    book.complete = ["1", "3"]
    book.entries["5"]["figures 3 and 4"] = entry | {"result": {"conv1": "figures/conv1.png"}}
    text = page(copy.deepcopy(book), {"2": ["hardware", "device"]})
    assert "ours, bfloat16, batch 32, 2.00 times (goal of 2 met)" in text
    assert "Failed: update rule." in text
    assert "Failed: pytest a.py." in text
    assert "Failed: whole, seed 2." in text
    assert "Best: jpeg, batch 32, 0.95 (goal of 0.99 missed)" in text
    assert "Needs a GPU, not measured here: hardware; device." in text
    assert "does not agree for jpeg, batch 32" in text
    assert (
        "| whole | 2 | 50.0 [50.0..50.0] | 40.5 [40.0..41.0] | 18.0 [18.0..18.0] |  |  |  |" in text
    )
    assert (
        "| pooling 2x2 every 2 | 3 | 50.0 [50.0..50.0] | 41.5 [40.5..42.5] | 18.0 [18.0..18.0] | "
        "+0.5 [+0.5..+0.5], n = 2 | +0.0 [+0.0..+0.0], n = 2 | 0.4 / 0.3 |"
    ) in text
    assert "| no dropout |" not in text
    assert "![conv1](figures/conv1.png)" in text
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
    found: dict[str, object] = {"free ratio": ratios, "agree": "yes"}
    assert words in summary("4", {"jpeg, batch 32": {"result": found}})[0]


@pytest.mark.parametrize("name", ["whole", *SWITCHES])
def test_variants_of_part_5_are_the_ablations(name: str, tmp_path: Path) -> None:
    """What `gratis train` makes of a variant's flags is what the ablation runner trains."""
    recipe = replace(RECIPES["sample"], image_size=128, crop=112, width=1 / 8)
    plain = ("--recipe", "sample", "--image-size", "128", "--crop", "112", "--width", "0.125")
    setting = Setting(
        device=torch.device("cpu"),
        out=tmp_path,
        jpeg=tmp_path,
        raw=tmp_path,
        recipe=recipe,
        flags=plain,
        batches=(),
        free_batches=(),
        rounds=1,
        round_s=1.0,
    )
    wanted = SWITCHES[name].off(recipe) if name in SWITCHES else recipe
    assert parse(list(whole.flags(setting, name))).fields == replace(wanted, epochs=4)


@pytest.mark.slow
def test_figures_of_the_finished_run_are_in_the_page(tmp_path: Path, sample_shards: Path) -> None:
    """In a part too short for anything else; its checkpoints are gone once it is drawn."""
    manifest = read_manifest(sample_shards)
    setting = Setting(
        device=torch.device("cpu"),
        out=tmp_path,
        jpeg=sample_shards,
        raw=sample_shards,
        recipe=RECIPES["sample"],
        flags=(),
        batches=(),
        free_batches=(),
        rounds=1,
        round_s=1.0,
    )
    book = Book.opened(tmp_path / "report.json", {"gpu": "none"}, 0)
    command = [
        sys.executable,
        *"-m gratis train --shards".split(),
        str(sample_shards),
        "--runs",
        str(whole.runs(setting, book)),
        *"--run whole-0 --port 0 --recipe sample --image-size".split(),
        str(manifest.image_size),
        *"--width 0.0625 --batch 100 --epochs 1 --gpus 1".split(),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500)
    book.begin()
    with pytest.raises(OutOfTime):
        whole.figures(setting, book)
    book.seconds = 400
    book.begin()
    book.measure(5, whole.FIGURES, "", lambda: whole.figures(setting, book))
    pngs = book.entries["5"][whole.FIGURES]["result"]
    assert isinstance(pngs, dict)
    assert set(pngs) == {"conv1", "top5", "neighbours"}
    assert all(
        f"]({png})" in page(book, {}) and (tmp_path / png).stat().st_size > 1000
        for png in pngs.values()
    )
    assert not (tmp_path / "runs" / book.mark / "whole-0" / "checkpoints").exists()


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
    for told, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("part 3, "):
                    break
            process.send_signal(told)
            _, said = process.communicate(timeout=120)
        assert process.returncode == code, said
        assert "Traceback" not in said
        books.append(json.loads((tmp_path / "report.json").read_text())["parts"]["3"])
        assert books[-2].items() < books[-1].items()
        assert all("result" in entry for entry in books[-1].values())
    text = (tmp_path / "report.md").read_text()
    assert "Not complete: `gratis report --part 3` goes on" in text
    assert "TFLOP/s" in text
    assert "ours, tf32" in text.partition("Needs a GPU, not measured here: ")[2]
    report(Report(part=3, out=tmp_path, shards=sample_shards, seconds=1))
    assert "its time is over; --part 3 goes on" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_that_diverges_is_a_result_and_a_mistake_ends_the_report(
    tmp_path: Path, sample_shards: Path
) -> None:
    arguments = (
        "--shards",
        str(sample_shards),
        "--runs",
        str(tmp_path / "runs"),
        "--recipe",
        "sample",
    )
    with pytest.raises(RuntimeError, match="training failed: error: "):
        trained((*arguments, "--gpus", "1", "--rate", "1e30"), seconds=300, log=tmp_path / "a.txt")
    with pytest.raises(GratisError, match="training failed: error: --gpus 0"):
        trained((*arguments, "--gpus", "0"), seconds=300, log=tmp_path / "b.txt")


def test_a_training_of_another_machine_is_not_taken_for_this_one_s(
    tmp_path: Path, sample_shards: Path
) -> None:
    """Even where its output and its run are still there."""
    setting = Setting(
        device=torch.device("cpu"),
        out=tmp_path,
        jpeg=sample_shards,
        raw=sample_shards,
        recipe=RECIPES["sample"],
        flags=("--recipe", "sample"),
        batches=(),
        free_batches=(),
        rounds=1,
        round_s=1.0,
    )
    mine, other = (Book(path=tmp_path / "x.json", machine={"cpu": cpu}, seconds=1) for cpu in "ab")
    log = tmp_path / "logs" / mine.mark / "whole-0.txt"
    log.parent.mkdir(parents=True)
    log.write_text("result top1=0.75\n")
    assert whole.result(setting, mine, whole.WHOLE, 0) == {"error top1, %": 25.0}
    with pytest.raises(OutOfTime):  # it would have to train, for which there is no time
        whole.result(setting, other, whole.WHOLE, 0)


def test_tests_that_are_not_there_have_not_passed() -> None:
    with pytest.raises(RuntimeError, match="no test was found"):
        counted(ET.fromstring("<testsuites><testsuite/></testsuites>"))


def test_what_a_gpu_alone_could_measure_is_named(tmp_path: Path, sample_shards: Path) -> None:
    """By the code that would measure it, asked for its names."""
    setting = Setting(
        out=tmp_path,
        jpeg=sample_shards,
        raw=sample_shards,
        recipe=RECIPES["sample"],
        flags=(),
        **sizes(cuda=False, images=1000),
    )
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
    assert missing["5"] == ["paper recipe"]
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
        Book.opened(tmp_path / "report.json", {"cpu": "a"}, 1)
    assert (tmp_path / "report.json").read_text() == text


def test_tests_that_fail_or_hang_are_failures_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    cases = """<testsuites><testsuite><testcase name="test_a[x]"><failure message="m">a = 1
E   assert
E     no module
    </failure></testcase><testcase name="test_b[x]">
    <skipped message="needs a GPU"/></testcase>
    <testcase name="test_b[y]"><skipped message="needs a GPU"/></testcase>
    <testcase name="test_c"/></testsuite></testsuites>"""
    found = counted(ET.fromstring(cases))
    assert found == {
        "passed": 1.0,
        "skipped": 2.0,
        "failed": "test_a[x]",
        "why": "no module",
        "not run": "test_b (needs a GPU)",
    }
    assert failure({"result": found}) == "test_a[x]"
    assert failure({"result": counted(ET.fromstring("<a><testcase name='test_c'/></a>"))}) is None
    child = (
        f"import subprocess, sys; subprocess.Popen(['sleep', '987']).wait(); "
        f"open({str(tmp_path / 'a')!r}, 'w')"
    )
    with pytest.raises(OutOfTime):
        output([sys.executable, "-c", child], 3, OutOfTime())
    with pytest.raises(RuntimeError, match="not done in 1 s"):
        output([sys.executable, "-c", child], 1, None)
    assert not [
        one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "987"]
    ]


def test_two_reports_in_one_place_take_turns(tmp_path: Path) -> None:
    with alone(tmp_path / "report", "the first"):
        done = subprocess.run(
            [sys.executable, "-m", "gratis", "report", "--out", str(tmp_path / "report")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another report is being made there" in done.stderr


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
