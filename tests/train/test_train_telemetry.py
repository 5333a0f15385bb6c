"""What an interval and an evaluation report, by numbers made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handmade import picture, write_dataset
from torch import Tensor

from gratis.events import EventWriter
from gratis.history import records
from gratis.loader import Loader, LoaderConfig
from gratis.signals import StopSignals, handlers_restored
from gratis.train import telemetry
from gratis.train.evaluate import evaluate, evaluation_config, whole_probabilities
from gratis.train.mesh.mesh import Mesh
from gratis.train.network.alexnet import AlexNet
from gratis.train.recipes import CAFFE, RELEASED, SAMPLE
from gratis.train.telemetry import IntervalMeter, outcome


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
