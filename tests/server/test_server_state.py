"""A run's state: the rules as a table, then each from real files."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from served import RunWriter, dead_pid, writing

from gratis.events import EventWriter, ShardProgress
from gratis.server.bins import unpacked
from gratis.server.metrics import exposition
from gratis.server.models import RunStatus
from gratis.server.run import Run
from gratis.server.runs import Runs
from gratis.server.state import derive

STALL_S = 60.0


@pytest.mark.parametrize(
    ("outcomes", "dead", "stepped", "age_s", "state"),
    [
        ({}, [], False, 1, "starting"),
        ({}, [], True, 1, "running"),
        ({}, [], True, 60, "running"),
        ({}, [], True, 61, "stalled"),
        ({}, [], False, 61, "stalled"),
        ({}, [0], True, 1, "crashed"),
        ({}, [0], True, 1e6, "crashed"),
        ({}, [1], False, 1, "crashed"),
        ({0: "finished"}, [], True, 1e6, "finished"),
        ({0: "finished"}, [1], True, 1, "finished"),
        ({1: "finished"}, [], True, 1, "running"),
        ({0: "preempted", 1: "preempted"}, [], True, 1e6, "preempted"),
        ({0: "preempted"}, [1], True, 1, "crashed"),
        ({0: "interrupted"}, [], False, 1, "preempted"),
        ({0: "preempted", 1: "failed"}, [], True, 1, "crashed"),
        ({0: "failed", 1: "diverged"}, [], True, 1, "diverged"),
        ({0: "nonsense"}, [], True, 1, "running"),
    ],
)
def test_state_by_the_table(
    outcomes: dict[int, str], dead: list[int], stepped: bool, age_s: float, state: str
) -> None:
    assert (
        derive(outcomes=outcomes, dead=dead, stepped=stepped, age_s=age_s, stall_s=STALL_S)[0]
        == state
    )


def test_a_long_evaluation_is_no_stall(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a", world=2)
    run.start()
    run.step(10)
    past = time.time() - 300
    for rank in (0, 1):
        os.utime(run.path / f"rank-{rank}.jsonl", (past, past))
    assert look(run.path)[0] == "stalled"
    run.writers[0].write(
        "eval_progress",
        {"views": 10, "images": 40, "total": 200, "wall_s": 300.0},
        epoch=1,
        step=10,
    )
    status = status_of(Runs(tmp_path, STALL_S), "a")
    assert (status.state, status.reason) == ("running", "evaluating, 80 of 200 images")
    run.step(20)
    status = status_of(Runs(tmp_path, STALL_S), "a")
    assert status.reason == "events arrive"


def status_of(runs: Runs, name: str | None = None) -> RunStatus:
    snapshot = runs.snapshot(name)
    assert snapshot is not None
    return snapshot.status


def look(path: Path, stall_s: float = STALL_S) -> tuple[str, str, int]:
    """State by the whole files, by their ends alone, and the step, which must agree."""
    runs = Runs(path.parent, stall_s)
    status = status_of(runs, path.name)
    (summary,) = [run for run in runs.listing().runs if run.name == path.name]
    assert summary.step == status.step
    assert summary.state == status.state
    return status.state, status.verdict.kind, status.step


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a", world=2)
    run.start()
    assert look(run.path) == ("starting", "starting", 0)
    run.step(10)
    assert look(run.path) == ("running", "starting", 10)
    run.step(20)
    assert look(run.path) == ("running", "compute-bound", 20)
    run.step(30, ranks={1: {"wait_s": 8.0, "read_s": 9.0}})
    run.step(30, ranks={1: {"wait_s": 8.0, "read_s": 9.0}})
    run.step(40, ranks={1: {"wait_s": 8.0, "read_s": 9.0}})
    assert look(run.path) == ("running", "straggler", 40)
    run.end("finished")
    assert look(run.path) == ("finished", "straggler", 40)


@pytest.mark.parametrize("end", ["finished", "preempted", "failed"])
def test_the_start_up_is_named_and_counts_only_while_it_is_alone(tmp_path: Path, end: str) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    run.step(10, ranks={0: {"wait_s": 9.0}})
    assert look(run.path) == ("running", "starting", 10)
    status = status_of(Runs(tmp_path, STALL_S))
    assert "9.0 s until the first batch, then 1.0 s" in status.verdict.text
    assert status.data_wait_fraction == 0.9
    run.step(20)
    assert look(run.path) == ("running", "compute-bound", 20)
    run.end(end)
    status = status_of(Runs(tmp_path, STALL_S))
    assert (status.verdict.kind, status.data_wait_fraction) == ("compute-bound", 0.01)
    assert status.startup is not None
    assert (status.startup.first_batch_s, status.startup.first_step_s) == (9.0, 1.0)


def test_each_attempts_start_up_is_left_out_of_the_charts_rates(tmp_path: Path) -> None:
    """A resumed run starts up again; the bins' sums stay exact."""
    for attempt, steps in ((1, (10, 20)), (2, (30, 40))):
        run = RunWriter(tmp_path / "a", attempt=attempt)
        run.start()
        for step in steps:
            run.step(step, ranks={0: {"wait_s": 9.0}} if step in (10, 30) else None)
    snapshot = Runs(tmp_path, STALL_S).snapshot("a")
    assert snapshot is not None
    assert [(one.step, one.startup) for one in snapshot.intervals] == [
        (10, True),
        (20, False),
        (30, True),
        (40, False),
    ]
    assert [one.images_per_s.loader for one in snapshot.intervals] == pytest.approx(
        [1000 / 9, 250, 1000 / 9, 250]
    )
    assert snapshot.status.data_wait_fraction == 0.01


