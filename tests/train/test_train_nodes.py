"""Training on several machines: two agents of two processes each, on two networks where root may
make them.

Each "machine" is a network namespace with an end of a virtual cable; without root or ip, both are
the loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ports import free_port
from safetensors.torch import load_file
from small import ROOT, command, of_kind
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from gratis.errors import GratisError
from gratis.train.launcher import rendezvous
from gratis.train.launcher.checks import check_world
from gratis.train.launcher.exit_status import ExitStatus
from gratis.train.launcher.nodes import Nodes, interface, wait_for_node_0
from gratis.train.launcher.rendezvous import Rendezvous, join
from gratis.train.options import parse

LAST = "checkpoints/step-00000020/network.safetensors"
LONG = 240.0  # far more than anything here takes


@dataclass
class Cluster:
    prefixes: list[list[str]]  # of a command, to run it on a machine
    host: str  # of node 0, as both see it

    def rdzv(self) -> str:
        return f"{self.host}:{free_port()}"


def has_networks() -> bool:
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", f"gratis-{os.getpid()}"], capture_output=True)
    subprocess.run(["ip", "netns", "delete", f"gratis-{os.getpid()}"], capture_output=True)
    return made.returncode == 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if not has_networks():
        print("no right to make networks: both machines are the loopback")
        yield Cluster([[], []], "127.0.0.1")
        return
    names = [f"gratis-{os.getpid()}-{node}" for node in (0, 1)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "gratis0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "gratis1",
            "netns",
            names[1],
        )
        for node, name in enumerate(names):
            ip("-netns", name, "address", "add", f"10.77.0.{node + 1}/24", "dev", f"gratis{node}")
            for device in (f"gratis{node}", "lo"):
                ip("-netns", name, "link", "set", device, "up")
        yield Cluster([["ip", "netns", "exec", name] for name in names], "10.77.0.1")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Pair:
    """The two machines' parents of one run."""

    folder: Path
    parents: list[subprocess.Popen[str]]
    again: Callable[[int], subprocess.Popen[str]]  # a machine's command, given once more

    def finish(self) -> list[tuple[int, str, str]]:
        """By node: exit code, what it printed, what it complained of."""
        said = [parent.communicate(timeout=LONG) for parent in self.parents]
        return [
            (parent.returncode, *words) for parent, words in zip(self.parents, said, strict=True)
        ]

    def wait_for(self, step: int, attempt: int = 1) -> None:
        def reached() -> bool:
            assert self.parents[0].poll() is None, self.parents[0].communicate()
            return any(
                one["step"] >= step and one["attempt"] >= attempt
                for one in of_kind(self.folder, "step")
            )

        until(reached)

    def kill_machine(self, node: int, *, agent_alone: bool = False) -> None:
        """As a power cut would: nobody gets to say a word. An agent alone takes its ranks with
        it."""
        ranks = () if agent_alone else (2 * node, 2 * node + 1)
        pids = [of_kind(self.folder, "start", rank)[-1]["pid"] for rank in ranks]
        for pid in [self.parents[node].pid, *pids]:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(cluster: Cluster, sample_shards: Path, tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    started: list[subprocess.Popen[str]] = []

    def parent(node: int, rdzv: str, *arguments: str) -> subprocess.Popen[str]:
        own = ("--node-rank", str(node), "--rdzv", rdzv)
        typed = [*cluster.prefixes[node], *train(tmp_path, sample_shards, *own, *arguments)]
        started.append(
            subprocess.Popen(
                typed, cwd=ROOT, text=True, stdout=-1, stderr=-1, start_new_session=True
            )
        )
        return started[-1]

    def both(*arguments: str, one: tuple[str, ...] = (), rdzv: str = "") -> Pair:
        """`one`: what node 1 is told beside."""
        rdzv = rdzv or cluster.rdzv()
        common = ("--run", "r", "--gpus", "2", "--nnodes", "2", *arguments)

        def again(node: int) -> subprocess.Popen[str]:
            return parent(node, rdzv, *common, *(one if node else ()))

        return Pair(tmp_path / "r", [again(0), again(1)], again)

    yield both
    for process in started:
        if process.poll() is None:
            process.kill()  # its ranks follow their parent
        process.communicate()


def train(runs: Path, shards: Path, *arguments: str) -> list[str]:
    return command(runs, shards, "--save-every", "0", *arguments)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    runs = tmp_path_factory.mktemp("runs")
    subprocess.run(
        train(runs, sample_shards, "--run", "r"),
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=LONG,
    )
    return runs / "r"


def losses(run: Path) -> dict[int, float]:
    """The sum of the losses of all steps up to each that ended an interval."""
    total, found = 0.0, {}
    for step in of_kind(run, "step"):
        total += step["loss"] * step["steps"]
        found[step["step"]] = total
    return found


def same_end(run: Path, alone: Path) -> None:
    one, other = (load_file(folder / LAST) for folder in (alone, run))
    for name, tensor in one.items():
        # float32 on two meshes: a unit near zero may switch on one of them, so the whole is
        # compared, not each number
        assert (other[name] - tensor).norm() <= 2e-3 * tensor.norm(), name


def covered(run: Path) -> list[tuple[int, int, int]]:
    return [(one["epoch"], one["missing"], one["duplicates"]) for one in of_kind(run, "receipt")]


@pytest.mark.slow
def test_two_machines_equal_one_process(start: Callable[..., Pair], alone: Path) -> None:
    """Losses of ten steps in float32 within 1e-5; the second machine prints nothing but that it
    takes part."""
    pair = start()
    (code, out, err), (code_1, out_1, err_1) = pair.finish()
    assert (code, code_1, err, err_1) == (0, 0, "", "")
    assert out.splitlines()[-1].startswith("result ")
    assert "its status is at node 0" in out_1
    assert "epoch" not in out_1
    starts = [of_kind(pair.folder, "start", rank)[0] for rank in range(4)]
    assert [start["mesh"] for start in starts] == [{"data": 2, "tower": 2}] * 4
    assert (
        sum(step["images"] for rank in range(4) for step in of_kind(pair.folder, "step", rank))
        == 2 * 1000
    )
    mine, theirs = losses(pair.folder), losses(alone)
    compared = [step for step in mine.keys() & theirs.keys() if step <= 10]
    assert {1, 10} <= set(compared)
    for step in compared:
        assert mine[step] == pytest.approx(theirs[step], rel=1e-5)
    assert covered(pair.folder) == covered(alone) == [(0, 0, 0), (1, 0, 0)]
    same_end(pair.folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("agent_alone", [False, pytest.param(True, marks=pytest.mark.prove)])
def test_a_lost_machine_leaves_the_rest_to_go_on(
    start: Callable[..., Pair], alone: Path, agent_alone: bool
) -> None:
    """Elastic, 2x2 to 1x2: from the last checkpoint, with no sample lost or repeated."""
    pair = start("--nnodes", "1:2", "--max-restarts", "2")
    pair.wait_for(3)
    pair.kill_machine(1, agent_alone=agent_alone)
    (code, out, err), _ = pair.finish()
    assert (code, err) == (0, "")
    assert re.search(r"^resumed at step \d+", out, re.MULTILINE)
    starts = of_kind(pair.folder, "start")
    assert [(one["attempt"], one["world"]) for one in starts] == [(1, 4), (2, 2)]
    assert covered(pair.folder) == [(0, 0, 0), (1, 0, 0)]
    same_end(pair.folder, alone)


@pytest.mark.prove
def test_a_machine_that_returns_is_taken_back(start: Callable[..., Pair]) -> None:
    """2x2, 1x2, 2x2: the ranks are asked to stop for it, which is no end and takes none of the
    restarts."""
    pair = start("--epochs", "500", "--nnodes", "1:2", "--max-restarts", "1")
    pair.wait_for(3)
    pair.kill_machine(1)
    pair.wait_for(4, attempt=2)
    pair.parents[1].communicate()
    pair.parents[1] = pair.again(1)
    pair.wait_for(5, attempt=3)
    pair.parents[1].send_signal(signal.SIGTERM)
    assert [end[0] for end in pair.finish()] == [75, 75]
    assert [(one["attempt"], one["world"]) for one in of_kind(pair.folder, "start")] == [
        (1, 4),
        (2, 2),
        (3, 4),
    ]
    assert all(missing == duplicates == 0 for _, missing, duplicates in covered(pair.folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("node", "number", "code", "more"),
    [
        (1, signal.SIGTERM, 75, ("--nnodes", "1:2", "--max-restarts", "2")),
        (0, signal.SIGINT, 130, ()),
    ],
)
def test_a_signal_to_one_machine_saves_on_all(
    start: Callable[..., Pair], node: int, number: signal.Signals, code: int, more: tuple[str, ...]
) -> None:
    """And is no loss, after which ranks would begin again."""
    pair = start("--epochs", "200", *more)
    pair.wait_for(2)
    pair.parents[node].send_signal(number)
    ends = pair.finish()
    assert [end[0] for end in ends] == [code, code], ends
    saved = of_kind(pair.folder, "checkpoint")[-1]["step"]
    word = {75: "preempted", 130: "interrupted"}[code]
    assert [end[2] for end in ends] == [
        f"{word}: saved at step {saved}; give the same command to go on\n"
    ] * 2
    assert of_kind(pair.folder, "end")[-1]["outcome"] == word
    assert len(of_kind(pair.folder, "start")) == 1


@pytest.mark.slow
def test_the_first_failure_is_told_on_all_machines(start: Callable[..., Pair]) -> None:
    pair = start("--epochs", "200")
    pair.wait_for(2)
    os.kill(of_kind(pair.folder, "start", 3)[0]["pid"], signal.SIGKILL)
    ends = pair.finish()
    told = "error: rank 3 was killed by SIGKILL; often the kernel's, for want of memory\n"
    assert [(end[0], end[2]) for end in ends] == [(1, told)] * 2


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (
            ("--rate", "0.02"),
            "node 1: rate is 0.02, on node 0 0.01; give every machine the same command",
        ),
        (("--gpus", "4"), "node 1: --batch 100 cannot be split over 8 processes"),
        (("--shards", "elsewhere"), "node 1: elsewhere "),
        (("--runs", "elsewhere"), "must be on a file system that all machines share"),
    ],
)
def test_what_differs_is_refused_on_both(
    start: Callable[..., Pair], one: tuple[str, ...], words: str
) -> None:
    """Before any rank starts."""
    pair = start(one=one)
    for code, _, err in pair.finish():
        assert code == 2, err
        assert err.startswith("error: ")
        assert words in err
        assert err.count("\n") == 1
    assert not of_kind(pair.folder, "start")


def nodes(rdzv: str, rank: int = 0) -> Nodes:
    return Nodes(nnodes="2", node_rank=rank, rdzv=rdzv, join_timeout=0.5)


def test_a_machine_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """From both sides, within the time that was given for it."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    port = free_port()
    with pytest.raises(GratisError, match=r"no node 0 answered within 0.5 s.*refused"):
        join(nodes(f"127.0.0.1:{port}", 1))
    joined = join(nodes(f"127.0.0.1:{port}"))
    with pytest.raises(GratisError, match=f"node 1 did not come to 127.0.0.1:{port} within 0.5 s"):
        joined.begin()


def test_node_0_is_where_the_address_is_and_its_port_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "taken back at the end")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    port = free_port()
    joined = join(nodes(f"127.0.0.1:{port}"))
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):  # at this machine's other addresses
        socket.create_connection(("127.0.0.2", port))
    assert joined.endpoint == f"127.0.0.1:{port}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(GratisError, match=f"port {port} is taken"):
            join(nodes(f"127.0.0.1:{port}"))
        with pytest.raises(GratisError, match="what answers there is no node 0"):
            join(nodes(f"127.0.0.1:{port}", 1))
    for host, words in (
        ("192.0.2.1", "no address of this machine"),
        ("no.such.host.invalid", "nothing is known"),
    ):
        with pytest.raises(GratisError, match=words):
            join(nodes(f"{host}:29400"))


def test_towers_of_a_pair_share_a_machine() -> None:
    common = [*"--recipe sample --nnodes 1:3 --node-rank 0 --rdzv 127.0.0.1:29400".split()]
    with pytest.raises(GratisError, match=r"share a machine.*--tower-ranks 1"):
        check_world(parse(common), 1)
    check_world(parse([*common, "--tower-ranks", "1", "--batch", "30"]), 1)
    with pytest.raises(GratisError, match="--batch 40 cannot be split over 6 processes"):
        check_world(parse([*common, "--batch", "40"]), 2)
    # of 2, 4 and 6
    with pytest.raises(GratisError, match="over 4 processes; take a multiple of 12"):
        check_world(parse([*common, "--batch", "42"]), 2)


def test_a_machine_that_was_refused_is_not_missed() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("answer/1", "node 1: --rate is 0.1, on node 0 0.01")
    own = ExitStatus(code=1, message="error: rank 0 is out of memory", weight=2)
    assert Rendezvous(nodes("127.0.0.1:1"), store, "127.0.0.1").settle(own) == own


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nnodes": "0"}, "--nnodes 0"),
        ({"nnodes": "3:2"}, "--nnodes 3:2"),
        ({"nnodes": "2"}, "needs --rdzv"),
        ({"nnodes": "2", "rdzv": "a:1"}, "needs --node-rank"),
        ({"nnodes": "2", "rdzv": "a:1", "node_rank": 2}, "--node-rank 2 must be from 0 to 1"),
        ({"nnodes": "2", "rdzv": "a", "node_rank": 0}, "--rdzv a must be host:port"),
        ({"nnodes": "2", "rdzv": "a:99999", "node_rank": 0}, "--rdzv a:99999"),
        ({"max_restarts": -1}, "--max-restarts -1"),
        ({"join_timeout": float("nan")}, "--join-timeout nan"),
    ],
)
def test_machines_are_said_rightly(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(GratisError, match=re.escape(words)):
        Nodes(**fields)


def test_a_number_of_machines_or_a_range() -> None:
    nodes = Nodes(nnodes="2:16", node_rank=3, rdzv="[fd00::1]:29400")
    assert (nodes.least, nodes.most, nodes.rank, nodes.address) == (2, 16, 3, ("fd00::1", 29400))
    assert (Nodes().least, Nodes().most, Nodes().rank) == (1, 1, 0)


# what machines tell each other, by a store of this process; seconds pass as they are slept


@pytest.fixture
def store() -> Any:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 100 + sum(seconds), sleep=seconds.append)
    monkeypatch.setattr(rendezvous, "time", clock)
    return seconds


def of_node(store: Any, rank: int, nnodes: str = "2") -> Rendezvous:
    own = Nodes(nnodes=nnodes, node_rank=rank, rdzv="127.0.0.1:1", join_timeout=30)
    return Rendezvous(own, store, "127.0.0.1")


def test_a_plan_is_taken_as_it_was_published(store: Any, slept: list[float]) -> None:
    late = of_node(store, 1)
    with pytest.raises(GratisError, match=r"node 0 at 127.0.0.1:1 had no plan within 30 s"):
        late.plan()
    assert sum(slept) == pytest.approx(30, abs=0.2)
    of_node(store, 0).publish("the plan")
    assert late.plan() == "the plan"
    store.delete_key("plan")
    store.set("go", "node 0: --batch 9 is wrong")
    with pytest.raises(GratisError, match=r"^node 0: --batch 9 is wrong$"):
        late.plan()
    assert of_node(store, 0).endpoint == f"127.0.0.1:{store.port}"
    assert Rendezvous(Nodes(), store, "fd00::1").endpoint == f"[fd00::1]:{store.port}"


def test_a_mistake_on_one_machine_ends_all(store: Any, slept: list[float]) -> None:
    with pytest.raises(GratisError, match=r"^node 1: why$"), of_node(store, 1).errors_shared():
        raise GratisError("why")
    with pytest.raises(GratisError, match=r"^node 1: why$"):
        of_node(store, 0).begin()
    assert store.get("go") == b"node 1: why"
    with pytest.raises(GratisError, match=r"^node 1: why$"):
        of_node(store, 1).begin()
    slept.clear()
    with pytest.raises(GratisError, match=r"^bad$"), of_node(store, 0).errors_shared():
        raise GratisError("bad")
    assert store.get("go") == b"bad"
    assert slept == [1.0]  # for the others to see it
    with pytest.raises(GratisError), of_node(store, 0, "1").errors_shared():
        raise GratisError("alone")
    assert slept == [1.0]


def test_all_begin_once_all_have_come(store: Any, slept: list[float]) -> None:
    with pytest.raises(GratisError, match=r"node 0 at 127.0.0.1:1 did not begin within 30 s"):
        of_node(store, 1, "3").begin()
    assert sum(slept) == pytest.approx(50, abs=0.2)  # and twice the last call
    assert store.get("answer/1") == b""
    slept.clear()
    words = f"--nnodes 3, but node 2 did not come to 127.0.0.1:{store.port} within 30 s; start it"
    with pytest.raises(GratisError, match=words):
        of_node(store, 0, "3").begin()
    assert sum(slept) == pytest.approx(31, abs=0.2)
    slept.clear()
    store.set("answer/2", "")
    of_node(store, 0, "3").begin()
    assert slept == []
    assert store.get("go") == b""
    of_node(store, 1, "3").begin()


def test_enough_machines_begin_after_a_last_call(store: Any, slept: list[float]) -> None:
    store.set("answer/2", "")
    of_node(store, 0, "2:4").begin()
    assert sum(slept) == pytest.approx(10, abs=0.2)
    assert store.get("go") == b""


OWN = ExitStatus(code=1, message="error: connection reset", weight=2, t=5.0)


@pytest.mark.parametrize(
    ("theirs", "first"),
    [
        (ExitStatus(code=1, message="error: rank 3 was killed", weight=0, t=9.0), 1),
        (ExitStatus(code=2, message="error: --width", weight=1, t=9.0), 1),
        (ExitStatus(code=1, message="Traceback", weight=2, t=4.0), 1),
        (ExitStatus(code=1, message="connection closed", weight=2, t=6.0), 0),
    ],
)
def test_of_several_failures_the_cause_is_told_everywhere(
    theirs: ExitStatus, first: int, store: Any, slept: list[float]
) -> None:
    """What was killed before what a user did wrong, that before what may follow from others, and
    of alike ones the first."""
    for key, value in (("answer/1", ""), ("end/1", json.dumps(asdict(theirs))), ("read/1", "")):
        store.set(key, value)
    told = (OWN, theirs)[first]
    assert of_node(store, 0).settle(OWN) == told
    assert slept == []
    assert ExitStatus(**json.loads(store.get("first"))) == told
    assert ExitStatus(**json.loads(store.get("end/0"))) == OWN
    store.delete_key("read/1")
    assert of_node(store, 1).settle(theirs) == told
    assert store.check(["read/1"])
    assert ExitStatus(**json.loads(store.get("end/1"))) == theirs


def test_a_machine_that_is_silent_at_the_end_is_the_cause(store: Any, slept: list[float]) -> None:
    """Of what follows from others; a cause of one's own stays."""
    for node in (1, 2):
        store.set(f"answer/{node}", "")
    silent = "error: node 1, node 2 cannot be reached any more; give the same commands to go on"
    assert of_node(store, 0, "3").settle(OWN) == ExitStatus(code=1, message=silent)
    assert sum(slept) == pytest.approx(10, abs=0.3)
    killed = ExitStatus(code=1, message="error: rank 0 was killed", weight=0)
    assert of_node(store, 0, "3").settle(killed) == killed
    store.delete_key("first")
    slept.clear()
    assert of_node(store, 1).settle(OWN) == OWN
    assert sum(slept) == pytest.approx(20, abs=0.3)
    for code in (0, 75, 130):  # which all have alike
        done = ExitStatus(code=code, weight=2)
        assert of_node(store, 1).settle(done) == done
    store.set("first", "")
    assert of_node(store, 0, "1").settle(OWN) == OWN  # nobody is asked
    assert store.get("first") == b""


def test_a_store_that_is_gone_took_node_0_with_it() -> None:
    class Gone:
        port = 1

        def set(self, *_: object) -> None:
            raise RuntimeError("connection reset by peer")

        check = get = set

    gone = "error: node 0 cannot be reached any more; give the same commands to go on"
    assert of_node(Gone(), 1).settle(OWN) == ExitStatus(code=1, message=gone)
    for call in (of_node(Gone(), 1).plan, of_node(Gone(), 1).begin):
        with pytest.raises(SystemExit, match=r"error: node 0 at 127.0.0.1:1 ended before"):
            call()


def test_the_device_that_others_reach_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose name is its loopback's goes by where the default route goes."""
    devices = {"lo": "127.0.0.1", "eth7": "10.0.0.5", "wlan0": "10.0.9.9"}
    found = {name: [SimpleNamespace(address=own)] for name, own in devices.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)

    class Routed(socket.socket):
        def connect(self, address: Any) -> None:
            assert self.type == socket.SOCK_DGRAM

        def getsockname(self) -> Any:
            return "10.0.9.9", 1

    monkeypatch.setattr(socket, "socket", Routed)
    assert interface("10.0.0.5", "10.0.0.1") == "eth7"
    assert interface("127.0.1.1", "node0") == "wlan0"
    for host in ("localhost", "127.0.0.1"):
        assert interface("127.0.0.1", host) == "lo"
    assert interface("192.0.2.3", "node0") == "lo"


def test_the_address_towards_node_0_is_the_one_it_sees(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert wait_for_node_0(nodes(address, 1)) == "127.0.0.1"
    assert capsys.readouterr().out == f"waiting for node 0 at {address}\n"
