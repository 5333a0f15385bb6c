"""The doctor finds what is there, and removes what it listed and nothing else."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from gratis import doctor as doctor_module
from gratis.events import EventWriter

ROOT = Path(__file__).resolve().parents[1]
# by an interpreter that is isolated from its own packages and from the environment
BARE = (
    f"import sys; sys.path.append({str(ROOT)!r}); sys.argv[1:] = ['doctor']; "
    "from gratis.cli import main; sys.exit(main())"
)


def doctor(
    folder: Path, *arguments: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gratis", "doctor", *arguments],
        cwd=folder,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=120,
    )


def make_run(folder: Path, outcome: str | None) -> Path:
    writer = EventWriter(folder / "rank-0.jsonl", attempt=1, rank=0)
    writer.write("start", {"run": folder.name})
    if outcome:
        writer.write("end", {"outcome": outcome, "error": None})
    writer.close()
    (folder / "lock").touch()
    return folder


@pytest.mark.starts
def test_findings_are_this_machines(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        done = doctor(tmp_path, "--port", str(number))
    assert f"port {number} is taken" in done.stdout
    assert f"{len(os.sched_getaffinity(0))} CPU cores" in done.stdout
    assert f"torch {torch.__version__}" in done.stdout
    assert ("no GPU" in done.stdout) == (not torch.cuda.is_available())
    assert "DALI" in done.stdout or "nvidia-dali" in done.stdout
    assert all(line.startswith(("good ", "note ", "bad ")) for line in done.stdout.splitlines())
    assert done.returncode == ("bad " in done.stdout)


@pytest.mark.starts
def test_bare_python_says_what_is_missing(tmp_path: Path) -> None:
    """Isolated and without its packages: what a machine is before anything was installed."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", BARE], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    for missing in ("no Pillow", "no torch", "no DALI"):
        assert f"bad   {missing}: `make install`" in done.stdout