def test_a_quiet_run_has_stalled(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    run.step(10)
    long_ago = time.time() - 300
    os.utime(run.path / "rank-0.jsonl", (long_ago, long_ago))
    assert look(run.path) == ("stalled", "stalled", 10)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ("preempted", "preempted"),
        ("interrupted", "preempted"),
        ("diverged", "diverged"),
        ("failed", "crashed"),
        ("finished", "finished"),
    ],
)
@pytest.mark.starts
def test_outcomes(tmp_path: Path, end: str, state: str) -> None:
    run = RunWriter(tmp_path / "a", pid=dead_pid())
    run.start()
    run.step(10)
    run.end(end, "the loss is nan")
    assert look(run.path)[0] == state


@pytest.mark.starts
def test_a_killed_writer_is_a_crash(tmp_path: Path) -> None:
    with writing(tmp_path / "a", world=2) as process:
        assert look(tmp_path / "a") == ("running", "compute-bound", 20)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert look(tmp_path / "a")[0] == "crashed"


def test_another_process_with_the_pid_is_not_the_writer(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a", pid=os.getpid())
    run.start()
    file = run.path / "rank-0.jsonl"
    text = file.read_text()
    assert look(run.path)[0] == "starting"
    began = text.index('"t":') + 4
    # long before this process began
    file.write_text(text[:began] + "1000000.5" + text[text.index(",", began) :])
    assert look(run.path)[0] == "crashed"


@pytest.mark.parametrize(
    ("host", "namespace", "state"),
    [(None, 1, "running"), ("other", None, "running"), (None, None, "crashed")],
)
@pytest.mark.starts
def test_a_pid_counts_in_its_own_host_and_namespace(
    tmp_path: Path, host: str | None, namespace: int | None, state: str
) -> None:
    """In a container a writer's pid means something else here: whether it runs cannot be known."""
    here = os.stat("/proc/self/ns/pid").st_ino
    start = {
        "world": 1,
        "pid": dead_pid(),
        "host": host or socket.gethostname(),
        "pid_namespace": namespace or here,
    }
    writer = EventWriter(tmp_path / "a" / "rank-0.jsonl", attempt=1, rank=0)
    writer.write("start", start)
    writer.write("step", {"steps": 10, "images": 100, "wall_s": 1.0, "loader": {}}, step=10)
    assert look(tmp_path / "a")[0] == state


def test_gpu_counters_are_shown_where_there_are_some(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    run.step(10, gpu={"busy": 0.93, "nvjpg_busy": None, "memory_bytes": 5 << 30, "power_w": 612.5})
    assert status_of(Runs(tmp_path, STALL_S), "a").gpu_memory_total_bytes is None  # of old writers
    status = status_of(Runs(tmp_path, STALL_S), "a")
    gpu = status.ranks[0].gpu
    assert gpu is not None
    assert (gpu.busy, gpu.nvjpg_busy, gpu.memory_bytes, gpu.power_w) == (0.93, None, 5 << 30, 612.5)
    text = exposition(Runs(tmp_path, STALL_S), "text/plain")[0].decode()
    assert 'gratis_gpu_power_watts{rank="0",run="a"} 612.5' in text
    assert "gratis_gpu_nvjpg_busy_ratio{" not in text
    run.step(20)
    status = status_of(Runs(tmp_path, STALL_S), "a")
    assert status.ranks[0].gpu is None


def test_memory_and_gpus_of_all_ranks_and_over_the_steps(tmp_path: Path) -> None:
    """The processes' memory is added up; of GPUs, which ranks may share, the fullest is shown."""
    run = RunWriter(tmp_path / "a", world=2)
    run.start()
    for step, busy, used in ((10, 0.5, 3), (20, 0.9, 5)):
        for rank in (0, 1):
            alone = RunWriter(tmp_path / "a", world=2)
            alone.writers = alone.writers[rank : rank + 1]
            alone.step(
                step,
                gpu={
                    "busy": busy - rank / 5,
                    "nvjpg_busy": 0.0,
                    "memory_bytes": (used + rank) << 30,
                    "memory_total_bytes": (8 + rank) << 30,
                    "power_w": 300.0,
                },
            )
    snapshot = Runs(tmp_path, STALL_S).snapshot("a")
    assert snapshot is not None
    status = snapshot.status
    assert (status.gpu_busy, status.rss_bytes) == (pytest.approx(0.8), 2 << 30)
    assert (status.gpu_memory_bytes, status.gpu_memory_total_bytes) == (6 << 30, 9 << 30)
    seen = [(one.gpu_busy, one.gpu_memory_bytes, one.rss_bytes) for one in snapshot.intervals]
    assert seen == [(pytest.approx(0.4), 4 << 30, 2 << 30), (pytest.approx(0.8), 6 << 30, 2 << 30)]


@pytest.mark.parametrize(
    ("evaluations", "best"),
    [
        ([], None),
        ([(1, 1, 0.5), (2, 1, 0.7), (3, 1, 0.7), (4, 1, 0.6)], 2),  # the oldest of equals
        ([(1, 1, 0.5), (2, 1, None), (3, 10, 0.9)], 1),  # of the centre view
        ([(5, 10, 0.9)], 5),  # none of it
    ],
)
def test_the_best_epoch(
    tmp_path: Path, evaluations: list[tuple[int, int, float | None]], best: int | None
) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    for epoch, views, top1 in evaluations:
        record = {"views": views, "images": 9, "top1": top1, "top5": 1.0, "nll": 1.0, "wall_s": 1.0}
        run.writers[0].write("eval", record, epoch=epoch, step=epoch * 40)
    status = status_of(Runs(tmp_path, STALL_S))
    assert (status.best and status.best.epoch) == best


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("gratis train --shards shards --gpus 2", "gratis train --shards shards --gpus 2"),
        ("gratis train --shards /home/me/shards", "gratis train --shards .../shards"),
        ("gratis train --shards=../x/shards", "gratis train --shards=.../shards"),
        ("gratis train --runs ~/a/b --run c", "gratis train --runs .../b --run c"),
        (
            "gratis train --shards https://me:secret@host/a/b?key=secret --run c",
            "gratis train --shards https://host/a/b?... --run c",
        ),
        ("gratis train --shards 's3://bucket/a b'", "gratis train --shards 's3://bucket/a b'"),
        ("", None),
        (7, None),
    ],
)
def test_the_command_is_shown_without_what_others_need_not_learn(
    tmp_path: Path, given: str, shown: str | None
) -> None:
    run = RunWriter(tmp_path / "runs" / "a")
    run.start(given)
    status = status_of(Runs(tmp_path / "runs", STALL_S))
    assert (status.command, status.folder) == (shown, "runs/a")


