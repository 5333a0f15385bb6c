"""What an interval and an evaluation report, by numbers made by hand."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from handmade import as_validation, picture, write_dataset
from one_rank import planned, run_alone
from safetensors.torch import load_file
from small import of_kind
from torch import Tensor

from gratis.events import EventWriter
from gratis.history import records
from gratis.loader import Loader, LoaderConfig
from gratis.signals import StopSignals, handlers_restored
from gratis.train import checkpoint, telemetry
from gratis.train import evaluate as evaluation
from gratis.train.evaluate import (
    evaluate,
    evaluation_config,
    report_evaluation,
    validate,
    whole_probabilities,
    with_progress,
)
from gratis.train.mesh.mesh import Axis, Mesh
from gratis.train.metrics import average_views
from gratis.train.network.alexnet import AlexNet
from gratis.train.rank import (
    CheckpointRefused,
    NetworkWarnings,
    begin,
    first_state,
    last_good,
    start_record,
    training_config,
)
from gratis.train.recipes import CAFFE, PAPER, RELEASED, SAMPLE
from gratis.train.settings import Launch, RunSettings
from gratis.train.telemetry import IntervalMeter, RunStopped, outcome
from gratis.train.training_state import TrainingState, rank_loader, save, save_if_due


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("telemetry") / "shards"
    return write_dataset(root, [picture(i) for i in range(8)])


@pytest.fixture
def meter_of_two(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[IntervalMeter]:
    """Rank 0's, where another rank reports the same numbers."""
    monkeypatch.setattr(telemetry, "sum_over_world", lambda own: 2 * own)
    config = LoaderConfig.alexnet(batch_size=4, crop=56)
    with handlers_restored(), Loader(shards, "train", config) as loader:
        events = EventWriter(tmp_path / "rank-0.jsonl", rank=0, attempt=1)
        yield IntervalMeter(Mesh(world=2), loader, events, StopSignals())


def test_an_interval_over_two_ranks(meter_of_two: IntervalMeter, tmp_path: Path) -> None:
    """Losses are shares of a mean and images are counted: they add up. Seconds do not."""
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [0.0, 0.0]])
    labels = torch.tensor([0, 1, 1, -100])  # two of three right, and a row of padding
    for loss in (0.25, 0.75):
        meter_of_two.add(torch.tensor(loss), logits, labels)
    summary = meter_of_two.close(epoch=4, step=10, rate=0.5)
    assert (summary.steps, summary.images, summary.stop) == (2, 12, None)
    assert summary.loss == pytest.approx(2 * (0.25 + 0.75) / 2)
    assert summary.top1 == pytest.approx(2 / 3)
    (record,) = records(tmp_path)
    assert (record["steps"], record["images"], record["epoch"], record["step"]) == (2, 6, 4, 10)
    assert (record["loss"], record["lr"]) == (summary.loss, 0.5)
    assert record["top1"] == pytest.approx(2 / 3)
    assert summary.wall_s == pytest.approx(record["wall_s"])
    meter_of_two.add(torch.tensor(1.0), logits[3:], labels[3:])  # what was closed counts no more
    assert meter_of_two.close(epoch=4, step=11, rate=0.5).loss == 2.0


def test_a_signal_to_any_rank_stops_all() -> None:
    """A request of the system before one of the user: the run is to be started again."""
    assert [outcome(*ranks) for ranks in ((0, 0), (1, 0), (0, 2), (1, 1))] == [
        None,
        "preempted",
        "interrupted",
        "preempted",
    ]


def test_the_centre_among_ten_views_is_the_centre_view(shards: Path) -> None:
    """By the same network, whether ten views are asked for or one."""
    recipe = replace(SAMPLE, image_size=64, crop=56, width=1 / 16)
    network = AlexNet(recipe, 7)

    def scored(views: int) -> tuple[object, Tensor]:
        config = LoaderConfig.alexnet(augment=False, crop=56, batch_size=8, views=views)
        with Loader(shards, "train", config) as loader:
            (batch,) = loader
            kept: list[tuple[Tensor, Tensor, Tensor]] = []
            scores = evaluate(network, [batch], Mesh(), views=views, kept=kept)
            return scores, kept[0][2]

    ten, averaged = scored(10)
    one, centre = scored(1)
    assert isinstance(ten, dict)
    assert isinstance(one, dict)
    assert ten[1].nll == pytest.approx(one[1].nll, rel=1e-6)
    assert ten[10].nll != pytest.approx(one[1].nll, rel=1e-4)
    assert not torch.allclose(averaged, centre)


