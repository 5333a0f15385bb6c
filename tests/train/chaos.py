"""A driver that gets in the way of a training: it kills it, preempts it, fills its disk, takes its
store away, kills the status server and changes the number of ranks. And a run without all that,
which changes its ranks at the same steps.

The disk is filled by a limit on the size of the ranks' files, which weights exceed and events do
not: checkpoints fail until it is lifted."""

from __future__ import annotations

import math
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from ports import free_port
from safetensors.torch import load_file
from serving import Proxy, faulty, proxy
from small import ROOT, of_kind

from gratis.errors import PREEMPTED
from gratis.train import checkpoint

KINDS = ("kill", "preempt", "disk", "store", "page", "ranks")
STEPS = 20  # of an epoch
SMALL = "--recipe sample --width 0.125 --batch 50 --port 0 --save-every 0".split()
ROOM = 50_000  # bytes that events may still grow by on a full disk; weights are more

# The ranks of a run write each step down. They wait where a file says, however slow the driver is
# beside other work; or are signalled in a step, as the driver's run was.
PACED = """
import os, signal, sys, time
if "gratis.train.rank" in sys.orig_argv:
    from gratis.train.telemetry import IntervalMeter
    close = IntervalMeter.close
    def closing(meter, *, step, **more):
        if step == int(os.environ.get("STOP_AT", -1)):
            os.kill(os.getpid(), signal.SIGTERM)
        signals = meter._signals
        while step >= float(open(os.environ["PACE"]).read()):
            if signals.terminated or signals.interrupted:
                break
            time.sleep(0.01)
        return close(meter, step=step, **more)
    IntervalMeter.due, IntervalMeter.close = property(lambda meter: True), closing
"""


class Run:
    """One run by its name, of as many commands as it takes."""

    def __init__(self, runs: Path, name: str, shards: str, epochs: int) -> None:
        self.folder, self.epochs = runs / name, epochs
        given = ["--runs", str(runs), "--run", name, "--shards", shards, "--epochs", str(epochs)]
        self._command = [sys.executable, *"-m gratis train".split(), *SMALL, *given]
        self._pace, paced = runs / "pace", runs / "paced"
        paced.mkdir(parents=True)
        (paced / "sitecustomize.py").write_text(PACED)
        self.environment = os.environ | {
            "XDG_CACHE_HOME": str(runs / "cache"),
            "PACE": str(self._pace),
            "PYTHONPATH": f"{paced}:{ROOT}",
        }
        self.pace(math.inf)
        self.process: subprocess.Popen[str] | None = None

    def pace(self, step: float) -> None:
        """It goes no further than to this step."""
        new = self._pace.with_suffix(".new")
        new.write_text(str(step))
        new.replace(self._pace)

    def start(self, world: int, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*self._command, "--gpus", str(world)],
            cwd=ROOT,
            text=True,
            env=self.environment | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    @property
    def attempt(self) -> int:
        return max((one["attempt"] for one in of_kind(self.folder, "start")), default=0)

    @property
    def step(self) -> int:
        """The newest of the newest attempt."""
        steps = of_kind(self.folder, "step")
        return next((one["step"] for one in steps[::-1] if one["attempt"] == self.attempt), 0)

    def wait_for(self, holds: Callable[[], object], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        assert self.process
        while not holds():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self, code: int) -> str:
        assert self.process
        _, err = self.process.communicate(timeout=600)
        assert self.process.returncode == code, err
        return err

    @property
    def ranks(self) -> list[int]:
        """Process ids of the newest attempt's."""
        world = of_kind(self.folder, "start")[-1]["world"]
        return [of_kind(self.folder, "start", rank)[-1]["pid"] for rank in range(world)]

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process
        for pid in [self.process.pid, *self.ranks]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=60)

    def legs(self) -> list[tuple[int, int]]:
        """(first step, ranks) of what became of the run in the end: each attempt up to where the
        next one took over; those of one mesh that follow each other as one."""
        legs: list[tuple[int, int]] = []
        worlds = {one["attempt"]: one["world"] for one in of_kind(self.folder, "start")}
        seen = set[int]()
        for one in of_kind(self.folder, "step"):
            if one["attempt"] in seen:
                continue
            seen.add(one["attempt"])
            first = one["step"] - one["steps"]
            legs = [leg for leg in legs if leg[0] < first]
            if not legs or legs[-1][1] != worlds[one["attempt"]]:
                legs.append((first, worlds[one["attempt"]]))
        return legs

    def weights(self) -> dict[str, Any]:
        folder = checkpoint.of_step(self.folder / "checkpoints", STEPS * self.epochs)
        return load_file(folder / "network.safetensors")

    def receipts(self) -> list[tuple[int, int, int]]:
        """(epoch, missing, twice) of each epoch, those that were done again too."""
        rows = of_kind(self.folder, "receipt")
        return [(row["epoch"], row["missing"], row["duplicates"]) for row in rows]


