"""Every field of the status and every metric, from event files written and added up by hand."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gratis.rates import ZERO
from gratis.server.bins import Bin, Gauges
from gratis.server.metrics import exposition
from gratis.server.run import Run
from gratis.server.run_status import run_status
from gratis.server.runs import Runs

START = {
    "recipe": "released",
    "world": 2,
    "mesh": {"data": 1, "tower": 2},
    "config": {"recipe": {"image_size": 256}},
    "device": "cuda:0",
    "device_name": "A GPU",
    "decoded": "host",
    "dataset": "abc",
    "classes": 7,
    "train_images": 1000,
    "val_images": 50,
    "epochs": 3,
    "steps_per_epoch": 20,
    "batch_size": 8,
    "command": "gratis train",
}


def line(rank: int, kind: str, t: float, **fields: Any) -> str:
    record = {"v": 1, "kind": kind, "t": t, "mono": t, "attempt": 1, "rank": rank}
    return json.dumps(record | fields) + "\n"


def steps(rank: int, t: float, step: int, **fields: Any) -> str:
    loader = {
        "images": fields.pop("delivered"),
        "batches": 1,
        **{f"{name}_s": fields.pop(name) for name in ("read", "decode", "finish", "transfer")},
        "blocked_s": fields.pop("blocked"),
        "bytes_read": fields.pop("bytes_read"),
        "queue_depth": 1,
        "queue_capacity": 2,
        "native": fields.pop("native"),
        "fallback": fields.pop("fallback"),
    }
    common = {"loss": 1.5, "top1": 0.75, "lr": 0.01, "epoch": 1, "step": step}
    return line(rank, "step", t, **common | fields, loader=loader)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two ranks: a start-up of a step, and ten steps after it."""
    run = tmp_path / "a"
    run.mkdir()
    startup: dict[str, Any] = {"steps": 1, "images": 4, "wall_s": 5.0, "wait_s": 4.0}
    startup |= {"exchange_s": 0.5}
    startup |= {"cpu_s": 3.0, "rss_bytes": 900, "delivered": 8, "read": 0.0, "decode": 1.0}
    startup |= {"finish": 0.0, "transfer": 0.0, "blocked": 0.25, "bytes_read": 100, "gpu": None}
    startup |= {"loss": 2.5, "top1": 0.5, "lr": 0.02, "native": 7, "fallback": 1}
    ten = {"steps": 10}
    first = ten | {"images": 40, "wall_s": 10.0, "wait_s": 1.0, "exchange_s": 2.0, "cpu_s": 8.0}
    first |= {"delivered": 80, "read": 0.25, "decode": 4.0, "finish": 1.0, "transfer": 0.75}
    first |= {"blocked": 2.0, "bytes_read": 1000, "rss_bytes": 1100, "native": 77, "fallback": 3}
    second = ten | {"images": 36, "wall_s": 9.0, "wait_s": 0.45, "exchange_s": 1.8, "cpu_s": 4.5}
    second |= {"delivered": 72, "read": 0.25, "decode": 2.75, "finish": 0.75, "transfer": 0.25}
    second |= {"blocked": 3.0, "bytes_read": 1800, "rss_bytes": 1300, "native": 60, "fallback": 12}
    gpus = [
        {"busy": 0.5, "nvjpg_busy": 0.25, "memory_bytes": 70, "memory_total_bytes": 200}
        | {"power_w": 310.0},
        {"busy": 0.75, "nvjpg_busy": 0.125, "memory_bytes": 90, "memory_total_bytes": 100}
        | {"power_w": 290.0},
    ]
    evaluated = {"views": 1, "images": 50, "epoch": 1, "wall_s": 2.0}
    receipt = {"seen": 990, "missing": 6, "duplicates": 3, "dropped": 4, "epoch": 0, "step": 20}
    lines = [
        line(0, "start", 100.0, **START),
        steps(0, 106.0, 21, **startup),
        line(0, "eval", 107.0, top1=0.5, top5=0.75, nll=2.0, step=20, **evaluated),
        line(0, "receipt", 107.5, **receipt),
        steps(0, 117.0, 31, **first, gpu=gpus[0]),
        line(
            0, "eval", 118.0, top1=0.625, top5=0.875, nll=1.0, step=31, **evaluated | {"epoch": 2}
        ),
        line(0, "checkpoint", 119.0, path="checkpoints/step-00000031", bytes=5, wall_s=1, step=31),
        line(0, "warning", 120.0, message="a sample was bad", step=31),
    ]
    (run / "rank-0.jsonl").write_text("".join(lines))
    lines = [
        line(1, "start", 101.0, **START | {"device": "cuda:1", "device_name": "Another"}),
        steps(1, 106.5, 21, **startup | {"wall_s": 6.0, "wait_s": 5.5, "loss": 2.5}),
        steps(1, 117.5, 31, **second, gpu=gpus[1]),
    ]
    (run / "rank-1.jsonl").write_text("".join(lines))
    for rank, grown in enumerate(GROWN):
        os.utime(run / f"rank-{rank}.jsonl", (grown, grown))
    return run


