"""gratis.torch in the hands of a program that expects torch's DataLoader."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import CLASSES, FEW, picture, write_dataset
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import RandomSampler, default_collate

from gratis.errors import GratisError
from gratis.loader import CutMix, Loader, LoaderConfig, MixUp
from gratis.torch import DataLoader, ShardDataset

ROOT = Path(__file__).resolve().parents[2]
COUNT = FEW
TRAINING = LoaderConfig.imagenet(crop=48, threads=1)
EVALUATION = LoaderConfig.evaluation(crop=48, threads=1)
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def train(few_raw: Path) -> ShardDataset:
    return ShardDataset(few_raw, "train", TRAINING)


@pytest.fixture
def evaluation(few_raw: Path) -> ShardDataset:
    return ShardDataset(few_raw, "train", EVALUATION)


def assert_same(found: Any, expected: Any) -> None:
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for (images, labels), (other_images, other_labels) in zip(found, expected, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def epochs(root: Path, config: LoaderConfig, count: int, **options: Any) -> list[Pairs]:
    """The same by the loader itself."""
    with Loader(root, "train", config, **options) as loader:
        return [[(images, labels) for images, labels, _ in loader] for _ in range(count)]


def test_pairs_are_the_loaders_batches(few_raw: Path, train: ShardDataset) -> None:
    loader = DataLoader(train, batch_size=20)
    config = LoaderConfig.imagenet(crop=48, threads=1, batch_size=20)
    for expected in epochs(few_raw, config, 2):
        assert_same(loader, expected)
    assert len(loader) == 3
    assert [len(labels) for _, labels in loader] == [20, 20, 1]


def test_what_programs_read(train: ShardDataset, few_raw: Path) -> None:
    """timm, torchvision, fastai and examples of PyTorch ask for these."""
    loader = DataLoader(
        train, 16, shuffle=True, num_workers=8, pin_memory=True, drop_last=True, prefetch_factor=2
    )
    assert len(loader.dataset) == COUNT
    assert len(loader.sampler) == COUNT
    assert loader.dataset.classes == [f"n{label:08d}" for label in range(CLASSES)]
    assert loader.dataset.class_to_idx["n00000003"] == 3
    assert (loader.batch_size, loader.drop_last, len(loader)) == (16, True, 2)
    assert (loader.num_workers, loader.pin_memory) == (8, True)
    assert (loader.batch_sampler, loader.device) == (None, torch.device("cpu"))
    assert isinstance(loader, torch.utils.data.IterableDataset)
    assert DataLoader(ShardDataset(few_raw, "train", TRAINING)).batch_size == 128


def test_without_a_config_training_is_as_of_imagenet(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "large", [picture(0, 256)], codec="raw")
    assert ShardDataset(root, "train").config == LoaderConfig.imagenet()


@pytest.mark.parametrize("drop_last", [None, True, False])
@pytest.mark.parametrize("remainder", ["short", "drop"])
def test_drop_last(few_raw: Path, remainder: Any, drop_last: bool | None) -> None:
    config = LoaderConfig(crop=48, remainder=remainder)
    dataset = ShardDataset(few_raw, "train", config)
    dropped = remainder == "drop" if drop_last is None else drop_last
    assert len(DataLoader(dataset, 20, drop_last=drop_last)) == (2 if dropped else 3)


def test_ranks_of_the_environment(
    few_raw: Path, train: ShardDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun sets them; batch_size is of one rank."""
    config = LoaderConfig.imagenet(crop=48, threads=1, batch_size=24)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        expected = epochs(few_raw, config, 1, rank=rank, world_size=2)[0]
        loader = DataLoader(train, 12)
        assert (loader.batch_size, len(loader)) == (12, 2)
        assert_same(loader, expected)
    alone = DataLoader(train, 12, rank=0, world_size=1)  # as a validation on one rank
    assert (alone.batch_size, len(alone)) == (12, 4)