@pytest.mark.starts
def test_advice_is_pip_s_where_there_is_no_checkout(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gratis", tmp_path / "site" / "gratis")
    bare = BARE.replace(repr(str(ROOT)), repr(str(tmp_path / "site")))
    command = [sys.executable, "-I", "-S", "-c", bare]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "bad   no Pillow: `pip install 'pillow>=11'` brings it" in done.stdout
    assert "bad   no DALI: `pip install 'nvidia-dali-cuda130>=2'` brings it" in done.stdout
    assert "make " not in done.stdout


@pytest.mark.starts
def test_memory_of_a_control_group_is_what_is_available(tmp_path: Path) -> None:
    group = tmp_path / "groups" / "job"
    group.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/job\n")
    for name, value in (
        ("memory.max", 3_000_000_000),
        ("memory.current", 1_500_000_000),
        ("memory.stat", "anon 1\ninactive_file 500000000"),
    ):
        (group / name).write_text(f"{value}\n")
    places = f"m.OWN, m.GROUPS = Path({str(tmp_path / 'own')!r}), Path({str(group.parent)!r})"
    code = f"from pathlib import Path; import gratis.memory as m; {places}"
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        BARE.replace("from gratis", f"{code}; from gratis"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "note  2 GB of memory available" in done.stdout


@pytest.mark.starts
def test_formats_that_pillow_was_built_without_are_named(tmp_path: Path) -> None:
    """By a Pillow that has none."""
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").touch()
    (tmp_path / "PIL" / "_imaging.py").touch()
    (tmp_path / "PIL" / "features.py").write_text("def check(name): return False\n")
    done = doctor(tmp_path, env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert "note  Pillow is built without webp and libtiff: " in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="processor affinity is Linux's")
@pytest.mark.starts
def test_no_more_cores_than_the_process_may_use(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(core), sys.executable, "-I", "-S", "-c", BARE]
    assert (
        "note  1 CPU cores"
        in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    )


@pytest.mark.starts
def test_old_runs_are_listed_and_removed_on_request(tmp_path: Path) -> None:
    finished = make_run(tmp_path / "runs" / "sample-1", "finished")
    broken = make_run(tmp_path / "runs" / "sample-2", None)
    with (broken / "rank-0.jsonl").open("a") as events:
        events.write("[1]\n")  # no record of ours
    living = make_run(tmp_path / "runs" / "sample-3", None)
    for name, kinds in (("shards", ["start", "end"]), ("sharding", ["start"])):
        writer = EventWriter(tmp_path / "runs" / name / "shards.jsonl", attempt=1, rank=0)
        for kind in kinds:
            writer.write(kind, {"outcome": "finished"})
        writer.close()
    with (living / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        listed = [line for line in doctor(tmp_path).stdout.splitlines() if line.startswith("left ")]
        assert [line.split(",")[0] for line in listed] == [
            "left  runs/sample-1: run",
            "left  runs/sample-2: run",
            "left  runs/shards: the shard stage's events",
        ]
        assert "finished" in listed[0]
        assert "broken off" in listed[1]
        (finished / "starter").touch()
        with (finished / "starter").open() as starter:  # a command that is about to begin with it
            fcntl.flock(starter, fcntl.LOCK_EX)
            assert "runs/sample-1" not in doctor(tmp_path).stdout
        refused = doctor(tmp_path, "--remove", "runs/sample-3")
        assert (refused.returncode, living.is_dir()) == (2, True)
    removed = doctor(tmp_path, "--remove", "runs/sample-2")
    assert (removed.returncode, broken.exists(), finished.exists()) == (0, False, True)


@pytest.mark.starts
def test_nothing_else_is_removed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    make_run(tmp_path / "runs" / "sample-1", "finished")
    for path in ("photos", "runs", ".", "nowhere"):
        done = doctor(tmp_path, "--remove", path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "photos").is_dir()
    assert (tmp_path / "runs" / "sample-1").is_dir()


@pytest.mark.starts
def test_a_link_and_a_run_named_twice_are_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "sample-1", "finished")
    (tmp_path / "runs" / "newest").symlink_to(run)
    done = doctor(tmp_path, "--remove", "runs/newest")
    assert (done.returncode, len(done.stderr.splitlines()), run.is_dir()) == (2, 1, True)
    done = doctor(tmp_path, "--remove", "runs/sample-1", "--remove", "runs/sample-1/")
    assert (done.returncode, len(done.stderr.splitlines()), run.exists()) == (2, 1, False)


@pytest.mark.starts
def test_a_number_that_is_no_port_is_a_line(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--port", "99999")
    assert "port 99999 is none" in done.stdout
    assert not done.stderr


def test_abandoned_shards_are_those_of_a_killed_stage(tmp_path: Path, sample_source: Path) -> None:
    """A real stage: in use while it lives, abandoned once it is killed; other files in its folder
    stay."""
    out = tmp_path / "shards"
    command = [
        sys.executable,
        *"-m gratis shards --src".split(),
        str(sample_source),
        "--out",
        str(out),
        *"--workers 1 --samples-per-shard 16".split(),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as stage:
        deadline = time.monotonic() + 60
        while not list(out.glob("train-*.tar")) and time.monotonic() < deadline:
            time.sleep(0.02)
        stage.send_signal(signal.SIGSTOP)
        meanwhile = doctor(tmp_path).stdout
        stage.kill()
    assert "shards begun" not in meanwhile
    time.sleep(1)  # its workers end by themselves
    assert f"left  {out.name}: shards begun and not finished" in doctor(tmp_path).stdout
    mine = [out / "notes.txt", out / "train-90000.tar"]
    for path in mine:
        path.write_text("mine")
    assert doctor(tmp_path, "--remove", "shards").returncode == 0
    assert sorted(out.iterdir()) == mine


@pytest.mark.starts
def test_tars_of_somebody_else_are_no_abandoned_shards(tmp_path: Path) -> None:
    """What an index command leaves behind that was killed: it writes beside tars that it does not
    own."""
    tars = tmp_path / "shards"
    (tars / ".work").mkdir(parents=True)
    (tars / ".work" / "lock").touch()
    (tars / "train-00000.tar").write_text("mine")
    assert "shards begun" not in doctor(tmp_path).stdout
    assert doctor(tmp_path, "--remove", "shards").returncode == 2
    assert (tars / "train-00000.tar").read_text() == "mine"


class Here:
    """The doctor in this process and this folder: what it answers, and says."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def remove(self, *paths: str, shards: tuple[str, ...] = ()) -> tuple[int, str, str]:
        asked = [word for path in paths for word in ("--remove", path)]
        folders = ("--shards", *shards) if shards else ()
        code = doctor_module.main([*asked, *folders])
        out, err = self.capsys.readouterr()
        return code, out, err


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    monkeypatch.chdir(tmp_path)
    return Here(capsys)


def shard_events(folder: Path, *kinds: str) -> Path:
    writer = EventWriter(folder / "shards.jsonl", attempt=1, rank=0)
    for kind in kinds:
        writer.write(kind, {"outcome": "failed"})
    writer.close()
    return folder


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_left_is_what_nobody_writes_to(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    finished, broken = make_run(runs / "b", "finished"), make_run(runs / "a", None)
    over = shard_events(runs / "c", "start", "end")
    shard_events(runs / "d", "start")  # no lock tells whether it still lives
    shard_events(make_run(runs / "e", "finished"), "start", "end")
    (finished / "weights").mkdir()
    (finished / "weights" / "x.pt").write_bytes(bytes(2_000_000))
    day = time.time() - 3 * 86_400
    os.utime(finished / "rank-0.jsonl", (day, day))
    found = [*doctor_module.old_runs(runs)]
    assert [(one.path, one.what) for one in found] == [
        (broken, "run, broken off"),
        (finished, "run, finished"),
        (runs / "e", "run, finished"),
        (over, "the shard stage's events, failed"),
    ]
    size = 2_000_000 + sum((finished / name).stat().st_size for name in ("rank-0.jsonl", "lock"))
    assert found[1].size == size
    assert found[1].days == pytest.approx(3, abs=0.01)
    assert str(found[1]) == f"{finished}: run, finished, 3 days old, 0.00 GB"
    for name in ("lock", "starter"):
        (finished / name).touch()
        with (finished / name).open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert finished not in [one.path for one in doctor_module.old_runs(runs)]
    assert [*doctor_module.old_runs(tmp_path / "nowhere")] == []


def test_what_was_listed_is_removed_and_nothing_else(here: Here, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", "finished")
    make_run(tmp_path / "runs" / "b", "finished")
    living = make_run(tmp_path / "runs" / "c", None)
    (tmp_path / "runs" / "newest").symlink_to("a")
    (tmp_path / "photos").mkdir()
    before = names_below(tmp_path)
    with (living / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for path in ("photos", "runs", ".", "nowhere", "runs/newest", "runs/c", "runs/a/lock"):
            assert here.remove(path) == (
                2,
                "",
                f"error: {path} is no old run and no abandoned shards; nothing was removed of it\n",
            )
        assert names_below(tmp_path) == before
        code, out, _ = here.remove("runs/b")
        assert (code, out.startswith("removed runs/b: run, finished, 0 days old, ")) == (0, True)
    assert names_below(tmp_path) == [one for one in before if not one.startswith("runs/b")]
    code, _, err = here.remove("runs/a", "runs/a/")
    assert (code, err.count("\n"), (tmp_path / "runs" / "a").exists()) == (2, 1, False)


PLAN = {"draft": {"samples_per_shard": 10}, "counts": {"train": 11, "val": 10}}
PLANNED = [
    *("rejects.jsonl", "stats.npz", "train-00000.idx", "train-00000.tar", "train-00001.idx"),
    *("train-00001.tar", "train.index.npz", "val-00000.idx", "val-00000.tar", "val.index.npz"),
]


def begun(folder: Path, plan: object = PLAN) -> Path:
    (folder / ".work").mkdir(parents=True)
    (folder / ".work" / "plan.json").write_text(json.dumps(plan))
    (folder / ".work" / "lock").touch()
    return folder


def test_of_abandoned_shards_goes_what_their_plan_names(here: Here, tmp_path: Path) -> None:
    """Two shards of 11 images, and one."""
    folder = begun(tmp_path / "shards")
    assert sorted(doctor_module.planned_files(folder / ".work" / "plan.json")) == PLANNED
    mine = ["notes.txt", "train-00002.tar", "val-00001.idx", "test-00000.tar"]
    for name in [*PLANNED, *mine]:
        (folder / name).touch()
    (found,) = doctor_module.abandoned_shards([folder])
    assert (found.path, found.what.startswith("shards begun and not finished")) == (folder, True)
    with (folder / ".work" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert [*doctor_module.abandoned_shards([folder])] == []
        assert here.remove("shards")[0] == 2
    code, out, _ = here.remove("shards")
    assert (code, out.startswith("removed shards: shards begun and not finished")) == (0, True)
    assert names_below(folder) == sorted(mine)
    begun(tmp_path / "mine")
    assert here.remove("mine", shards=("mine",))[0] == 0
    assert not (tmp_path / "mine").exists()  # nothing was left in it


def odd_plan(per_shard: object, counts: object) -> dict[str, object]:
    return {"draft": {"samples_per_shard": per_shard}, "counts": counts}


@pytest.mark.parametrize(
    "plan",
    [
        *([], {}, odd_plan(10, 3), odd_plan(10, None), odd_plan(0, {"train": 1})),
        *(odd_plan("x", {"train": 1}), odd_plan(1.0, {"train": 1}), odd_plan(1, {"train": "x"})),
        odd_plan(10, {"../mine": 10}),  # no name of a split leads out of the folder
    ],
)
def test_of_a_plan_that_cannot_be_read_nothing_but_it_goes(
    here: Here, tmp_path: Path, plan: object
) -> None:
    folder = begun(tmp_path / "shards-a", plan)
    (folder / "train-00000.tar").touch()
    (tmp_path / "mine-00000.tar").touch()
    assert [*doctor_module.planned_files(folder / "nowhere")] == []
    assert here.remove("shards-a")[0] == 0
    assert names_below(tmp_path) == ["mine-00000.tar", "shards-a", "shards-a/train-00000.tar"]


def test_what_is_published_or_has_no_plan_is_not_abandoned(tmp_path: Path) -> None:
    published, other = begun(tmp_path / "a"), begun(tmp_path / "b")
    (published / "manifest.json").touch()
    (other / ".work" / "plan.json").unlink()
    folders = [published, other, tmp_path / "nowhere"]
    assert [*doctor_module.abandoned_shards(folders)] == []


def test_a_port_is_free_taken_or_none() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        found = doctor_module.port(number)
    means = f"gratis train takes the next free one, gratis status wants --port {number + 1}"
    assert (found.level, found.what, found.meaning) == ("note", f"port {number} is taken", means)
    found = doctor_module.port(number)
    assert (found.level, found.what) == ("good", f"port {number} is free")
    found = doctor_module.port(65_536)
    assert (found.level, found.what) == ("note", "port 65536 is none")


class Usage(NamedTuple):
    total: float
    free: float


@pytest.mark.parametrize(
    ("gb", "levels"),  # free on the disk, of memory, and of /dev/shm
    [
        ((50, 9, 1), "good good"),
        ((43.9, 4, 0.5), "note note"),
        ((1.1, 9, 0.4), "note good note"),
        ((0.9, 9, 1), "bad good"),
    ],
)
def test_disk_and_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gb: tuple[float, float, float], levels: str
) -> None:
    """1.33 million images of 33,000 bytes are 43.9 GB."""
    free, available, shared = (one * 1e9 for one in gb)
    text = tmp_path / "meminfo"
    text.write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available / 1024:.0f} kB\n")
    monkeypatch.setattr("gratis.memory.MACHINE", text)
    monkeypatch.setattr("gratis.memory.OWN", tmp_path / "none")
    usage = {".": Usage(0, free), "/dev/shm": Usage(shared, 0)}
    monkeypatch.setattr(shutil, "disk_usage", usage.__getitem__)
    found = [*doctor_module.disk_and_memory()]
    assert [one.level for one in found] == levels.split()
    assert found[0].what == f"{free / 1e9:.0f} GB of disk free here"
    assert found[0].meaning == "ImageNet's shards take about 44 GB"
    assert found[1].what == f"{available / 1e9:.0f} GB of memory available"
    assert [one.what for one in found[2:]] == ["0.40 GB of /dev/shm"] * (shared < 5e8)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What commands answer, by their first words, and which packages are installed."""

    def of(answers: dict[str, str], **packages: str) -> None:
        def run(command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
            asked = "torch" if "torch" in command[-1] else "PIL" if "PIL" in command[-1] else ""
            name = asked or command[0]
            if name not in answers:
                raise FileNotFoundError(name)
            code = int(answers[name] == "fails")
            return subprocess.CompletedProcess(command, code, answers[name], "")

        def version(name: str) -> str:
            if (found := packages.get(name.replace("-", "_"))) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(importlib.metadata, "version", version)

    return of


H200 = "NVIDIA H200, 580.65, 143771 MiB"
OLD = "Tesla T4, 550.54, 15360 MiB"


@pytest.mark.parametrize(
    ("gpus", "torch_answer", "expected"),
    [
        ([], "2.9 None 0", ["note no GPU", "good torch 2.9, built for CPUs"]),
        ([], "fails", ["note no GPU", "bad torch 2.9.1"]),
        ([], "2.9 None", ["note no GPU", "bad torch 2.9.1"]),
        (
            [H200],
            "2.9 13.0 1",
            ["good GPU 0 NVIDIA H200, 143771 MiB, driver 580.65", "good torch 2.9, CUDA 13.0"],
        ),
        (
            [H200, H200, OLD],
            "2.9 13.0 2",
            [
                *["good GPU 0 NVIDIA H200, 143771 MiB, driver 580.65"],
                *["good GPU 1 NVIDIA H200, 143771 MiB, driver 580.65"],
                *["bad GPU 2 Tesla T4, 15360 MiB, driver 550.54"],
                *["note 3 GPUs", "bad torch 2.9, CUDA 13.0"],
            ],
        ),
        (
            [H200],
            "2.9 None 0",
            ["good GPU 0 NVIDIA H200, 143771 MiB, driver 580.65", "bad torch 2.9, built for CPUs"],
        ),
    ],
)
def test_gpus_and_torch(
    machine: Callable[..., None], gpus: list[str], torch_answer: str, expected: list[str]
) -> None:
    answers = {"nvidia-smi": "\n".join(gpus)} if gpus else {}
    machine({**answers, "torch": torch_answer}, torch="2.9.1")
    found = [*doctor_module.gpus_and_torch()]
    assert [f"{one.level} {one.what}" for one in found] == expected
    if len(gpus) == 3:
        assert found[2].meaning == "too old for CUDA 13: install 580 or later"
        assert found[3].meaning == "towers come in pairs: 2 are used"
        assert found[4].meaning == "sees 2 of 3 GPUs: driver or container?"
    machine(answers)
    found = [*doctor_module.gpus_and_torch()]
    assert (found[-1].level, found[-1].what) == ("bad", "no torch")


@pytest.mark.parametrize(
    ("packages", "lacks", "expected"),
    [
        ({"pillow": "12.1"}, "", ["note Pillow 12.1"]),
        ({"pillow": "12.1", "pillow_simd": "12"}, "", ["bad Pillow 12.1 over pillow-simd 12"]),
        ({"pillow": "12.1"}, "webp", ["note Pillow 12.1", "note Pillow is built without webp"]),
        (
            {"pillow": "12.1"},
            "webp libtiff\n",
            ["note Pillow 12.1", "note Pillow is built without webp and libtiff"],
        ),
    ],
)
def test_pillow(
    machine: Callable[..., None], packages: dict[str, str], lacks: str, expected: list[str]
) -> None:
    machine({"PIL": lacks}, **packages)
    found = [f"{one.level} {one.what}" for one in doctor_module.pillow()]
    assert found == expected


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ({"nvidia_dali_cuda130": "2.0"}, "good nvidia-dali-cuda130 2.0"),
        ({"nvidia_dali_cuda120": "1.9"}, "good nvidia-dali-cuda120 1.9"),
        ({}, "bad no DALI"),
    ],
)
def test_dali(machine: Callable[..., None], packages: dict[str, str], expected: str) -> None:
    machine({}, **packages)
    assert [f"{one.level} {one.what}" for one in doctor_module.dali()] == [expected]


@pytest.mark.parametrize(
    ("present", "level"), [((3, 9), "bad"), ((3, 10), "note"), ((3, 11), "good"), ((4, 0), "good")]
)
def test_python(monkeypatch: pytest.MonkeyPatch, present: tuple[int, int], level: str) -> None:
    monkeypatch.setattr(sys, "version_info", (*present, 1, "final", 0))
    assert [one.level for one in doctor_module.python()] == [level]


def test_as_many_cores_as_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, level in ((1, "note"), (2, "good"), (7, "good")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        first, second = doctor_module.cpu()
        assert (first.level, first.what) == (level, f"{cores} CPU cores")
        avx2 = "avx2" in Path("/proc/cpuinfo").read_text().split()
        assert second.level == ("good" if avx2 else "note")