GROWN = (2000.0, 1500.0)  # when each rank's file last grew


def assert_ages(ages: list[float], grown: list[float], asked: float) -> None:
    """asked: when they were, before the answer came."""
    for age, at in zip(ages, grown, strict=True):
        assert asked - at <= age <= time.time() - at


def test_the_status(folder: Path) -> None:
    run, asked = Run(folder), time.time()
    run.refresh()
    status = run_status(run, 1e10).model_dump()
    assert_ages([status["age_s"]], [2000.0], asked)
    expected = {
        "name": "a",
        "state": "running",
        "reason": "events arrive",
        "folder": f"{folder.parent.name}/a",
        "updated": 2000.0,
        "recipe": "released",
        "dataset": "abc",
        "classes": 7,
        "train_images": 1000,
        "val_images": 50,
        "attempt": 1,
        "world": 2,
        "mesh": {"data": 1, "tower": 2},
        "batch_size": 8,
        "decoded": "host",
        "decoded_bytes": 1000 * 3 * 256 * 256,
        "epochs": 3,
        "steps_per_epoch": 20,
        "epoch": 2,  # of the newest record: the evaluation after the second
        "step": 31,
        "epoch_step": 0,
        "total_steps": 60,
        "started": 100.0,
        "remaining_s": 29.0,  # 29 steps of the slower rank's second
        "images_trained": 4 + 40 + 4 + 36,
        "native_images": 7 + 77 + 7 + 60,
        "fallback_images": 1 + 3 + 1 + 12,
        "loss": 1.5,
        "train_error": 0.25,
        "learning_rate": 0.01,
        "checkpoint_step": 31,
        "warnings": ["a sample was bad"],
        "command": "gratis train",
        "behind_bytes": 0,
        "garbage_lines": 0,
        "picture_t": None,
        "shards": None,
        "rss_bytes": 1100 + 1300,
        "gpu_busy": 0.625,
        "gpu_memory_bytes": 90,  # of the fullest, and its own size
        "gpu_memory_total_bytes": 100,
        "data_wait_fraction": pytest.approx(1.45 / 19),
        # 80 in the 6 s of its stages, 72 in 4 s; 80 in 10 s, 72 in 9 s; 40 in 10 s, 36 in 9 s
        "images_per_s": {"loader": pytest.approx(80 / 6 + 18), "delivered": 16.0, "trainer": 8.0},
        "headroom": pytest.approx((80 / 6 + 18) / 8),
        "startup": {
            "first_batch_s": 5.5,
            "first_step_s": 0.5,
            "text": "5.5 s until the first batch, then 0.5 s for the first step",
        },
        "receipt": {"epoch": 0, "seen": 990, "missing": 6, "duplicates": 3, "dropped": 4},
    }
    assert {name: status[name] for name in expected} == expected
    others = {"verdict", "evaluations", "best", "ranks", "age_s"}  # which are looked at beside it
    assert status.keys() == expected.keys() | others, "a field without a value worked out by hand"
    verdict = status["verdict"]
    assert (verdict["kind"], verdict["pauses"], verdict["rank"]) == ("compute-bound", True, None)
    fields = "epoch step views images top1_error top5_error nll wall_s t".split()
    evaluations = [tuple(one[name] for name in fields) for one in status["evaluations"]]
    assert evaluations == [
        (1, 20, 1, 50, 0.5, 0.25, 2.0, 2.0, 107.0),
        (2, 31, 1, 50, 0.375, 0.125, 1.0, 2.0, 118.0),
    ]
    assert status["best"] == status["evaluations"][1]
    assert status["best"].keys() == {*fields}


def test_the_list_of_runs(folder: Path) -> None:
    """By the ends of the files alone."""
    listing = Runs(folder.parent, 1e10).listing().model_dump()
    summary = {"name": "a", "state": "running", "epoch": 2, "step": 31, "updated": 2000.0}
    assert listing == {"runs": [summary]}


