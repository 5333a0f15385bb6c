"""TensorBoard's event file, read back by TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import gratis

from gratis.events import EventWriter
from gratis.extras import importable
from gratis.train.launcher.tensorboard import SUFFIX, mirror

needs_tensorboard = pytest.mark.skipif(
    not importable("tensorboard"), reason="needs the package tensorboard"
)
STEP = {
    "steps": 10,
    "images": 160,
    "wall_s": 2.0,
    "wait_s": 0.5,
    "loss": 1.5,
    "top1": 0.25,
    "lr": 0.01,
}
OF_A_STEP = {
    "train/loss": 1.5,
    "train/top1_error": 0.75,
    "train/images_per_s": 160.0,
    "train/learning_rate": 0.01,
    "loader/wait_fraction": 0.25,
}
OF_AN_EVALUATION = {"val/top1_error_10_view": 0.4, "val/top5_error_10_view": 0.2}


def write_run(folder: Path) -> None:
    """Two attempts; the second runs the first one's last ten steps again."""
    for attempt, steps in ((1, (10, 20)), (2, (20, 30))):
        writer = EventWriter(folder / "rank-0.jsonl", attempt=attempt, rank=0)
        writer.write("start", {"world": 2})
        for step in steps:
            writer.write("step", STEP | {"loss": STEP["loss"] / attempt}, epoch=0, step=step)
        writer.close()


def read(folder: Path, **options: Any) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), **options)
    accumulator.Reload()
    return accumulator


@needs_tensorboard
def test_records_become_scalars(tmp_path: Path) -> None:
    write_run(tmp_path)
    with mirror(tmp_path):
        writer = EventWriter(tmp_path / "rank-0.jsonl", attempt=2, rank=0)
        fields = {"views": 10, "top1": 0.6, "top5": 0.8, "nll": None}
        writer.write("eval", fields, epoch=1, step=30)
    values = read(tmp_path)
    assert set(values.Tags()["scalars"]) == {*OF_A_STEP, *OF_AN_EVALUATION}
    for tag, value in OF_A_STEP.items():
        assert values.Scalars(tag)[0].value == pytest.approx(value)
        assert values.Scalars(tag)[0].step == 10
    for tag, value in OF_AN_EVALUATION.items():
        assert [(one.step, one.value) for one in values.Scalars(tag)] == [
            (30, pytest.approx(value))
        ]


@needs_tensorboard
def test_what_a_later_attempt_ran_again_is_dropped(tmp_path: Path) -> None:
    write_run(tmp_path)
    with mirror(tmp_path):
        pass
    losses = [(one.step, one.value) for one in read(tmp_path).Scalars("train/loss")]
    assert losses == [(10, 1.5), (20, 0.75), (30, 0.75)]
    every = read(tmp_path, purge_orphaned_data=False).Scalars("train/loss")
    assert [one.step for one in every] == [10, 20, 20, 30]
    assert every[0].wall_time > 0


@needs_tensorboard
def test_a_resumed_run_writes_its_file_anew(tmp_path: Path) -> None:
    """Another program's event files stay."""
    write_run(tmp_path)
    (tmp_path / "events.out.tfevents.1.other").touch()
    for _ in range(2):
        with mirror(tmp_path):
            pass
    assert len(list(tmp_path.glob(f"events.out.tfevents.*{SUFFIX}"))) == 1
    assert (tmp_path / "events.out.tfevents.1.other").exists()


@needs_tensorboard
def test_a_training_is_mirrored(tmp_path: Path, sample_shards: Path) -> None:
    done = gratis(
        *"train --tensorboard --run a --port 0 --recipe sample --width 0.0625".split(),
        *"--epochs 1 --batch 100 --gpus 1".split(),
        *("--runs", str(tmp_path), "--shards", str(sample_shards)),
    )
    assert done.returncode == 0, done.stderr
    values = read(tmp_path / "a")
    assert values.Scalars("train/loss")[-1].step == 10
    assert values.Scalars("val/top1_error_10_view")[-1].step == 10
