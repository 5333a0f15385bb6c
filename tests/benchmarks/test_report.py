"""The report: bounded, honest about what failed, goes on where it was ended; and training on a
device follows training on the CPU."""

from __future__ import annotations

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

from benchmarks.report.command import report
from benchmarks.report.correctness import FILES, SUBSAMPLINGS, apart, count_outcomes, output
from benchmarks.report.decoders import counted, taken
from benchmarks.report.kernels import by_kernel
from benchmarks.report.page import goals, page
from benchmarks.report.plan import SECTIONS, Measurement, measurements
from benchmarks.report.results import Result, ResultFile, describe_entry, failure
from benchmarks.report.setting import Setting, lengthen
from benchmarks.report.worker import Worker
from gratis.atomic import exclusive
from gratis.errors import GratisError
from gratis.history import records
from gratis.loader import Loader, LoaderConfig
from gratis.train.mesh.mesh import full_float32
from gratis.train.metrics import share_of_loss
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.optimiser import Optimiser
from gratis.train.recipes import RELEASED, Recipe
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
    differences = apart(kind, device)
    print(f"{device}, {kind}: {describe_entry({'result': differences})}")
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
    assert narrow == pytest.approx(wide, rel=0.04)


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


def setting_of(out: Path, shards: Path | None = None) -> Setting:
    return Setting(device=torch.device("cpu"), out=out, shards=shards)


def works(setting: Setting) -> Result:
    return {"images/s": [1.0, 3.0, 2.0]}


def raises(setting: Setting) -> Result:
    raise KeyError("nvjpg")


def lacks(setting: Setting) -> Result:
    raise ImportError("torchvision is not installed")


def hangs(setting: Setting) -> Result:
    child = subprocess.Popen(["sleep", f"987.{setting.out.name}"])
    return {"exit code": float(child.wait())}


def crashes(setting: Setting) -> Result:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def sleepers(setting: Setting) -> int:
    command = ["sleep", f"987.{setting.out.name}"]
    return sum(one.info["cmdline"] == command for one in psutil.process_iter(["cmdline"]))


@pytest.mark.starts
def test_whatever_happens_to_a_row_the_next_goes_on(tmp_path: Path) -> None:
    """An error, a package that is not there, a process that hangs with what it started, one that
    the system ends."""
    setting = setting_of(tmp_path / str(os.getpid()))
    worker, found = Worker(setting), {}
    try:
        for make in (works, raises, lacks, hangs, crashes, works):
            row = Measurement("a", make.__name__, make, 1)
            found[make.__name__] = describe_entry(worker.measure(row, 3.0))
        found["ends"] = describe_entry(worker.measure(Measurement("a", "", hangs, 1), 9.0, 2.0))
    finally:
        worker.end()
    assert found == {
        "works": "images/s 2 [1..3] (n = 3)",
        "raises": "failed: KeyError: 'nvjpg'",
        "lacks": "failed: torchvision is not installed",
        "hangs": "failed: not done in 3 s, and ended",
        "crashes": "failed: the process ended: SIGSEGV",
        "ends": "failed: not done in the 2 s that were left, and ended",
    }
    patience = time.monotonic() + 10  # a killed process is there until it is reaped
    while sleepers(setting) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not sleepers(setting)


@pytest.mark.starts
def test_what_is_known_is_not_measured_again_and_what_does_not_fit_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [Measurement("a", one.__name__, one, 1) for one in (lacks, works)]
    rows.append(Measurement("b", "too long", works, 1e6))
    results = report(setting_of(tmp_path), rows, time.monotonic() + 600)
    printed = capfd.readouterr().out
    assert "a. works: images/s 2 [1..3] (n = 3)\n" in printed
    assert "no time was left for 1 of 3 rows" in printed
    text = (tmp_path / "report.md").read_text()
    assert "| too long | not measured, takes about 1000000 s |" in text
    assert "**Failed: a. lacks.**" in text
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["entries"] == results.entries
    assert list(saved["entries"]) == ["a. lacks", "a. works"]
    report(setting_of(tmp_path), rows, time.monotonic() + 600)
    again = capfd.readouterr().out
    assert "a. lacks: failed" in again  # what failed is tried again
    assert "a. works" not in again


@pytest.mark.slow
def test_a_report_that_is_killed_leaves_what_it_knew_and_nothing_running(
    tmp_path: Path, sample_shards: Path
) -> None:
    command = "-m gratis report --device cpu --only a --out".split()
    command = [sys.executable, *command, str(tmp_path), "--shards", str(sample_shards)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if "a. decoder" in line:
                break
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    saved = json.loads((tmp_path / "report.json").read_text())["entries"]
    assert "result" in saved["a. datasets are made"]
    assert "| not measured, takes about" in (tmp_path / "report.md").read_text()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert gone
    assert not alive


@pytest.mark.slow
def test_the_rehearsal_on_a_cpu_measures_every_row(tmp_path: Path, sample_shards: Path) -> None:
    """The smallest form of each, to its end. Of peers that are not installed there is a row that
    says so."""
    command = "-m gratis report --device cpu --minutes 12 --out".split()
    command = [sys.executable, *command, str(tmp_path), "--shards", str(sample_shards)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "report.json").read_text())["entries"]
    rows = measurements(cuda=False)
    assert list(entries) == [row.key for row in rows]
    failed = {key: why for key, entry in entries.items() if (why := failure(entry))}
    absent = {row.key for row in rows if row.needs == "torchvision"}
    assert set(failed) <= absent, failed
    assert all("torchvision" in why for why in failed.values())
    assert "not measured" not in (tmp_path / "report.md").read_text()


