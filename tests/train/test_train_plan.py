"""What a command checks and plans before any rank starts: its dataset, its processes, its run's
name, and what several machines agree on."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from handmade import as_validation
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.events import EventWriter
from gratis.locks import RESERVED, lock
from gratis.train.launcher import nodes as nodes_module
from gratis.train.launcher.checks import check_dataset, check_files, check_world, manifest_of
from gratis.train.launcher.command import NODE_LOCKS, check, follow, lead
from gratis.train.launcher.launch import (
    changes,
    check_available,
    check_size,
    plan,
    run_by_name,
    run_by_recipe,
)
from gratis.train.launcher.nodes import describe_differences
from gratis.train.launcher.rendezvous import Rendezvous
from gratis.train.launcher.sample import prepare_sample
from gratis.train.options import Options, common_terms, parse
from gratis.train.recipes import RELEASED, Recipe
from gratis.train.settings import Launch, RunSettings

FITTING = ("--recipe", "released", "--image-size", "64", "--crop", "56")


@pytest.fixture(scope="module")
def shards(jpeg_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 images of seven classes at 64 pixels, with a validation split."""
    copy = tmp_path_factory.mktemp("planned") / "shards"
    return as_validation(shutil.copytree(jpeg_dataset, copy))


@pytest.fixture(autouse=True)
def _no_name_is_kept() -> Iterator[None]:
    """A starter holds its run's name for as long as it lives."""
    yield
    for held in (RESERVED, NODE_LOCKS):
        while held:
            held.pop().close()


def options_of(shards: Path | str, runs: Path, *arguments: str) -> Options:
    where = ("--shards", str(shards), "--runs", str(runs), "--port", "0")
    return parse([*where, *FITTING, *arguments])


def test_a_dataset_that_fits_is_taken(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of(shards)
    assert manifest == read_manifest(shards)
    check_dataset(shards, manifest, options_of(shards, Path()))
    check_dataset(shards, manifest, options_of(shards, Path(), "--classes", "7"))
    assert capsys.readouterr().out == ""
    alone = replace(manifest, splits={"train": manifest.splits["train"]})
    check_dataset(shards, alone, options_of(shards, Path()))
    without = f"{shards} has no validation split"
    assert capsys.readouterr().out == f"{without}: training only, nothing can be evaluated\n"
    # what is on a server is checked when it comes
    check_dataset("https://none/shards", manifest, options_of("x", Path()))


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({"image_size": 128}, (), "wants 64: take --recipe sample or tiny, or make shards"),
        ({"image_size": 96}, (), "holds 96-pixel images, .* set --image-size 96 and a --crop"),
        ({"classes": ()}, (), "was made with --unlabelled"),
        ({}, ("--classes", "6"), "--classes 6: .* has 7 classes; take at least those"),
        ({}, ("--crop", "40", "--pool", "separate"), "--crop 40 leaves nothing for"),
        ({"splits": {}}, (), "train"),
        ({"shape": "whole"}, (), "training AlexNet"),
        ({"splits": None}, ("--schedule", "plateau"), "plateau follows .* has no validation split"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(
    fields: dict[str, Any], arguments: tuple[str, ...], message: str, shards: Path
) -> None:
    manifest = read_manifest(shards)
    if "splits" in fields and fields["splits"] is None:
        fields = {"splits": {"train": manifest.splits["train"]}}
    with pytest.raises(GratisError, match=message):
        check_dataset(shards, replace(manifest, **fields), options_of(shards, Path(), *arguments))


def test_a_shard_that_is_missing_or_cut_is_named(jpeg_dataset: Path, tmp_path: Path) -> None:
    """The validation split's too, which would be read an epoch later."""
    shards = as_validation(shutil.copytree(jpeg_dataset, tmp_path / "shards"))
    manifest = read_manifest(shards)
    check_files(shards, manifest)
    val = replace(manifest.splits["val"], shards=manifest.splits["val"].shards[3:4])
    manifest = replace(manifest, splits={"train": manifest.splits["train"], "val": val})
    path = shards / val.shards[0].name
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        with pytest.raises(GratisError, match=f"{path} is missing or not as long as published"):
            check_files(shards, manifest)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 2**64}, r"--seed 18446744073709551616 must be at least 0 and below 2\*\*64"),
        ({"seed": -1}, "--seed -1 must be at least 0"),
        ({"decoded_gb": 0.0}, "--decoded-gb 0.0 must be above 0"),
        ({"decoded_gb": float("nan")}, "--decoded-gb nan"),
        ({"save_every": -0.5}, "--save-every -0.5 must be at least 0 seconds"),
        ({"save_every": float("nan")}, "--save-every nan"),
        ({"outage_s": 86_401.0}, "outage_s is 86401.0; it must be from 0 to 86,400 seconds"),
        ({"read_timeout_s": 0.0}, "read_timeout_s is 0.0; it must be above 0"),
    ],
)
def test_settings_out_of_their_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(GratisError, match=message):
        RunSettings(**fields)
    RunSettings(seed=2**64 - 1, decoded_gb=0.5, save_every=0.0, outage_s=0.0, read_timeout_s=0.1)