def test_ranks_of_torch_distributed(train: ShardDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """They count more than the environment; a loader that was made before does not go on as if it
    were alone."""
    early = DataLoader(train, 12)
    monkeypatch.setenv("WORLD_SIZE", "7")
    monkeypatch.setenv("RANK", "6")
    with pytest.raises(GratisError, match=r"rank, world_size was \(0, 1\) and is \(6, 7\); make"):
        next(iter(early))
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert DataLoader(train, 12).loader.world_size == 1
        next(iter(early))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_an_evaluation(few_jpeg: Path, tmp_path: Path) -> None:
    """Under torchrun, whose ranks the loader takes: each sample comes once, also where the last
    batch is short; each process says its rows and the sum of its labels."""
    program = f"""
import torch
from gratis.torch import DataLoader, LoaderConfig, ShardDataset

torch.distributed.init_process_group("gloo")
dataset = ShardDataset({str(few_jpeg)!r}, "train", LoaderConfig.evaluation(crop=48))
batches = [labels for _, labels in DataLoader(dataset, 11)]
counts = torch.tensor([len(batches[0]), len(batches[-1]), len(torch.cat(batches))])
gathered = [torch.empty_like(counts) for _ in range(2)]
torch.distributed.all_gather(gathered, counts)
total = torch.cat(batches).sum()
torch.distributed.all_reduce(total)
if torch.distributed.get_rank() == 0:
    print([each.tolist() for each in gathered], int(total))
torch.distributed.destroy_process_group()
"""
    (tmp_path / "program.py").write_text(program)
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 program.py".split()
    done = subprocess.run(
        [sys.executable, *torchrun],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # 41 = 22 + 19
    labels = sum(sample % CLASSES for sample in range(COUNT))
    assert done.stdout.strip() == f"[[11, 10, 21], [11, 9, 20]] {labels}"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4 without RANK; first initialise torch.distributed"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment; it must be a whole"),
        ({"RANK": "-1"}, "RANK is '-1' in the environment; it must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank is 2; with world_size 2 it must be from 0 to 1"),
    ],
)
def test_ranks_that_nobody_can_have(
    environment: dict[str, str], message: str, train: ShardDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GratisError, match=message):
        DataLoader(train, 12)


def test_set_epoch_of_the_sampler(few_raw: Path, train: ShardDataset) -> None:
    """The epoch that a program names is the one that comes, named before or after the loader is
    made; what is not named follows the last."""
    config = LoaderConfig.imagenet(crop=48, threads=1, batch_size=20)
    expected = epochs(few_raw, config, 4)
    train.set_epoch(2)
    loader = DataLoader(train, 20, sampler=train)
    assert_same(loader, expected[2])
    assert_same(loader, expected[3])
    for epoch in (1, 0):
        loader.sampler.set_epoch(epoch)
        iter(loader)
        assert_same(loader, expected[epoch])


def test_set_epoch_is_of_all_loaders_of_the_dataset(train: ShardDataset, few_raw: Path) -> None:
    """As of a DistributedSampler that two of torch's loaders share: whoever iterates first takes it
    from no other."""
    expected = epochs(few_raw, replace(train.config, batch_size=20), 3)
    loaders = [DataLoader(train, 20) for _ in range(2)]
    loaders[1].set_epoch(2)
    for loader in loaders:
        assert_same(loader, expected[2])


def test_it_resumes_inside_an_epoch(few_raw: Path, train: ShardDataset) -> None:
    """Although the program calls set_epoch before every epoch, and before it loads the state."""
    config = LoaderConfig.imagenet(crop=48, threads=1, batch_size=20)
    expected = epochs(few_raw, config, 3)
    loader = DataLoader(train, 20)
    loader.set_epoch(1)
    batches = iter(loader)
    assert_same([next(batches), next(batches)], expected[1][:2])
    state = loader.state_dict()
    other = DataLoader(ShardDataset(few_raw, "train", TRAINING), 20)
    other.set_epoch(0)
    other.load_state_dict(state)
    other.set_epoch(1)
    assert_same(other, expected[1][2:])
    other.set_epoch(2)
    assert_same(other, expected[2])


def test_torchs_dataloader_takes_it(evaluation: ShardDataset) -> None:
    loader = DataLoader(evaluation, 20)
    wrapped = TorchDataLoader(loader, batch_size=None)
    assert len(wrapped) == 3
    assert_same(wrapped, loader)


@pytest.mark.starts
def test_worker_processes_are_refused(evaluation: ShardDataset) -> None:
    wrapped = TorchDataLoader(DataLoader(evaluation, 20), batch_size=None, num_workers=1)
    with pytest.raises(GratisError, match="the loader has threads of its own; use num_workers=0"):
        next(iter(wrapped))