def test_the_status_of_each_rank(folder: Path) -> None:
    run, asked = Run(folder), time.time()
    run.refresh()
    first, second = (one.model_dump() for one in run_status(run, 1e10).ranks)
    assert_ages([first["age_s"], second["age_s"]], [*GROWN], asked)
    expected = {
        "rank": 0,
        "state": "running",
        "device": "cuda:0",
        "device_name": "A GPU",
        "step": 31,
        "images_per_s": {"loader": pytest.approx(80 / 6), "delivered": 8.0, "trainer": 4.0},
        "data_wait_fraction": 0.1,
        "step_s": 1.0,
        "read_bytes_per_s": 100.0,
        "cpu_cores": 0.8,
        "rss_bytes": 1100,
        "native_images": 7 + 77,
        "fallback_images": 1 + 3,
        "queue_depth": 1,
        "queue_capacity": 2,
        "gpu": {
            "busy": 0.5,
            "nvjpg_busy": 0.25,
            "memory_bytes": 70,
            "memory_total_bytes": 200,
            "power_w": 310.0,
        },
    }
    assert {name: first[name] for name in expected} == expected
    assert first.keys() == expected.keys() | {"stages", "age_s"}
    shares = {"read": 0.25 / 6, "decode": 4 / 6, "finish": 1 / 6, "transfer": 0.75 / 6}
    assert first["stages"] == pytest.approx(shares)
    of_second = {
        "rank": 1,
        "device": "cuda:1",
        "images_per_s": {"loader": 18.0, "delivered": 8.0, "trainer": 4.0},
        "data_wait_fraction": 0.05,
        "step_s": 0.9,
        "read_bytes_per_s": 200.0,
        "cpu_cores": 0.5,
        "native_images": 7 + 60,
        "fallback_images": 1 + 12,
    }
    assert {name: second[name] for name in of_second} == of_second


def test_the_intervals(folder: Path) -> None:
    run = Run(folder)
    run.refresh()
    startup, interval = (one.model_dump() for one in run.intervals())
    expected = {
        "first_step": 31,  # the last of its one record on each rank
        "step": 31,
        "epoch": 1,
        "attempt": 1,
        "startup": False,
        "t": 117.5,
        "images_per_s": {"loader": pytest.approx(80 / 6 + 18), "delivered": 16.0, "trainer": 8.0},
        "data_wait_fraction": pytest.approx(1.45 / 19),
        "loss": 1.5,
        "train_error": 0.25,
        "learning_rate": 0.01,
        "cpu_cores": pytest.approx(0.8 + 0.5),
        "gpu_busy": 0.625,
        "gpu_memory_bytes": 90,
        "rss_bytes": 2400,
    }
    assert interval == expected
    begun = {"first_step": 21, "step": 21, "startup": True, "loss": 2.5, "train_error": 0.5}
    assert {name: startup[name] for name in begun} == begun
    assert startup["learning_rate"] == 0.02
    assert startup["images_per_s"]["trainer"] == pytest.approx(4 / 5 + 4 / 6)


def bare_steps(rank: int, step: int, attempt: int = 1, **fields: Any) -> str:
    """Of one step that took a second, unless fields say otherwise; nothing was measured of it."""
    none = dict.fromkeys(("read", "decode", "finish", "transfer", "blocked"), 0.0)
    none |= dict.fromkeys(("delivered", "bytes_read", "native", "fallback"), 0)
    given = {"steps": 1, "images": 4, "wall_s": 1.0, "attempt": attempt}
    return steps(rank, 100.0 + 10 * attempt + step, step, **none | given | fields)


def test_steps_that_a_resume_takes_again_are_shown_once(tmp_path: Path) -> None:
    """From where the rank that went back furthest began: that one's record is of steps 5 and 6."""
    for rank, begun in ((0, 8), (1, 5)):
        lines = [line(rank, "start", 100.0, **START)]
        lines += [bare_steps(rank, step) for step in range(1, 11)]
        lines += [line(rank, "start", 111.0, **START | {"attempt": 2})]
        lines += [bare_steps(rank, step, 2) for step in range(begun, 13)]
        (tmp_path / f"rank-{rank}.jsonl").write_text("".join(lines))
    run = Run(tmp_path)
    run.refresh()
    assert run.resumes() == {1: 0, 2: 4}
    shown = [(one.step, one.attempt) for one in run.intervals()]
    assert [attempt for step, attempt in shown if step <= 4] == [1] * 4
    assert [attempt for step, attempt in shown if step > 4] == [2] * (len(shown) - 4)
    assert shown[-1] == (12, 2)