def test_an_evaluation_sees_what_training_is_compared_with() -> None:
    """As many views in a step as the recipe trains on, or just below, the same on every rank; the
    recipe's mean, every sample once."""
    config = evaluation_config(RELEASED, 10, 2)
    assert (config.batch_size, config.views, config.crop) == (12, 10, 224)  # of 128: 6 a rank
    assert (config.mean, config.normalize, config.noise) == ("central", "mean-image", "off")
    assert (config.augment, config.remainder, config.dtype) == (False, "pad", torch.float32)
    one = evaluation_config(replace(CAFFE, compute="bfloat16"), 1, 3)
    assert (one.batch_size, one.crop, one.mean) == (255, 227, "offset")  # of 256: 85 a rank
    assert (one.dtype, one.layout) == (torch.bfloat16, "channels_last")
    assert evaluation_config(replace(RELEASED, batch=8), 10, 2).batch_size == 2


def test_training_reads_what_recipe_and_settings_say() -> None:
    settings = RunSettings(
        seed=9,
        bad_samples="quarantine",
        decoded="device",
        decoded_gb=1.5,
        outage_s=7.0,
        read_timeout_s=3.0,
    )
    assert training_config(replace(CAFFE, compute="bfloat16"), settings) == LoaderConfig(
        batch_size=256,
        seed=9,
        crop=227,
        crop_positions="all",
        normalize="mean-image",
        mean="offset",
        noise="off",
        noise_until=67,
        remainder="pad",
        layout="channels_last",
        dtype=torch.bfloat16,
        bad_samples="quarantine",
        decoded="device",
        decoded_gb=1.5,
        outage_s=7.0,
        read_timeout_s=3.0,
    )
    own = training_config(replace(PAPER, crop_area=(0.25, 0.5), flip=0.25, noise_until=0.5))
    fields = (own.area, own.crop_positions, own.crop_chunk, own.flip, own.noise, own.noise_until)
    assert fields == ((0.25, 0.5), "printed", 1, 0.25, "printed", 45)
    assert training_config(replace(RELEASED, crop_chunk=32)).crop_chunk == 32
    assert own.decoded == "none"  # whoever measures decodes


def test_probabilities_are_kept_in_the_order_of_ids() -> None:
    """Whatever order they came in; padding is left out."""
    rows = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.0, 0.0]])
    kept = [
        (torch.tensor([2, 0]), torch.tensor([5, 4]), rows[:2]),
        (torch.tensor([1, -1]), torch.tensor([3, -100]), rows[2:]),
    ]
    whole = whole_probabilities(kept, 4, Mesh())
    assert whole["labels"].tolist() == [4, 3, 5, 0]
    assert torch.equal(whole["probabilities"], rows[[1, 2, 0, 3]])


OPTIONS = (
    *"--run one --recipe released --image-size 64 --crop 56 --width 0.0625 --batch 3".split(),
)


@pytest.fixture
def launch(shards: Path, tmp_path: Path) -> Launch:
    """Of eight pictures by three: three steps an epoch."""
    return planned(tmp_path, shards, *OPTIONS)


@pytest.fixture
def state(launch: Launch) -> Iterator[TrainingState]:
    with handlers_restored():
        yield from begun(launch)


def begun(launch: Launch) -> Iterator[TrainingState]:
    """The only rank's, at its first step."""
    config = training_config(launch.recipe, launch)
    with rank_loader(launch, "train", config, Mesh()) as loader:
        events = EventWriter(launch.folder / "rank-0.jsonl", rank=0, attempt=1)
        state = first_state(launch, Mesh(), loader, events, StopSignals())
        yield state
        state.saver.close()


