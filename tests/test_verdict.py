"""What holds training back: every rule at its boundaries, and event files made by hand, whose
numbers, worked out by hand too, are on the page, in the terminal and in the result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gratis.rates import ZERO, AttemptCounters, Counters, Startup, throughput, wait_fraction
from gratis.server.runs import Runs
from gratis.server.top import screen
from gratis.train.launcher.result import result, show
from gratis.train.recipes import RECIPES
from gratis.train.settings import Launch
from gratis.verdict import duration, judge, performance, rate


def counters(**changed: float) -> Counters:
    """1,000 images in ten seconds, of which the loader worked four."""
    usual = {
        "steps": 10,
        "images": 1000,
        "wall_s": 10,
        "delivered": 1000,
        "blocked_s": 6,
        "decode_s": 3,
        "read_s": 1,
    }
    return Counters(**ZERO._asdict() | usual | changed)


@pytest.mark.parametrize(
    ("ranks", "kind", "stage", "rank"),
    [
        ([], "starting", None, None),
        # 5 % of the time waited, and a headroom of 2: the loader worked five of ten seconds
        ([counters(wait_s=0.5, decode_s=4)], "input-bound", "decode", None),
        ([counters(wait_s=0.499, decode_s=4)], "compute-bound", None, None),
        ([counters(wait_s=0.5, decode_s=3.99)], "compute-bound", None, None),  # 2.004
        ([counters(wait_s=5)], "input-bound", "decode", None),  # waited as long: 2
        ([counters(wait_s=4.99)], "compute-bound", None, None),
        ([counters(wait_s=1, delivered=8000)], "compute-bound", None, None),  # a headroom of 20
        ([counters(wait_s=1, delivered=0)], "input-bound", "decode", None),  # of none
        # the stage of most work
        ([counters(wait_s=5, read_s=4)], "input-bound", "read", None),
        ([counters(wait_s=5, finish_s=4)], "input-bound", "finish", None),
        ([counters(wait_s=5, transfer_s=4)], "input-bound", "transfer", None),
        ([counters(wait_s=5, decode_s=0, read_s=0)], "input-bound", None, None),
        ([counters(wait_s=6), counters(wait_s=5)], "input-bound", "decode", None),
        # together 5 %, one alone less
        (
            [counters(wait_s=0.45, decode_s=4), counters(wait_s=0.55, decode_s=4)],
            "input-bound",
            "decode",
            None,
        ),
        # one rank's input: 5 %, twice the others', a headroom of 2
        ([counters(wait_s=2, read_s=4), counters(wait_s=5, read_s=4)], "straggler", "read", 1),
        ([counters(wait_s=0.25), counters(wait_s=0.5, decode_s=4)], "straggler", "decode", 1),
        ([counters(wait_s=0.26), counters(wait_s=0.5, decode_s=4)], "compute-bound", None, None),
        ([counters(wait_s=0.2), counters(wait_s=0.49, decode_s=4)], "compute-bound", None, None),
        ([counters(wait_s=0.2), counters(wait_s=0.5, decode_s=3.9)], "compute-bound", None, None),
        # one rank's own work: 1.25 times the others', for which they wait 5 % in collectives
        ([counters(exchange_s=6), counters(exchange_s=1)], "straggler", None, 1),
        ([counters(exchange_s=6), counters(exchange_s=5.5)], "compute-bound", None, None),
        ([counters(exchange_s=2), counters(exchange_s=0)], "straggler", None, 1),
        ([counters(exchange_s=2), counters(exchange_s=0.01)], "compute-bound", None, None),
        ([counters(exchange_s=0.5), counters(wall_s=12)], "straggler", None, 1),
        ([counters(exchange_s=0.49), counters(wall_s=12)], "compute-bound", None, None),
        # much work of its own, but the others do not wait for it
        (
            [counters(exchange_s=3), counters(exchange_s=3.3, wall_s=12.4)],
            "compute-bound",
            None,
            None,
        ),
        # of several the worst, whatever its place
        ([counters(), counters(wall_s=18), counters(wall_s=13)], "straggler", None, 1),
        (
            [counters(exchange_s=5, wait_s=4), counters(exchange_s=1, wait_s=4)],
            "straggler",
            None,
            1,
        ),
        # one rank's steps: 1.25 times the others'
        ([counters(), counters(), counters(wall_s=12.5)], "straggler", None, 2),
        ([counters(), counters(), counters(wall_s=12.4)], "compute-bound", None, None),
        # the others' median: neither the least nor the most of them, nor their mean
        ([counters(wall_s=wall) for wall in (10, 10, 13, 14)], "straggler", None, 3),
        ([counters(wall_s=wall) for wall in (4, 13, 13, 15)], "compute-bound", None, None),
        (
            [counters(wait_s=wait, decode_s=4) for wait in (0.1, 0.1, 0.4, 0.6)],
            "straggler",
            "decode",
            3,
        ),
        (
            [counters(wait_s=wait, decode_s=4) for wait in (0.1, 0.4, 0.4, 0.6)],
            "compute-bound",
            None,
            None,
        ),
        ([counters(exchange_s=s) for s in (0.1, 3, 3, 0)], "straggler", None, 3),
        ([counters(exchange_s=s) for s in (1, 1, 4.5, 0)], "compute-bound", None, None),
        (
            [*(counters(exchange_s=s) for s in (0.3, 0.3, 3)), counters(wall_s=12.4)],
            "compute-bound",
            None,
            None,
        ),
    ],
)
def test_verdict_by_the_table(
    ranks: list[Counters], kind: str, stage: str | None, rank: int | None
) -> None:
    verdict = judge(dict(enumerate(ranks)))
    assert (verdict.kind, verdict.stage, verdict.rank) == (kind, stage, rank)
    assert verdict.title
    assert verdict.text


def test_pauses_are_waits_that_a_faster_loader_would_not_spare() -> None:
    """Of 5 % of the time and more, at a headroom of more than 2."""
    for wait_s, decode_s, pauses in ((0.5, 3.99, True), (0.499, 3.99, False), (0.5, 4, False)):
        verdict = judge({0: counters(wait_s=wait_s, decode_s=decode_s)})
        assert verdict.pauses is pauses
        assert ("pauses" in verdict.title) is pauses


def test_the_words_of_each_verdict() -> None:
    """A thousand images in ten seconds are 100 images/s; with five seconds of work 200 could be."""
    said = [
        judge({}),
        judge({0: counters()}, only_startup=Startup(1, 2)),
        judge({0: counters(wait_s=5)}),
        judge({0: counters(wait_s=5, decode_s=0, read_s=0)}),
        judge({0: counters(wait_s=0.1)}),
        judge({0: counters(wait_s=1)}),
        judge({0: counters(wait_s=0, delivered=0)}),
        judge({0: counters(wait_s=1, read_s=4), 1: counters(wait_s=5, read_s=4)}),
        judge({0: counters(exchange_s=1), 1: counters(exchange_s=6)}),
        judge({0: counters(), 1: counters(wall_s=12.5)}),
    ]
    assert [(one.title, one.text) for one in said] == [
        ("Starting", "Nothing measured yet: the first interval of training is not over."),
        (
            "Starting",
            "The start-up took 1.0 s until the first batch, then 2.0 s for the first step. Nothing "
            "is measured beyond it.",
        ),
        (
            "Input-bound: decode is too slow",
            "Training waits for data 50% of the time and gets 100 images/s. Of the loader's work: "
            "decode 75%, read 25%.",
        ),
        (
            "Input-bound: the loader is too slow",
            "Training waits for data 50% of the time and gets 100 images/s.",
        ),
        (
            "Compute-bound: the loader keeps up",
            "Training takes 100 images/s and waits for data 1.0% of the time. The loader could "
            "deliver 250 images/s, 2.5 times that.",
        ),
        (
            "Compute-bound, with pauses for data",
            "Training takes 100 images/s and waits for data 10.0% of the time. The loader could "
            "deliver 250 images/s, 2.5 times that. So it waits at single moments, as for an "
            "epoch's first batch, not for want of speed.",
        ),
        (
            "Compute-bound: the loader keeps up",
            "Training takes 100 images/s and waits for data 0.0% of the time.",
        ),
        (
            "Straggler: rank 1 holds the others back",
            "Rank 1 waits for data 50% of the time, the others 10%: all wait for it. Of the "
            "loader's work: read 57%, decode 43%.",
        ),
        (
            "Straggler: rank 0 holds the others back",
            "Rank 0 works 900 ms on a step, the others 400 ms; they spend 60% of the time in "
            "exchanges, waiting for it.",
        ),
        (
            "Straggler: rank 1 holds the others back",
            "Rank 1 takes 1,250 ms a step, the others 1,000 ms.",
        ),
    ]


def test_units_of_time_and_speed() -> None:
    texts = {0: "0 s", 119: "119 s", 120: "2 minutes", 121: "2 minutes", 600: "10 minutes"}
    texts |= {7199: "120 minutes", 7200: "2.0 hours", 9000: "2.5 hours"}
    assert {seconds: duration(seconds) for seconds in texts} == texts
    speeds: dict[float | None, str] = {0.04: "0.0 images/s", 99.94: "99.9 images/s"}
    speeds |= {None: "an unknown number of images/s", 100.2: "100 images/s"}
    speeds |= {12345.6: "12,346 images/s"}
    assert {speed: rate(speed) for speed in speeds} == speeds


def test_a_run_s_performance_is_of_the_newest_counters() -> None:
    """Over `recent` where it is given, and named as stalled or starting if it is that."""
    attempt = AttemptCounters()
    attempt.add(counters(wall_s=3, wait_s=2))
    attempt.add(counters(wait_s=0.1))
    told = performance({0: attempt}, {0: counters(images=500, wait_s=0.2)})
    assert (told.speed.trainer, told.wait_fraction) == (50, 0.02)
    assert told.speed.delivered == 100
    assert told.startup == (2, 1)
    assert told.verdict.kind == "compute-bound"
    whole = performance({0: attempt})
    assert (whole.speed.trainer, whole.wait_fraction) == (100, 0.01)
    assert performance({0: attempt}, stalled_s=130).verdict.kind == "stalled"
    # another rank is still to take its first step
    assert performance({0: attempt}, complete=False).verdict.kind == "starting"
    assert "Nothing measured yet" in performance({0: attempt}, complete=False).verdict.text
    assert wait_fraction([counters(wait_s=11)]) == 1


def test_a_stalled_run_says_for_how_long() -> None:
    verdict = judge({0: counters()}, stalled_s=600, only_startup=Startup(1, 2))
    assert (verdict.kind, verdict.title) == ("stalled", "Stalled")
    assert verdict.text == "No event for 10 minutes: it hangs or is suspended."


def test_rates_by_hand() -> None:
    ranks = [counters(wait_s=1), counters(wait_s=3, decode_s=4)]
    speed = throughput(ranks)
    assert speed.trainer == pytest.approx(200)  # 2 x 1000 images in 10 s
    assert speed.loader == pytest.approx(1000 / 4 + 1000 / 5)
    assert speed.headroom == pytest.approx(450 / 200)
    assert wait_fraction(ranks) == pytest.approx(4 / 20)


def test_capacity_is_over_the_time_at_work() -> None:
    # idle at an epoch's end counts as little as blocked
    assert counters(blocked_s=0).capacity == pytest.approx(1000 / 4)
    # nobody waits for a loader that is not at work
    assert counters(wait_s=5).capacity == pytest.approx(1000 / 5)
    # without stages: what was not blocked
    assert counters(decode_s=0, read_s=0).capacity == pytest.approx(1000 / 4)
    assert counters(delivered=0).capacity is None


def test_the_whole_attempt_is_all_but_its_start_up() -> None:
    attempt = AttemptCounters()
    assert (attempt.started, attempt.whole) == (False, ZERO)
    attempt.add(ZERO)  # a record without a step is no interval
    attempt.add(counters(wait_s=9))
    assert (attempt.started, attempt.whole.wait_s) == (False, 9)
    attempt.add(counters(wait_s=1))
    attempt.add(counters(wait_s=2))
    assert (attempt.started, attempt.whole.wait_s, attempt.whole.steps) == (True, 3, 20)


# Event files as version 0.2.0 writes them: one line for each record, in which there is nothing that
# came later.

STEP = (
    '{{"v":1,"kind":"step","t":{t},"mono":{t},"attempt":1,"rank":{rank},"epoch":0,"step":{step},'
    '"steps":{steps},"images":{images},"wall_s":{wall},"wait_s":{wait},"exchange_s":0.0,'
    '"cpu_s":1.0,"rss_bytes":1000000,"loader":{{"images":{images},"batches":{steps},'
    '"bytes_read":1000,"read_s":{read},"decode_s":{decode},"finish_s":0.0,"transfer_s":0.0,'
    '"wait_s":{wait},"blocked_s":0.0,"queue_depth":2,"queue_capacity":2}},"loss":2.0,"top1":0.5,'
    '"lr":0.01,"gpu":null}}\n'
)
START = (
    '{{"v":1,"kind":"start","t":1000.0,"mono":1000.0,"attempt":1,"rank":{rank},"run":"a",'
    '"recipe":"sample","config":{{}},"mesh":{{"data":1,"tower":{world}}},"world":{world},'
    '"device":"cpu","device_name":"CPU","decoded":"none","pid":1,"host":"elsewhere",'
    '"pid_namespace":1,"versions":{{}},"dataset":"3fa9c1d2","classes":10,"train_images":350,'
    '"val_images":0,"epochs":1,"steps_per_epoch":7,"batch_size":100}}\n'
)
END = (
    '{{"v":1,"kind":"end","t":1020.0,"mono":1020.0,"attempt":1,"rank":{rank},"epoch":1,"step":7,'
    '"outcome":"finished","error":null}}\n'
)
# step, steps, images, and seconds: of the interval, waited, read, decoded
NAMES = ("step", "steps", "images", "wall", "wait", "read", "decode")
Intervals = list[tuple[int, int, int, float, float, float, float]]
TWO_RANKS: list[Intervals] = [
    [
        (1, 1, 50, 12.0, 9.0, 0.0, 9.0),
        (3, 2, 100, 1.0, 0.02, 0.1, 0.1),
        (7, 4, 200, 2.0, 0.06, 0.1, 0.3),
    ],
    [
        (1, 1, 50, 12.0, 10.0, 0.0, 10.0),
        (3, 2, 100, 1.0, 0.04, 0.1, 0.3),
        (7, 4, 200, 2.0, 0.06, 0.1, 0.7),
    ],
]
WAITS_IN_PAUSES: list[Intervals] = [
    [(1, 1, 100, 8.0, 7.0, 0.0, 7.0), (7, 6, 800, 10.0, 1.2, 0.25, 1.0)]
]
TOO_SLOW: list[Intervals] = [[(1, 1, 100, 3.0, 1.0, 0.0, 1.0), (7, 6, 800, 10.0, 7.5, 2.0, 6.0)]]


def write_by_hand(folder: Path, ranks: list[Intervals]) -> None:
    folder.mkdir(parents=True)
    for rank, intervals in enumerate(ranks):
        lines = [START.format(rank=rank, world=len(ranks))]
        for interval in intervals:
            fields = dict(zip(NAMES, interval, strict=True))
            lines.append(STEP.format(**fields, rank=rank, t=1000.0 + interval[0]))
        lines.append(END.format(rank=rank))
        (folder / f"rank-{rank}.jsonl").write_text("".join(lines))


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        # rank 0 takes 300 images in 3 s, its loader works 0.6 s for them: 100 and 500 images/s;
        # rank 1 works 1.2 s: 250. Of 6 s 0.18 are waited. With the start-up in it, of 30 s 19.18
        # were, and the headroom was 1.8: input-bound
        (
            TWO_RANKS,
            {
                "images_per_s": 200.0,
                "loader_images_per_s": 750.0,
                "headroom": 3.75,
                "wait_fraction": 0.03,
                "startup_s": 12.0,
                "kind": "compute-bound",
                "stage": None,
                "startup": [10.0, 2.0],
                "terminal": ["200 images/s", "750 images/s", "3.8", "3.0%"],
                "line": "images_per_s=200 loader_images_per_s=750 headroom=3.75 "
                "wait_fraction=0.03 startup_s=12",
            },
        ),
        # 80 images/s, of a loader that needs 1.25 s for 800: 640, eight times that
        (
            WAITS_IN_PAUSES,
            {
                "images_per_s": 80.0,
                "loader_images_per_s": 640.0,
                "headroom": 8.0,
                "wait_fraction": 0.12,
                "startup_s": 8.0,
                "kind": "compute-bound",
                "stage": None,
                "startup": [7.0, 1.0],
                "terminal": ["80.0 images/s", "640 images/s", "8.0", "12.0%"],
                "line": "images_per_s=80 loader_images_per_s=640 headroom=8 wait_fraction=0.12 "
                "startup_s=8",
            },
        ),
        # a loader that works 8 s for 800 images: 100
        (
            TOO_SLOW,
            {
                "images_per_s": 80.0,
                "loader_images_per_s": 100.0,
                "headroom": 1.25,
                "wait_fraction": 0.75,
                "startup_s": 3.0,
                "kind": "input-bound",
                "stage": "decode",
                "startup": [1.0, 2.0],
                "terminal": ["80.0 images/s", "100 images/s", "1.2", "75.0%"],
                "line": "images_per_s=80 loader_images_per_s=100 headroom=1.25 "
                "wait_fraction=0.75 startup_s=3",
            },
        ),
    ],
)
def test_page_terminal_and_result_show_the_numbers_worked_out_by_hand(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ranks: list[Intervals],
    expected: dict[str, Any],
) -> None:
    write_by_hand(tmp_path / "a", ranks)
    snapshot = Runs(tmp_path, 60.0).snapshot("a")
    assert snapshot is not None
    page = json.loads(snapshot.json)
    assert page["state"] == "finished"
    assert [page["verdict"][key] for key in ("kind", "stage")] == [
        expected["kind"],
        expected["stage"],
    ]
    pauses = expected["kind"] == "compute-bound" and expected["wait_fraction"] >= 0.05
    assert (page["verdict"]["pauses"], "pauses" in page["verdict"]["title"]) == (pauses, pauses)
    assert page["images_per_s"]["trainer"] == pytest.approx(expected["images_per_s"])
    assert page["images_per_s"]["loader"] == pytest.approx(expected["loader_images_per_s"])
    assert page["headroom"] == pytest.approx(expected["headroom"])
    assert page["data_wait_fraction"] == pytest.approx(expected["wait_fraction"])
    startup = page["startup"]
    assert [startup["first_batch_s"], startup["first_step_s"]] == expected["startup"]

    values, verdict = result(tmp_path / "a")
    known = {key: value for key, value in values.items() if not math.isnan(value)}
    assert known == pytest.approx({key: expected[key] for key in known})
    assert verdict is not None
    assert verdict._asdict() == page["verdict"]

    wide = Console(width=400)
    with wide.capture() as capture:
        wide.print(screen(snapshot.status))
    show(launch_of(tmp_path))
    closing = capsys.readouterr().out
    words = " ".join(closing.split())
    for text in (capture.get(), words):
        assert verdict.title in text
        assert verdict.text in text
    for number in expected["terminal"]:
        assert number in capture.get()
        assert number.removesuffix(" images/s") in closing
    assert closing.splitlines()[-1] == f"result {expected['line']}"


def test_a_run_of_one_interval_is_its_start_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_by_hand(tmp_path / "a", [TWO_RANKS[0][:1], TWO_RANKS[1][:1]])
    snapshot = Runs(tmp_path, 60.0).snapshot("a")
    assert snapshot is not None
    values, verdict = result(tmp_path / "a")
    assert verdict is not None
    assert verdict.kind == snapshot.status.verdict.kind == "starting"
    assert verdict.text == (
        "The start-up took 10.0 s until the first batch, then 2.0 s for the first step. "
        "Nothing is measured beyond it."
    )
    assert values["wait_fraction"] == snapshot.status.data_wait_fraction == pytest.approx(19 / 24)
    show(launch_of(tmp_path))
    closing = capsys.readouterr().out
    assert "start-up, all there is above" in closing  # its rates are the numbers above
    assert "left out" not in closing


def launch_of(runs: Path) -> Launch:
    recipe = RECIPES["sample"]
    return Launch(
        runs=str(runs), run="a", shards="shards", recipe_name="sample", recipe=recipe, attempt=1
    )