def test_the_loaders_capacity_is_of_the_last_ten_seconds(tmp_path: Path) -> None:
    """Intervals of two seconds: the five last ones, all of them slow, of 8 images in 3 s each."""
    lines = [line(0, "start", 100.0, **START | {"world": 1})]
    for step in range(1, 21):
        decode = 0.5 if step < 15 else 1.5
        lines.append(bare_steps(0, step, wall_s=2.0, delivered=4, decode=decode))
    (tmp_path / "rank-0.jsonl").write_text("".join(lines))
    run = Run(tmp_path)
    run.refresh()
    capacity = {one.step: one.images_per_s.loader for one in run.intervals()}
    assert capacity[14] == pytest.approx(4 / 0.5)
    assert capacity[15] == pytest.approx(5 * 4 / (4 * 0.5 + 1.5))
    assert capacity[18] == pytest.approx(5 * 4 / (0.5 + 4 * 1.5))
    assert [capacity[step] for step in (19, 20)] == pytest.approx([4 / 1.5] * 2)


def evaluated(rank: int, step: int, attempt: int, top1: float) -> str:
    fields = {"views": 1, "images": 50, "top5": 1.0, "nll": 1.0, "wall_s": 2.0, "epoch": step // 5}
    return line(rank, "eval", 100.0, top1=top1, step=step, attempt=attempt, **fields)


def test_an_evaluation_that_a_resume_repeats_is_the_later_one(tmp_path: Path) -> None:
    """Of epoch 2 there is none until the second attempt, which begins behind step 7, has come to
    its end."""
    lines = [line(0, "start", 100.0, **START | {"world": 1})]
    lines += [bare_steps(0, step) for step in range(1, 11)]
    lines += [evaluated(0, 5, 1, 0.5), evaluated(0, 10, 1, 0.25)]
    lines += [line(0, "start", 120.0, **START | {"world": 1, "attempt": 2}), bare_steps(0, 8, 2)]
    path = tmp_path / "rank-0.jsonl"
    path.write_text("".join(lines))
    run = Run(tmp_path)
    run.refresh()
    shown = [(one.step, one.top1_error) for one in run_status(run, 1e10).evaluations]
    assert shown == [(5, 0.5)]
    path.write_text("".join([*lines, bare_steps(0, 10, 2), evaluated(0, 10, 2, 0.75)]))
    run.refresh()
    shown = [(one.step, one.top1_error) for one in run_status(run, 1e10).evaluations]
    assert shown == [(5, 0.5), (10, 0.25)]


def test_rates_are_of_the_last_half_minute(tmp_path: Path) -> None:
    """Steps of 10 s: of 4 images, the last three of 2."""
    lines = [line(0, "start", 100.0, **START | {"world": 1})]
    for step in range(1, 21):
        images = 4 if step < 18 else 2
        lines.append(bare_steps(0, step, wall_s=10.0, images=images, wait_s=images / 4))
    (tmp_path / "rank-0.jsonl").write_text("".join(lines))
    run = Run(tmp_path)
    run.refresh()
    status = run_status(run, 1e10)
    assert status.images_per_s.trainer == pytest.approx(6 / 30)
    assert status.data_wait_fraction == pytest.approx(1.5 / 30)


def test_bins_of_two_attempts_are_the_laters() -> None:
    """Of one attempt they add up, but for the memory, of which the most is shown."""

    def bin_of(step: int, attempt: int, images: float, gpu_bytes: float) -> Bin:
        counters = ZERO._replace(images=images)
        gauges = Gauges(busy=0.5, samples=1.0, gpu_bytes=gpu_bytes, rss_bytes=gpu_bytes)
        return Bin(1, step, 0, attempt, float(step), 0.01, counters, gauges, startup=step == 1)

    first, second = bin_of(1, 1, 3.0, 70.0), bin_of(2, 1, 4.0, 60.0)
    both = first.plus(second)
    assert (both.step, both.t, both.counters.images, both.startup) == (2, 2.0, 7.0, True)
    assert both.gauges == Gauges(1.0, 2.0, 70.0, 70.0)
    again = bin_of(2, 2, 5.0, 1.0)
    assert both.plus(again) == again
    assert again.plus(both) == again


def test_the_shard_stage(tmp_path: Path) -> None:
    """Its rates over what was done lately, and what is left at that rate."""
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "shards.jsonl"
    done = {"images": 30, "bytes_in": 600, "bytes_out": 150, "wall_s": 3.0, "total": 1000}
    lines = [
        line(0, "start", 100.0, done=100, total=1000),
        line(0, "progress", 103.0, done=130, rejects=1, **done),
        line(0, "progress", 106.0, done=150, rejects=4, **done | {"images": 20, "wall_s": 2.0}),
    ]
    path.write_text("".join(lines))
    os.utime(path, (2000.0, 2000.0))
    asked = time.time()
    snapshot = Runs(tmp_path, 1e10).snapshot("a")
    assert snapshot is not None
    shards = snapshot.status.shards
    assert shards is not None
    expected = {
        "state": "running",
        "done": 150,
        "total": 1000,
        "rejects": 4,
        "images_per_s": 10.0,
        "bytes_in_per_s": 240.0,
        "bytes_out_per_s": 60.0,
        "remaining_s": 85.0,
    }
    found = shards.model_dump()
    assert_ages([found.pop("age_s")], [2000.0], asked)
    assert found == expected
    text = exposition(Runs(tmp_path, 1e10), "text/plain")[0].decode()
    for name, value in {
        "shards_done_images": 150,
        "shards_planned_images": 1000,
        "shards_rejected_images": 4,
        "shards_images_total": 50,
        "shards_read_bytes_total": 1200,
        "shards_written_bytes_total": 300,
        "shards_seconds_total": 5,
    }.items():
        assert f'gratis_{name}{{run="a"}} {value:.1f}\n' in text


def test_every_metric(folder: Path) -> None:
    """Counters are over all of the run, its start-up too; gauges as the status has them."""
    runs, asked = Runs(folder.parent, 1e10), time.time()
    text, _ = exposition(runs, "text/plain")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for name, labels, value, *_ in family.samples:
            where = [
                labels[key] for key in ("rank", "state", "stage", "views", "top") if key in labels
            ]
            found[" ".join([name.removeprefix("gratis_"), *where])] = value
    states = ("starting", "stalled", "crashed", "preempted", "diverged", "finished")
    expected: dict[str, float] = {
        **{f"run_state {state}": 0 for state in states},
        "run_state running": 1,
        "loader_images_per_second": 80 / 6 + 18,
        "delivered_images_per_second": 16,
        "trainer_images_per_second": 8,
        "data_wait_ratio": 1.45 / 19,
        "loader_headroom_ratio": (80 / 6 + 18) / 8,
        "training_loss": 1.5,
        "training_error_ratio": 0.25,
        "learning_rate": 0.01,
        "epoch": 2,
        "step": 31,
        "planned_epochs": 3,
        "planned_steps": 60,
        "remaining_seconds": 29,
        "attempt": 1,
        "validation_error_ratio 1 1": 0.375,
        "validation_error_ratio 1 5": 0.125,
    }
    totals = {
        "trained_images": (44, 40),
        "training_steps": (11, 11),
        "training_seconds": (15, 15),
        "data_wait_seconds": (5, 5.95),
        "exchange_seconds": (2.5, 2.3),
        "cpu_seconds": (11, 7.5),
        "loader_delivered_images": (88, 80),
        "loader_read_bytes": (1100, 1900),
        "loader_blocked_seconds": (2.25, 3.25),
        "loader_native_images": (84, 67),
        "loader_fallback_images": (4, 13),
    }
    gauges = {
        "resident_memory_bytes": (1100, 1300),
        "loader_queue_batches": (1, 1),
        "loader_queue_capacity_batches": (2, 2),
        "gpu_busy_ratio": (0.5, 0.75),
        "gpu_nvjpg_busy_ratio": (0.25, 0.125),
        "gpu_memory_used_bytes": (70, 90),
        "gpu_memory_size_bytes": (200, 100),
        "gpu_power_watts": (310, 290),
    }
    stages = {
        "read": (0.25, 0.25),
        "decode": (5, 3.75),
        "finish": (1, 0.75),
        "transfer": (0.75, 0.25),
    }
    for rank in (0, 1):
        expected |= {f"{name}_total {rank}": values[rank] for name, values in totals.items()}
        expected |= {f"{name} {rank}": values[rank] for name, values in gauges.items()}
        for stage, values in stages.items():
            expected[f"loader_stage_seconds_total {rank} {stage}"] = values[rank]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert_ages([found["event_age_seconds"]], [2000.0], asked)
    assert found["build_info"] == 1
    unknown = set(found) - set(expected) - {"event_age_seconds", "build_info"}
    assert not unknown, "a metric without a number worked out by hand"