def test_collate_fn_gets_samples(evaluation: ShardDataset) -> None:
    """As torchvision's references give mixup: default_collate of the samples is the batch."""
    seen = []

    def collate(samples: list[Any]) -> Any:
        seen.append(len(samples))
        return default_collate(samples)

    plain = DataLoader(evaluation, 20, collate_fn=default_collate)
    assert_same(DataLoader(evaluation, 20, collate_fn=collate), plain)
    assert seen == [20, 20, 1]


def test_soft_labels_and_views_are_pairs(few_raw: Path) -> None:
    """A loss of torch takes them as they are."""
    config = replace(TRAINING, mix=(MixUp(), CutMix()), repeats=2, views=2)
    loader = DataLoader(ShardDataset(few_raw, "train", config), batch_size=20)
    (wanted,) = epochs(few_raw, replace(config, batch_size=20), 1)
    assert len(loader) == len(wanted) == 5
    assert_same(loader, wanted)
    for images, labels in wanted:
        assert images.shape[1] == 2
        assert labels.shape == (len(images), 7)
        torch.testing.assert_close(labels.sum(1), torch.ones(len(images)))
        loss = cross_entropy(images.mean((1, 3, 4)) @ torch.ones(3, 7), labels)
        torch.testing.assert_close(loss, torch.tensor(7.0).log())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": "64"}, "batch_size is '64'; it must be a whole number"),
        ({"world_size": "2"}, "world_size is '2'; it must be a whole number"),
        ({"batch_size": 8, "world_size": 0}, "world_size is 0; it must be at least 1"),
        ({"shuffle": False}, "shuffle is False where the config has augment=True"),
        ({"sampler": RandomSampler([1])}, "sampler is .*; it may be the dataset itself, or None"),
        ({"batch_size": 20, "world_size": 2}, "1 samples in its last batch of 40, fewer than 2"),
    ],
)
def test_refused(options: dict[str, Any], message: str, train: ShardDataset) -> None:
    with pytest.raises(GratisError, match=message):
        DataLoader(train, **options)


def test_refused_datasets(few_raw: Path, train: ShardDataset) -> None:
    with pytest.raises(GratisError, match=r"dataset is \[1\]; it must be a gratis.torch.ShardD"):
        DataLoader([1])  # type: ignore[arg-type]
    with pytest.raises(GratisError, match="root is 5; it must be a folder or an address"):
        ShardDataset(5, "train")  # type: ignore[arg-type]
    with pytest.raises(GratisError, match="config is 'imagenet'; it must be a LoaderConfig"):
        ShardDataset(few_raw, "train", "imagenet")  # type: ignore[arg-type]
    with pytest.raises(GratisError, match=r"crop is 224; the images of .* have 64 px a side"):
        ShardDataset(few_raw, "train", LoaderConfig())
    with pytest.raises(GratisError, match=r"read in batches, by gratis.torch.DataLoader"):
        next(iter(TorchDataLoader(train)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="DataLoader takes no batch_sampler, generator"):
        DataLoader(train, generator=None, batch_sampler=None)


class Accuracy:
    """As torchmetrics counts: over all rows that come."""

    def __init__(self) -> None:
        self.right, self.rows = 0, 0

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.right += int((logits.argmax(1) == labels).sum())
        self.rows += len(labels)

    def compute(self) -> float:
        return self.right / self.rows


def of_torchmetrics() -> Any:
    metrics = pytest.importorskip("torchmetrics.classification", reason="needs torchmetrics")
    return metrics.MulticlassAccuracy(num_classes=CLASSES, average="micro")


@pytest.mark.parametrize(
    "accuracy_of", [Accuracy, pytest.param(of_torchmetrics, marks=pytest.mark.slow)]
)
def test_a_perfect_model_is_always_right(tmp_path: Path, accuracy_of: Any) -> None:
    """50 images in batches of 16: with rows that pad the last batch it would be 78.1 %. Label
    smoothing, mixing of labels and one_hot take every label."""
    root = write_dataset(tmp_path / "data", [picture(i) for i in range(50)], codec="raw")
    accuracy = accuracy_of()
    loader = DataLoader(ShardDataset(root, "train", EVALUATION), 16)
    for _, labels in loader:
        logits = 20.0 * one_hot(labels, CLASSES)
        accuracy.update(logits, labels)
        assert cross_entropy(logits, labels, label_smoothing=0.1).isfinite()
        assert cross_entropy(logits, logits.softmax(1).lerp(logits.flip(0).softmax(1), 0.5)) > 0
    assert accuracy.compute() == 1
    assert len(loader) == 4