class StatusServer:
    """The page beside the run, which is killed and started again."""

    def __init__(self, runs: Path) -> None:
        self._runs, self._port = runs, free_port()
        self.start()

    def start(self) -> None:
        arguments = ["--runs", str(self._runs), "--port", str(self._port)]
        command = [sys.executable, *"-m gratis status".split(), *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def answers(self) -> bool:
        with (
            suppress(OSError),
            urlopen(f"http://127.0.0.1:{self._port}/status", timeout=30) as page,
        ):
            return page.status == 200
        return False


class Chaos:
    """Events by chance, spread over the run's steps."""

    def __init__(  # noqa: PLR0917
        self,
        run: Run,
        way: Proxy,
        server: StatusServer,
        seed: int,
        away_s: tuple[float, float],
        shards: int,
    ) -> None:
        """shards: how many the store has, of all splits."""
        self.shards = shards
        self.run, self.way, self.server, self.away_s = run, way, server, away_s
        self.rng, self.world, self.done = random.Random(seed), 2, Counter[str]()

    def drive(self, events: list[str]) -> None:
        """Until all have happened and the run is at its end."""
        run, last = self.run, STEPS * self.run.epochs
        run.pace(1)
        run.start(self.world)
        for number, kind in enumerate(events):
            target = max(1, (number + 1) * last * 9 // (10 * (len(events) + 1)))
            run.pace(target + 1)
            begun = run.attempt
            run.wait_for(lambda at=target, old=begun: run.attempt >= old and run.step >= at)
            if kind != "disk":
                self.go_on()
                time.sleep(self.rng.random() * 0.3)  # in the middle of a step, or of a checkpoint
            getattr(self, kind)()
            self.done[kind] += 1
            print(f"{kind} at step {run.step}", file=sys.stderr, flush=True)
        run.pace(math.inf)
        run.end(0)

    def go_on(self, steps: int = STEPS) -> None:
        """For so many more, but not to the end: there are events to come."""
        self.run.pace(min(self.run.step + steps, STEPS * self.run.epochs - 1))

    def again(self) -> None:
        before = self.run.attempt
        self.run.start(self.world)
        self.run.wait_for(lambda: self.run.attempt > before and self.run.step)

    def kill(self) -> None:
        self.run.kill()
        self.again()

    def preempt(self) -> None:
        assert self.run.process
        self.run.process.send_signal(signal.SIGTERM)
        self.run.end(PREEMPTED)
        self.again()

    def ranks(self) -> None:
        assert self.run.process
        self.run.process.send_signal(signal.SIGTERM)
        self.run.end(PREEMPTED)
        self.world = 3 - self.world
        self.again()

    def disk(self) -> None:
        """Full until a checkpoint was lost to it, at an epoch's end. Shards that are still to come
        would find no room either, which ends a run: so this waits for them."""
        while len(list(self.cached())) < self.shards:
            self.go_on(2)
            time.sleep(0.1)
        pids, lost = self.run.ranks, len(self.lost())
        events = self.run.folder.glob("rank-*.jsonl")
        self.limit(pids, max(path.stat().st_size for path in events) + ROOM)
        self.go_on()
        self.run.wait_for(lambda: len(self.lost()) > lost)
        self.limit(pids, resource.RLIM_INFINITY)

    def lost(self) -> list[str]:
        texts = [one["message"] for one in of_kind(self.run.folder, "warning")]
        return [text for text in texts if "no checkpoint of step" in text]

    @staticmethod
    def limit(pids: list[int], size: int) -> None:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def store(self) -> None:
        """With all shards that this machine has of it."""
        self.way.away.set()
        for path in self.cached():
            path.unlink()
        back = threading.Timer(self.rng.uniform(*self.away_s), self.way.away.clear)
        back.start()
        back.join()

    def cached(self) -> Iterator[Path]:
        return Path(self.run.environment["XDG_CACHE_HOME"]).glob("gratis/*/*.tar")

    def page(self) -> None:
        """The status server is killed; another one answers, with the run as it is."""
        self.server.kill()
        self.server.start()
        self.run.wait_for(self.server.answers)


@contextmanager
def chaos(
    folder: Path, shards: Path, epochs: int, *, seed: int, away_s: tuple[float, float]
) -> Iterator[Chaos]:
    with ExitStack() as stack:
        store = stack.enter_context(faulty(shards))
        way = stack.enter_context(proxy(store.server_address[1]))
        run = Run(folder, "chaos", way.url, epochs)
        server = StatusServer(folder)
        stack.callback(server.kill)
        yield Chaos(run, way, server, seed, away_s, len(list(shards.glob("*.tar"))))
        if run.process and run.process.poll() is None:
            run.kill()


def undisturbed(folder: Path, shards: Path, epochs: int, legs: list[tuple[int, int]]) -> Run:
    """A run of the same meshes at the same steps, and of nothing else."""
    run = Run(folder, "undisturbed", str(shards), epochs)
    for (_, world), (stop, _) in pairwise(legs):
        run.start(world, STOP_AT=str(stop))
        run.end(PREEMPTED)
    run.start(legs[-1][1])
    run.end(0)
    return run