def test_processes_share_a_batch_and_a_network() -> None:
    caffe = ("--recipe", "caffe")
    check_world(parse(["--shards", "x", *caffe]), 1)
    check_world(parse(["--shards", "x", *caffe, "--tower-ranks", "1"]), 2)
    with pytest.raises(GratisError, match="across the towers: take --gpus 1 or --tower-ranks 1"):
        check_world(parse(["--shards", "x", *caffe]), 2)
    with pytest.raises(GratisError, match="--batch 30 cannot be split over 4 processes"):
        check_world(parse(["--shards", "x", "--batch", "30"]), 4)


def test_how_many_processes_a_machine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def local(present: int, *arguments: str) -> int:
        return check(options_of("x", tmp_path, *arguments), present)

    assert [local(present) for present in (0, 3, 4)] == [1, 2, 4]
    assert local(1, "--gpus", "2", "--share-device") == 2
    with pytest.raises(GratisError, match="cannot be split over 6"):
        local(6)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(GratisError, match="--compile on needs"):
        local(0, "--compile", "on")
    ended(tmp_path / "over", "finished")
    with pytest.raises(GratisError, match="over is finished; choose another --run"):
        local(0, "--run", "over")
    rank_1 = ("--nnodes", "2", "--node-rank", "1", "--rdzv", "a:1", "--tower-ranks", "1")
    assert local(0, "--run", "over", *rank_1) == 1  # node 0 sees to that


def ended(folder: Path, outcome: str | None, **config: object) -> None:
    """The records of a run's first attempt."""
    events = EventWriter(folder / "rank-0.jsonl", attempt=1, rank=0)
    fitting = replace(RELEASED, image_size=64, crop=56)
    recipe = json.loads(json.dumps(dataclasses.asdict(fitting))) | config
    seed = recipe.pop("seed", 0)
    events.write("start", {"config": {"recipe": recipe, "seed": seed}})
    if outcome:
        events.write("end", {"outcome": outcome, "error": None})
    events.close()