def test_the_order_is_that_of_worth_and_the_first_rows_fit_into_eight_minutes() -> None:
    for cuda in (False, True):
        rows = measurements(cuda=cuda)
        assert len({row.key for row in rows}) == len(rows)
        first = [row for row in rows if row.first]
        assert rows[: len(first)] == first
        assert list(dict.fromkeys(row.section for row in first)) == list(SECTIONS)
        assert sum(row.seconds for row in first) <= 8 * 60


def test_every_test_that_wants_a_gpu_is_in_the_report() -> None:
    marked = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("tests/*/test_*.py")
        if "mark.gpu" in path.read_text()
    }
    assert marked == {file for files in FILES.values() for file in files}


def test_results_of_another_machine_are_kept_beside(tmp_path: Path) -> None:
    path, entry = tmp_path / "report.json", {"result": {"passed": 1.0}, "wall_s": 1.0}
    mine = ResultFile.open(path, {"cpu": "a"})
    mine.entries["a. x"] = dict(entry)
    mine.write()
    # of the same code
    assert ResultFile.open(path, {"cpu": "a", "commit": "another"}).entries == {"a. x": entry}
    assert ResultFile.open(path, {"cpu": "b"}).entries == {}
    (kept,) = tmp_path.glob("report-*.json")
    assert json.loads(kept.read_text())["machine"] == {"cpu": "a"}


@pytest.mark.parametrize(
    ("ratios", "words"),
    [([0.9, 0.98, 0.99], "at best 0.98 (d. x); 0.99 is missed"), ([0.98, 0.99, 1.2], "is reached")],
)
def test_goals_are_by_the_median_of_the_best_row(ratios: list[float], words: str) -> None:
    entries: dict[str, dict[str, object]] = {
        "d. x": {"result": {"free ratio": ratios}},
        "d. y": {"result": {"free ratio": [0.5]}},
        "d. z": {"error": "no"},
    }
    (line,) = goals(entries)
    assert words in line


def test_the_page_of_nothing_names_every_row(tmp_path: Path) -> None:
    results = ResultFile(path=tmp_path / "x.json", machine={"gpu": "a | b"})
    rows = measurements(cuda=True)
    text = page(results, rows, setting_of(tmp_path))
    assert text.count("not measured, takes about") == len(rows)
    assert "a \\| b" in text
    assert "the rehearsal on a CPU" in text


@pytest.mark.starts
def test_dali_s_log_says_which_decoder_took_each_image(sample_shards: Path) -> None:
    setting = setting_of(sample_shards, sample_shards)
    assert taken(setting, hardware_load=0.0) == {"images by": "libjpeg_turbo_decoder 64"}


def test_a_log_that_names_no_decoder_is_no_result() -> None:
    log = "[INFO] 0: nvjpeg_cuda_decoder process #0\n[INFO] 0: libjpeg_turbo_decoder process #1"
    assert counted(log) == {"images by": "nvjpeg_cuda_decoder 1, libjpeg_turbo_decoder 1"}
    with pytest.raises(RuntimeError, match="cannot be known"):
        counted("[INFO] decode num_samples=3")


def test_the_kernels_of_a_step_are_those_of_the_profiler() -> None:
    with torch.profiler.profile() as profiled:
        torch.mm(torch.ones(300, 300), torch.ones(300, 300))
    times = by_kernel(profiled.events(), cuda=False)
    assert max(times, key=lambda name: times[name]) in ("aten::mm", "aten::fill_")
    assert by_kernel(profiled.events(), cuda=True) == {}


def test_tests_that_are_not_there_have_not_passed() -> None:
    with pytest.raises(RuntimeError, match="no test was found"):
        count_outcomes(ET.fromstring("<testsuites><testsuite/></testsuites>"))


def test_outcomes_of_tests_are_counted_and_failures_named() -> None:
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
    passed = count_outcomes(ET.fromstring("<a><testcase name='test_c'/></a>"))
    assert failure({"result": passed}) is None


@pytest.mark.starts
def test_tests_that_hang_are_interrupted_and_tell_what_they_have() -> None:
    waits = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('what there is')"
    assert output([sys.executable, "-c", waits], 2) == "what there is\n"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"machine": {}, "entries": {"a. b": {}}}', '{"entries": {}}', "\0"]
)
def test_a_damaged_file_is_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(
        GratisError, match=r"report.json cannot be read \(.+\); move it away to measure anew"
    ):
        ResultFile.open(tmp_path / "report.json", {"cpu": "a"})
    assert (tmp_path / "report.json").read_text() == text


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
        (["--minutes", "0"], "error: --minutes 0 must be above 0"),
        (["--only", "ax"], "error: --only ax: 'x' is none of the sections a to g"),
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


def test_a_lengthened_dataset_has_each_sample_so_many_times(
    tmp_path: Path, jpeg_dataset: Path
) -> None:
    lengthen(jpeg_dataset, tmp_path / "long", 3)
    config = LoaderConfig.evaluation(batch_size=101, crop=48)
    with (
        Loader(jpeg_dataset, "train", config) as once,
        Loader(tmp_path / "long", "train", config) as long,
    ):
        (wanted,) = list(once)
        batches = list(long)
        assert len(batches) == 3
        for number, batch in enumerate(batches):
            assert torch.equal(batch.images, wanted.images)
            assert torch.equal(batch.labels, wanted.labels)
            assert torch.equal(batch.ids, wanted.ids + 101 * number)