@pytest.mark.parametrize(
    ("step", "epoch", "shown"),
    [(None, None, 0), (10, 0, 10), (40, 0, 40), (40, 1, 0), (50, 1, 10), (200, 5, 40)],
)
def test_steps_of_the_epoch(
    tmp_path: Path, step: int | None, epoch: int | None, shown: int
) -> None:
    """Forty an epoch, five epochs; whole until the next has begun, and after the last."""
    run = RunWriter(tmp_path / "a")
    run.start()
    if step is not None:
        fields = {"steps": 10, "images": 1000, "wall_s": 10.0, "loader": {}}
        run.writers[0].write("step", fields, epoch=epoch, step=step)
    status = status_of(Runs(tmp_path, STALL_S))
    assert (status.epoch_step, status.total_steps) == (shown, 200)


@pytest.mark.starts
def test_a_later_attempt_wins_and_runs_in_a_smaller_world(tmp_path: Path) -> None:
    first = RunWriter(tmp_path / "a", world=2, attempt=1, pid=dead_pid())
    first.start()
    for step in range(10, 60, 10):
        first.step(step, loss=3.0)
    assert look(first.path)[0] == "crashed"
    second = RunWriter(tmp_path / "a", world=1, attempt=2)
    second.start()
    assert look(first.path) == ("starting", "starting", 0)
    second.step(30, loss=1.0)  # resumed after step 20
    run = Run(first.path)
    run.refresh()
    seen = [(one.step, one.attempt, one.loss, one.images_per_s.trainer) for one in run.intervals()]
    assert seen == [(10, 1, 3.0, 200.0), (20, 1, 3.0, 200.0), (30, 2, 1.0, 100.0)]
    status = status_of(Runs(tmp_path, STALL_S), "a")
    assert (status.world, status.attempt, len(status.ranks), status.step) == (1, 2, 1, 30)
    assert status.images_trained == 6000  # rank 0's, both attempts
    assert (status.native_images, status.fallback_images) == (5940, 60)