def test_a_run_is_planned_as_its_options_say(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/gratis", "train", "--run", "my own"])
    given = ("--run", "mine", "--seed", "3", "--wire", "float16", "--save-every", "5")
    ended(tmp_path / "mine", None, seed=3)
    manifest = read_manifest(shards)
    launch = plan(options_of(shards, tmp_path, *given), shards, manifest)
    assert launch == Launch(
        seed=3,
        wire="float16",
        save_every=5.0,
        runs=str(tmp_path),
        run="mine",
        shards=str(shards),
        recipe_name="released",
        recipe=replace(RELEASED, image_size=64, crop=56),
        attempt=2,
        command="gratis train --run 'my own'",
    )
    assert shlex.split(launch.command)[2:] == ["--run", "my own"]
    out = capsys.readouterr().out.splitlines()
    assert out == [
        f"run: {tmp_path}/mine (unfinished: going on where it stopped)",
        "--batch 128 is more than the 101 training images: an epoch is one step of all",
    ]
    one_tower = ("--towers", "1", "--exchange", "--batch", "101")
    other = plan(options_of(shards, tmp_path, *one_tower), shards, manifest)
    # one tower is never spread
    assert (other.tower_ranks, other.attempt) == (1, 1)
    assert other.run == f"released-{manifest.hash[:8]}-1"
    assert capsys.readouterr().out == f"run: {tmp_path}/{other.run}\n"
    with pytest.raises(GratisError, match="mine is in use by"):
        plan(options_of(shards, tmp_path, *given), shards, manifest)


def test_a_named_run_goes_on_but_not_in_another_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def named(run: str, *arguments: str) -> tuple[str, bool]:
        return run_by_name(options_of("x", tmp_path, "--run", run, *arguments))

    assert named("new") == ("new", False)
    ended(tmp_path / "old", "preempted")
    assert named("old") == ("old", True)
    assert capsys.readouterr().out == ""
    assert named("old", "--rate", "0.5") == ("old", True)
    assert capsys.readouterr().out == (
        f"run {tmp_path}/old goes on with other settings: rate was 0.01, is 0.5\n"
    )
    for option, value, was in (("seed", "1", 0), ("batch", "64", 128)):
        message = f"old cannot go on so: {option} was {was}, is {value}; give what it was"
        with pytest.raises(GratisError, match=message):
            named("old", f"--{option}", value, "--rate", "0.5")
    ended(tmp_path / "over", "finished")
    with pytest.raises(GratisError, match="over is finished"):
        named("over")
    ended(tmp_path / "wild", "diverged")  # may go on, if that is wanted
    check_available(tmp_path / "wild")
    with lock(tmp_path / "busy"), pytest.raises(GratisError, match="busy is in use by process"):
        check_available(tmp_path / "busy")


def test_the_newest_run_of_a_recipe_goes_on_with_its_own_settings_alone(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(shards)
    stem = f"released-{manifest.hash[:8]}"

    def by_recipe(*arguments: str) -> tuple[str, bool]:
        return run_by_recipe(options_of(shards, tmp_path, *arguments), manifest)

    assert by_recipe() == (f"{stem}-1", False)
    ended(tmp_path / f"{stem}-9", "preempted")
    assert by_recipe() == (f"{stem}-9", True)
    assert capsys.readouterr().out == ""
    assert by_recipe("--seed", "5", "--rate", "0.5") == (f"{stem}-10", False)
    assert capsys.readouterr().out == (
        f"run {tmp_path}/{stem}-9 is unfinished, but rate was 0.01, is 0.5, seed was 0, is 5: "
        f"another begins (--run {stem}-9 goes on with it)\n"
    )
    folder = tmp_path / f"{stem}-9"
    assert changes(folder, options_of("x", tmp_path).fields, 5) == {"seed": "seed was 0, is 5"}


def test_a_network_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """60,965,224 weights, gradients and velocities in float32 are 731,582,688 bytes."""
    total = [731_582_688]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total[0]))
    check_size(RELEASED, 1000)
    total[0] -= 1
    words = "60,965,224 parameters do not fit into this machine's 1 GiB; take a smaller --width"
    with pytest.raises(GratisError, match=words):
        check_size(RELEASED, 1000)


