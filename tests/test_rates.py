"""Rates have one definition: the status page and the result of a run show the same numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gratis.events import EventWriter
from gratis.rates import ZERO, attempt_counters, startup, step_counters, throughput, wait_fraction
from gratis.server.runs import Runs
from gratis.train.launcher.result import result, show
from gratis.train.recipes import RECIPES
from gratis.train.settings import Launch

STAGES = {"read_s": 1.0, "decode_s": 2.0, "finish_s": 0.5, "transfer_s": 0.5}


def write_run(path: Path, *loaders: dict[str, float], wait_s: float = 0.0) -> None:
    """A finished run of one rank for each of `loaders`, the counters of its loader in two steps."""
    for rank, loader in enumerate(loaders):
        writer = EventWriter(path / f"rank-{rank}.jsonl", attempt=2, rank=rank)
        writer.write("start", {"world": len(loaders)})
        for step in (1, 2):
            fields = {"steps": 1, "images": 500, "wall_s": 5.0, "wait_s": wait_s, "loader": loader}
            writer.write("step", fields, step=step)
        writer.write("end", {"outcome": "finished"})
        writer.close()


@pytest.mark.parametrize(
    ("loaders", "wait_s", "capacity"),
    [
        ([{"images": 500.0, **STAGES}], 0.0, 125.0),  # over the stages' seconds
        ([{"images": 500.0, **STAGES}], 5.0, 100.0),  # or over the wait, where that is longer
        ([{"images": 500.0, **STAGES}, {"images": 500.0, "read_s": 2.0}], 0.0, 375.0),
        ([{"images": 500.0, "blocked_s": 3.0}], 0.0, 250.0),  # no stage timed: what was not blocked
        ([{"images": 500.0, "blocked_s": 5.0}], 0.0, None),  # no time at work: not known
        ([{"images": 0.0, **STAGES}], 0.0, None),  # nothing delivered
        ([{"images": 500.0, **STAGES}, {}], 0.0, None),  # not known of one rank
    ],
)
def test_the_result_of_a_run_shows_what_the_page_shows(
    tmp_path: Path, loaders: list[dict[str, float]], wait_s: float, capacity: float | None
) -> None:
    write_run(tmp_path / "a", *loaders, wait_s=wait_s)
    snapshot = Runs(tmp_path, 60.0).snapshot("a")
    assert snapshot is not None
    page, line = snapshot.status, result(tmp_path / "a").values
    assert page.images_per_s.loader == capacity
    assert line["loader_images_per_s"] == pytest.approx(
        math.nan if capacity is None else capacity, nan_ok=True
    )
    assert line["images_per_s"] == page.images_per_s.trainer == 100.0 * len(loaders)
    assert line["wait_fraction"] == page.data_wait_fraction == wait_s / 5


def test_the_result_is_of_the_newest_attempt_alone(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "a" / "rank-0.jsonl", attempt=1, rank=0)
    writer.write("step", {"steps": 1, "images": 9, "wall_s": 1.0, "loader": {}}, step=1)
    write_run(tmp_path / "a", {"images": 500.0, **STAGES})
    assert result(tmp_path / "a").values["images_per_s"] == 100


def test_the_result_has_the_newest_scores_of_one_view_and_of_ten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shares with four digits, rates with six; what was not measured is a dash, and not in the
    line."""
    writer = EventWriter(tmp_path / "a" / "rank-0.jsonl", attempt=1, rank=0)
    for views, top1, top5 in ((1, 0.25, 0.5), (10, 0.5, 0.75), (1, 0.312345, 0.5625)):
        writer.write("eval", {"views": views, "top1": top1, "top5": top5, "nll": 1.0})
    recipe = RECIPES["sample"]
    launch = Launch(
        runs=str(tmp_path), run="a", shards="s", recipe_name="sample", recipe=recipe, attempt=1
    )
    show(launch)
    lines = capsys.readouterr().out.splitlines()
    line = "result top1=0.3123 top5=0.5625 top1_10view=0.5 top5_10view=0.75"
    assert lines[-1] == line
    cells = [line.strip("│ ").split("│") for line in lines if "│" in line]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["validation top-1, centre view", "31.2%"],
        ["validation top-5, centre view", "56.2%"],
        ["validation top-1, ten views", "50.0%"],
        ["validation top-5, ten views", "75.0%"],
        ["training images/s", "-"],
        ["loader images/s", "-"],
        ["loader headroom", "-"],
        ["waited for data", "-"],
        ["start-up, left out above", "-"],
    ]
    write_run(tmp_path / "a", {"images": 500.0, "read_s": 0.49}, wait_s=1 / 3)
    show(launch)
    speed = "images_per_s=100 loader_images_per_s=1020.41 headroom=10.2 wait_fraction=0.06667"
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"{line} {speed} startup_s=5"
    for label, cell in (("training images/s", "100"), ("loader headroom", "10.2 x")):
        assert [label, cell] in [line.strip("│ ").split(" │ ") for line in squeezed(shown)]


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_absurd_records_count_as_nothing() -> None:
    absurd = {"kind": "step", "attempt": 1, "steps": "x", "wall_s": 1e400, "loader": 5}
    assert step_counters(absurd) is None
    assert attempt_counters([absurd, {"kind": "end"}], 1).whole == ZERO
    good = {"kind": "step", "attempt": 1, "steps": 1, "wall_s": 2.0, "images": -3, "loader": None}
    assert attempt_counters([absurd, good, absurd, good, good], 1).whole.wall_s == 4
    assert attempt_counters([good], 1).whole.capacity is None


def test_no_ranks_have_no_rates() -> None:
    assert throughput([]) == (None, None, None)
    assert throughput([]).headroom is None
    assert wait_fraction([]) is None
    assert startup([]) is None


def test_sums_of_losses_leave_out_what_is_not_finite() -> None:
    """Losses are means over steps and scores over images: the sums are weighted by these."""
    good = {"steps": 4, "wall_s": 2.0, "images": 10, "loss": 1.5, "top1": 0.3, "loader": {}}
    diverged = good | {"loss": None, "top1": None}
    one, none = step_counters(good), step_counters(diverged)
    assert one is not None
    assert none is not None
    assert (one.loss, one.loss_steps, one.hits, one.hit_images) == (6, 4, 3, 10)
    assert (none.loss, none.loss_steps, none.hits, none.hit_images) == (0, 0, 0, 0)
    assert (none.steps, none.images) == (4, 10)
    for lacking in ({"steps": 0}, {"wall_s": 0.0}):
        assert step_counters(good | lacking) is None


def test_counters_are_of_steps_of_one_attempt() -> None:
    step = {"kind": "step", "attempt": 2, "steps": 1, "wall_s": 2.0, "images": 3, "loader": {}}
    others = [step | {"attempt": 1}, step | {"kind": "eval"}]
    assert attempt_counters([step, *others, step, *others], 2).rest.images == 3