def test_history_is_bounded_and_adds_up(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    for step in range(10, 20_010, 10):
        run.step(step, loss=step / 10_000)
    reader = Run(run.path)
    reader.refresh()
    while reader.behind:
        reader.refresh()
    intervals = reader.intervals()
    assert 200 < len(intervals) <= 512
    assert [one.step for one in intervals] == sorted({one.step for one in intervals})
    assert intervals[-1].step == 20_000
    assert all(one.images_per_s.trainer == pytest.approx(100) for one in intervals)
    assert intervals[-1].loss == pytest.approx(2.0, abs=0.01)
    bins = map(unpacked, reader.ranks[0].bins.packed())
    assert sum(one.counters.images for one in bins) == 2_000_000


def garbage(path: Path) -> None:
    with path.open("ab") as file:
        file.write(
            b"\xff\xfe\x00 no json\n[1,2]\n" + b"[" * 50_000 + b"\n" + b'{"kind":"step","t":1}\n'
        )
        file.write(
            b'{"kind":"step","t":1,"step":"x","steps":1e400,"wall_s":-1,"loader":5,"attempt":1}\n'
        )
        file.write(b'{"kind":"step","t":NaN,"step":1e300,"steps":1,"wall_s":1,"attempt":[]}\n')
        file.write(
            b'{"kind":"start","t":1,"world":"two","mesh":[],"pid":"x","attempt":1,"config":null}\n'
        )
        file.write(
            b'{"kind":"eval","t":1,"attempt":1,"top1":"high"}\n{"kind":"warning","t":2,"message":{},"attempt":1}\n'
        )


def torn(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"v":1,"kind":"step","t":1,"st')


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4096)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def skewed(path: Path) -> None:
    path.write_text(path.read_text().replace('"t":1', '"t":9'))


@pytest.mark.parametrize("harm", [garbage, torn, cut, binary, folder, skewed])
def test_harm_to_a_file_is_a_state(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    run = RunWriter(tmp_path / "a", world=2)
    run.start()
    run.step(10)
    runs = Runs(tmp_path, STALL_S)
    status_of(runs, "a")
    harm(run.path / "rank-0.jsonl")
    for reader in (Runs(tmp_path, STALL_S), runs):
        time.sleep(0.45)
        status = status_of(reader, "a")
        assert status.state in ("starting", "running", "crashed")
        assert reader.listing().runs[0].name == "a"


def test_a_torn_line_waits_and_its_end_counts(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    run.step(10)
    file = run.path / "rank-0.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    runs = Runs(tmp_path, STALL_S)
    status = status_of(runs, "a")
    assert (status.step, status.behind_bytes) == (0, 0)
    file.write_bytes(whole)
    time.sleep(0.45)
    status = status_of(runs, "a")
    assert status.step == 10


def test_a_replaced_run_is_read_anew(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    run.step(50)
    runs = Runs(tmp_path, STALL_S)
    status_of(runs, "a")
    (run.path / "rank-0.jsonl").unlink()
    again = RunWriter(tmp_path / "a")
    again.start()
    again.step(10)
    time.sleep(0.45)
    status = status_of(runs, "a")
    assert (status.step, status.images_trained) == (10, 1000)


def test_shard_progress(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "a" / "shards.jsonl", attempt=1, rank=0)
    progress = ShardProgress(
        images=50,
        bytes_in=5_000_000,
        bytes_out=1_000_000,
        wall_s=2.0,
        done=50,
        total=100,
        rejects=1,
    )
    writer.write("progress", progress)
    status = status_of(Runs(tmp_path, STALL_S))
    assert status.state == "starting"
    shards = status.shards
    assert shards is not None
    assert (shards.state, shards.done, shards.total, shards.rejects) == ("running", 50, 100, 1)
    assert (shards.images_per_s, shards.bytes_in_per_s, shards.remaining_s) == (
        25.0,
        2_500_000.0,
        2.0,
    )
    writer.write("progress", progress | ShardProgress(**progress | {"done": 100}))  # type: ignore[typeddict-item]
    status = status_of(Runs(tmp_path, STALL_S))
    assert status.shards is not None
    assert status.shards.state == "finished"


@pytest.mark.parametrize(
    ("lives", "end", "state", "reason"),
    [
        (True, (), "starting", "shards are being made"),
        (False, (), "crashed", "the process of the shard stage is gone and reported no end"),
        (False, ("finished", None), "finished", "the shard stage reports the end"),
        (
            False,
            ("failed", "no room in /data/x"),
            "crashed",
            "the shard stage reports a failure: no room in x",
        ),
        (
            False,
            ("interrupted", None),
            "preempted",
            "the shard stage was interrupted; the run can be resumed",
        ),
    ],
)
@pytest.mark.starts
def test_where_nothing_trains_the_state_is_the_shard_stages(
    tmp_path: Path, lives: bool, end: tuple[str, ...], state: str, reason: str
) -> None:
    writer = EventWriter(tmp_path / "a" / "shards.jsonl", attempt=1, rank=0)
    pid = os.getpid() if lives else dead_pid()
    writer.write("start", {"total": 100, "done": 0, "pid": pid, "host": socket.gethostname()})
    if end:
        writer.write("end", dict(zip(("outcome", "error"), end, strict=True)))
    runs = Runs(tmp_path, STALL_S)
    status = status_of(runs)
    assert (status.state, status.reason) == (state, reason)
    assert (status.ranks, status.verdict.kind) == ([], "starting")
    assert runs.listing().runs[0].state == state


@pytest.mark.starts
def test_a_thousand_runs_list_at_once(tmp_path: Path) -> None:
    gone = dead_pid()
    for number in range(1000):
        run = RunWriter(tmp_path / f"run-{number}", pid=gone)
        run.start()
        for step in (10, 20, 30):
            run.step(step)
        for writer in run.writers:
            writer.close()
    runs = Runs(tmp_path, STALL_S)
    times, control = [], []
    for _ in range(3):
        begin = time.process_time()  # what others do meanwhile is not ours
        listing = runs.listing()
        times.append(time.process_time() - begin)
        begin = time.process_time()
        for path in tmp_path.glob("*/*.jsonl"):
            path.read_bytes()
        control.append(time.process_time() - begin)
        time.sleep(0.45)
    assert {run.state for run in listing.runs} == {"crashed"}
    assert len(listing.runs) == 1000
    cold, again, reading = times[0], min(times[1:]), min(control)
    print(f"1,000 runs: {cold:.3f} s cold, {again:.3f} s again; their files read: {reading:.3f} s")
    assert again < 2 * reading


@pytest.mark.parametrize("lines", [100_000, pytest.param(1_000_000, marks=pytest.mark.prove)])
@pytest.mark.slow
def test_a_long_file_never_holds_a_request_up(tmp_path: Path, lines: int) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    run.step(10)
    run.step(20)
    file = run.path / "rank-0.jsonl"
    line = file.read_bytes().splitlines(keepends=True)[1]
    with file.open("ab") as stream:
        for _ in range(lines // 1000):
            stream.write(line * 1000)
    run.step(30)
    begin = time.process_time()
    Run(run.path).refresh()
    whole_s = time.process_time() - begin
    runs = Runs(tmp_path, STALL_S)
    begin = time.process_time()
    snapshot = runs.snapshot("a")
    first_s = time.process_time() - begin
    assert snapshot is not None
    assert snapshot.status.behind_bytes > 0
    assert snapshot.status.state == "running"
    before = psutil.Process().memory_info().rss
    deadline = time.monotonic() + 60 + lines / 500  # of a machine that does much else
    while snapshot.status.behind_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.4)
        snapshot = runs.snapshot("a") or snapshot
    print(f"{lines:,} lines: {first_s:.2f} CPU s for the first answer, {whole_s:.2f} for all")
    assert first_s < whole_s / 3
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert snapshot.status.images_trained == (lines + 3) * 1000
    assert snapshot.intervals[-1].step == 30