def test_an_evaluation_s_progress_is_of_images_in_all_of_them(
    state: TrainingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record once a second has passed since the one before; padding is no image."""
    clock = iter([100.0, 100.5, 101.5, 102.5])  # at its begin and behind each of three batches
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    state.epoch, state.step = 5, 17
    batches = list(with_progress(state, state.loader, 10))
    assert [len(batch.ids) for batch in batches] == [3, 3, 3]
    names = ("views", "images", "total", "wall_s", "epoch", "step")
    found = [[one[name] for name in names] for one in of_kind(state.launch.folder, "eval_progress")]
    assert found == [[10, 6, 8, 1.5, 5, 17], [10, 8, 8, 2.5, 5, 17]]


def test_an_evaluation_is_recorded_by_its_views_and_kept_by_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of eight pictures; ten views, the centre among them, and the probabilities of the ten."""
    root = write_dataset(tmp_path / "shards", [picture(i) for i in range(8)])
    launch = planned(tmp_path, as_validation(root), *OPTIONS)
    with handlers_restored():
        for state in begun(launch):
            begin(state)
            assert (state.step, state.epoch, state.saved) == (0, 0, 0)  # there is no checkpoint
            assert of_kind(launch.folder, "warning") == []
            state.step, state.epoch = 7, 2
            scores = report_evaluation(state, 10, keep=True)
            with (
                torch.inference_mode(),
                Loader(root, "val", evaluation_config(state.recipe, 10, 1)) as val,
            ):
                views = {
                    sample: average_views(state.network(own), 10)[0]
                    for images, _, ids in val
                    for own, sample in zip(images, ids.tolist(), strict=True)
                    if sample >= 0
                }
            validate(state)
    assert capsys.readouterr().out.splitlines()[1:] == []
    names = ("views", "images", "epoch", "step")
    records = of_kind(launch.folder, "eval")
    assert [[one[name] for name in names] for one in records] == [
        [1, 8, 2, 7],
        [10, 8, 2, 7],
        [1, 8, 2, 7],
    ]
    kept = load_file(launch.folder / "probabilities.safetensors")
    assert kept["labels"].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    expected = torch.stack([views[sample] for sample in range(8)]).float()
    torch.testing.assert_close(kept["probabilities"], expected)
    right = expected[torch.arange(8), kept["labels"]]
    assert records[1]["nll"] == pytest.approx(-right.log().mean().item(), rel=1e-5)
    assert scores.nll == records[1]["nll"]
    assert state.errors == [1 - records[2]["top1"]]
    assert records[0]["nll"] == pytest.approx(records[2]["nll"], rel=1e-6)
    assert records[0]["top1"] == records[2]["top1"]
    assert all(0 < one["wall_s"] < 60 for one in records)


def test_a_start_names_the_gpu(state: TrainingState, monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.device("cuda", 1)
    names = {own: "NVIDIA H200"}
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    tower, data = Axis(size=2, index=1), Axis(size=3, index=0)
    state.mesh = Mesh(rank=1, world=6, device=own, tower=tower, data=data)
    record = start_record(state)
    assert (record["device"], record["device_name"]) == ("cuda:1", "NVIDIA H200")
    assert (record["mesh"], record["world"]) == ({"data": 3, "tower": 2}, 6)
    assert (record["train_images"], record["val_images"], record["classes"]) == (8, 0, 7)
    assert record["dataset"] == state.loader.manifest.hash
    assert (record["steps_per_epoch"], record["batch_size"], record["epochs"]) == (3, 3, 2)
    state.mesh = Mesh()
    assert (start_record(state)["device"], start_record(state)["device_name"]) == ("cpu", "CPU")


@pytest.mark.parametrize("full", [False, True])
def test_a_run_is_over_once_its_weights_are_saved(
    launch: Launch, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a disk that refuses the last checkpoint it has failed, and the same command mends that."""
    if full:
        launch.folder.mkdir(exist_ok=True)
        (launch.folder / "checkpoints").symlink_to("/proc/nowhere")
    code = run_alone(replace(launch, recipe=replace(launch.recipe, epochs=1)))
    (ended,) = of_kind(launch.folder, "end")
    assert (ended["epoch"], ended["step"]) == (1, 3)
    err = capsys.readouterr().err
    if not full:
        assert (code, ended["outcome"], ended["error"], err) == (0, "finished", None, "")
        return
    assert (code, ended["outcome"]) == (1, "failed")
    assert ended["error"].startswith("training is done, but no checkpoint of step 3: [Errno ")
    assert ended["error"].endswith("; mend that and give the same command again")
    assert err.endswith(f"error: {ended['error']}; there is no good checkpoint\n")


def test_a_signal_stops_an_evaluation_before_its_next_batch(state: TrainingState) -> None:
    batches = with_progress(state, state.loader, 1)
    next(batches)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(RunStopped) as stopped:
        next(batches)
    assert stopped.value.outcome == "preempted"


def test_a_checkpoint_is_due_after_so_many_seconds_of_training(state: TrainingState) -> None:
    """--save-every is 60; where it stands is on record."""
    state.step, state.epoch, state.errors = 7, 2, [0.75, 0.5]
    state.unsaved_s = 59.5
    save_if_due(state)
    assert (state.saved, state.unsaved_s) == (0, 59.5)
    state.unsaved_s = 60.0
    save_if_due(state)
    assert (state.saved, state.unsaved_s) == (7, 0.0)
    state.step = 8
    save_if_due(state, now=True)
    state.saver.settle()
    folder = state.launch.folder
    names = ("epoch", "step", "path")
    assert [[one[name] for name in names] for one in of_kind(folder, "checkpoint")] == [
        [2, 7, "checkpoints/step-00000007"],
        [2, 8, "checkpoints/step-00000008"],
    ]
    saved = checkpoint.read_state(folder / "checkpoints/step-00000007")
    assert (saved.step, saved.epoch, saved.errors, saved.seed) == (7, 2, [0.75, 0.5], 0)
    assert (saved.loader["epoch"], saved.loader["step"]) == (2, 1)  # of three steps an epoch
    size = sum(one.stat().st_size for one in (folder / "checkpoints/step-00000008").iterdir())
    assert of_kind(folder, "checkpoint")[-1]["bytes"] == size


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(
    state: TrainingState, launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    state.seen = [torch.tensor([5, 3, -1])]
    for step, errors in ((4, [0.75]), (5, [0.5])):
        state.step, state.epoch, state.errors = step, 1, errors
        save(state)
    state.saver.settle()
    assert last_good(launch, diverged=True).endswith(
        "/one/checkpoints/step-00000005: --run one and a lower --rate go on from it"
    )
    broken = launch.folder / "checkpoints/step-00000005/network.safetensors"
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    for again in begun(launch):
        begin(again)
        assert (again.step, again.epoch, again.errors, again.saved) == (4, 1, [0.75], 4)
        assert again.seen_before.tolist() == [5, 3]  # padding is left out
        assert again.loader.state_dict()["step"] == 1
        told = [one["message"] for one in of_kind(launch.folder, "warning")]
    assert "step-00000005" in told[0]
    assert told[1] == "the dataset has no validation split: nothing is evaluated"
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "resumed at step 4, epoch 2"
    assert err == f"warning: {told[0]}\n"
    narrow = replace(launch, recipe=replace(launch.recipe, lrn=False))
    for other in begun(narrow):
        with pytest.raises(CheckpointRefused, match="lrn"):
            begin(other)
        assert other.step == 0


def test_a_rank_of_a_pair_begins_with_its_tower(launch: Launch) -> None:
    """The second half of what one process would have, by the run's seed."""
    pair = replace(launch, seed=3, wire="bfloat16")
    mesh = Mesh(rank=1, world=2, tower=Axis(size=2, index=1))
    config = training_config(pair.recipe, pair)
    with (
        handlers_restored(),
        rank_loader(pair, "train", replace(config, batch_size=4), mesh) as own,
    ):
        events = EventWriter(pair.folder / "rank-1.jsonl", rank=1, attempt=1)
        state = first_state(pair, mesh, own, events, StopSignals())
        state.saver.close()
        ids = [sample for batch in own for sample in batch.ids.tolist()]
    assert len(ids) == 4  # of eight
    whole = AlexNet(pair.recipe, 7, seed=3).get_parameter("conv2.weight")
    half = state.network.get_parameter("conv2.weight")
    assert torch.equal(half, whole[len(whole) // 2 :])
    assert (state.network.wire, state.network.classes) == ("bfloat16", 7)


def test_what_a_server_keeps_waiting_is_an_event_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = EventWriter(tmp_path / "rank-1.jsonl", rank=1, attempt=1)
    NetworkWarnings(events).emit(logging.makeLogRecord({"msg": "%s waits", "args": ("s3",)}))
    assert [one["message"] for one in of_kind(tmp_path, "warning", rank=1)] == ["s3 waits"]
    assert capsys.readouterr().err == "warning: s3 waits\n"