def test_the_sample_is_drawn_and_sharded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a scheduler's variables would make it one task of several; the first stage that
    fails ends it."""
    begun, codes = list[list[str]](), [0, 0, 3]

    def stage(command: list[str]) -> SimpleNamespace:
        begun.append(command[3:])
        return SimpleNamespace(wait=lambda: codes.pop(0), args=command)

    monkeypatch.setattr(subprocess, "Popen", stage)
    assert prepare_sample(96, Path("runs/sample-shards")) == Path("sample/shards")
    where = "--src sample/source --out sample/shards --size 96 --run-dir runs/sample-shards"
    assert begun == [
        ["sample", "--out", "sample/source"],
        ["shards", *where.split(), "--task-id", "0", "--num-tasks", "1"],
    ]
    with pytest.raises(subprocess.CalledProcessError) as failed:
        prepare_sample(96, Path("runs"))
    assert (failed.value.returncode, len(begun)) == (3, 3)


def test_what_machines_must_agree_on_is_all_but_places() -> None:
    def terms(*arguments: str) -> dict[str, object]:
        return common_terms(parse(["--shards", "x", *arguments]), 2)

    own = terms()
    fields = {field.name for kind in (Recipe, RunSettings) for field in dataclasses.fields(kind)}
    assert own.keys() == fields | {
        *("recipe", "run", "nnodes", "max_restarts", "gpus", "device", "torch"),
        "nvidia-dali-cuda130",
    }
    assert (own["gpus"], own["device"], own["recipe"]) == (2, "CPU", "released")
    assert (own["nnodes"], own["max_restarts"], own["run"]) == ("1", 0, None)
    assert own["drops"] == [25 / 90, 51 / 90, 79 / 90]
    assert own["torch"] == version("torch")
    for place in ("--shards y", "--runs z", "--port 0", "--tensorboard"):
        assert terms(*place.split()) == own
    asked = ("--rate 0.5", "--seed 3", "--run r", "--wire float16", "--max-restarts 1")
    assert all(terms(*other.split()) != own for other in asked)
    assert common_terms(parse(["--shards", "x"]), 4) == own | {"gpus": 4}
    assert describe_differences(own | {"lrn_k": 1.0}, own | {"seed": 7}) == (
        "lrn-k is 1.0, on node 0 2.0, seed is 0, on node 0 7"
    )
    assert describe_differences({}, {"new_one": 1}) == "new-one is None, on node 0 1"


def test_another_machine_follows_the_plan_with_its_own_places(
    shards: Path,
    jpeg_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both here: node 1 has the dataset in another folder, and the runs by another name."""
    common = ("--run", "r", "--nnodes", "2", "--rdzv", "127.0.0.1:1", "--tower-ranks", "1")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    options = options_of(shards, tmp_path / "runs", *common, "--node-rank", "0")
    with ExitStack() as stack:
        launch = lead(options, 1, Rendezvous(options.nodes, store, "127.0.0.1"), stack)
    published = store.get("plan").decode()
    assert json.loads(published)["dataset"] == read_manifest(shards).hash
    elsewhere = shutil.copytree(shards, tmp_path / "copy")
    (tmp_path / "link").symlink_to("runs")

    def followed(*arguments: str, folder: Path = elsewhere, plan: str = published) -> Launch:
        own = options_of(folder, tmp_path / "link", *common, "--node-rank", "1", *arguments)
        return follow(own, 1, plan)

    capsys.readouterr()
    own = followed()
    assert own == replace(launch, shards=str(elsewhere), runs=str(tmp_path / "link"))
    assert capsys.readouterr().out == f"run: {tmp_path}/link/r; its status is at node 0\n"
    with pytest.raises(GratisError, match="its --node-rank is in use by another machine"):
        followed()
    differs = "rate is 0.5, on node 0 0.01; give every machine the same command"
    with pytest.raises(GratisError, match=differs):
        followed("--rate", "0.5")
    with pytest.raises(GratisError, match=r"jpeg is dataset \w{8}, node 0 has \w{8}$"):
        followed(folder=jpeg_dataset)
    now = [0.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    monkeypatch.setattr(nodes_module, "time", clock)
    other_token = json.dumps(json.loads(published) | {"token": "another"})
    with pytest.raises(GratisError, match=r"--runs is not the folder that node 0 has: .*r/node-0"):
        followed(plan=other_token)
    assert now[0] == pytest.approx(10, abs=0.3)
