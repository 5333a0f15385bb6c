"""Batches against answers that the loader has no part in: pictures that NumPy cuts out, draws from
the plan's own numbers, states of other places."""

from __future__ import annotations

import io
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import epoch
from handmade import encode, picture, rotten, statistics, write_dataset
from numpy.typing import NDArray
from PIL import Image as Pillow

from gratis.dataset import MANIFEST, index_name, read_manifest
from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig, plan
from gratis.loader.decoding.bad_samples import device_error, replace_bad_samples
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.reading import batch_reader
from gratis.loader.reading.batch_reader import BatchReader
from gratis.loader.reading.quarantine import Quarantine

SIZE, COUNT = 64, 101


def make(root: Path, split: str = "train", **options: Any) -> Loader:
    config = {"batch_size": 12, "crop": 48, "threads": 1} | options
    return Loader(root, split, LoaderConfig(**config))


def ids_of(loader: Loader) -> list[int]:
    return [int(sample) for _, _, ids in loader for sample in ids]


def cut(number: int, draws: plan.Draws, row: int, side: int) -> NDArray[np.uint8]:
    """Of a picture that is stored as it is, uint8 [3,side,side]."""
    y, x = int(draws.y[row]), int(draws.x[row])
    part = picture(number)[y : y + side, x : x + side]
    part = part[:, ::-1] if draws.flip[row] else part
    return np.ascontiguousarray(part.transpose(2, 0, 1))


@pytest.mark.parametrize("order", ["full", "window"])
def test_no_two_epochs_have_one_order(jpeg_dataset: Path, order: str) -> None:
    loader = make(jpeg_dataset, order=order, window=2)
    orders = [ids_of(loader) for _ in range(3)]
    assert all(sorted(one) == list(range(COUNT)) for one in orders)
    assert len({tuple(one) for one in orders}) == 3


@pytest.mark.parametrize("order", ["full", "window"])
def test_what_an_epoch_leaves_out_is_the_rest_of_its_own_order(
    jpeg_dataset: Path, order: str
) -> None:
    loader = make(jpeg_dataset, order=order, window=2, remainder="drop")
    for number in range(3):
        taken, left = ids_of(loader), loader.dropped(number).tolist()
        assert (len(taken), len(left)) == (96, 5)
        assert sorted([*taken, *left]) == list(range(COUNT))


@pytest.mark.parametrize("order", ["full", "window"])
def test_samples_that_follow_each_other_share_a_crop(raw_dataset: Path, order: str) -> None:
    """Four at a time in the order of this epoch, not of another; the last one alone."""
    options: dict[str, Any] = {"normalize": None, "dtype": torch.uint8, "seed": 5}
    loader = make(raw_dataset, order=order, window=2, crop_chunk=4, **options)
    loader.set_epoch(2)
    images, _, ids = (torch.cat(parts) for parts in zip(*epoch(loader), strict=True))
    draws = plan.draws(5, 2, ids.numpy(), SIZE - 48 + 1, chunks=np.arange(COUNT) // 4)
    for row, sample in enumerate(ids.tolist()):
        assert np.array_equal(images[row].numpy(), cut(sample, draws, row, 48))


def test_every_image_is_the_part_that_was_drawn(raw_dataset: Path) -> None:
    loader = make(raw_dataset, normalize=None, dtype=torch.uint8, seed=5)
    loader.set_epoch(2)
    for images, labels, ids in epoch(loader):
        draws = plan.draws(5, 2, ids.numpy(), SIZE - 48 + 1)
        for row, sample in enumerate(ids.tolist()):
            assert np.array_equal(images[row].numpy(), cut(sample, draws, row, 48))
            assert labels[row] == sample % 7


@pytest.mark.parametrize("crop", [47, 48])
def test_the_centre_and_its_mean_where_the_margin_is_odd(tmp_path: Path, crop: int) -> None:
    """64 - 47 = 17: 8 pixels before the crop and 9 behind, as released; 64 - 48 = 16."""
    pictures = [picture(number) for number in range(14)]
    root = write_dataset(tmp_path / "raw", pictures, codec="raw")
    config = LoaderConfig.alexnet(augment=False, crop=crop, batch_size=7)
    mean = statistics(pictures).mean
    inside = slice(8, 8 + crop)
    with Loader(root, "train", config) as loader:
        for images, _, ids in epoch(loader):
            for row, sample in enumerate(ids.tolist()):
                expected = (
                    pictures[sample].astype(np.float32)[inside, inside] - mean[inside, inside]
                )
                np.testing.assert_allclose(
                    images[row].numpy(), expected.transpose(2, 0, 1), atol=1e-3
                )
    assert [plan.centre_view(positions).y[0] for positions in (1, 2, 30, 33)] == [0, 0, 14, 16]
    views = plan.ten_views(30)
    assert views.y.tolist() == [0, 0, 14, 29, 29] * 2
    assert views.x.tolist() == [0, 29, 14, 0, 29] * 2


def test_a_stand_in_is_cut_as_the_missing_sample_would_have_been(tmp_path: Path) -> None:
    root = rotten(tmp_path, 17, 42, codec="raw")
    options: dict[str, Any] = {"normalize": None, "dtype": torch.uint8, "seed": 3}
    loader = make(root, bad_samples="quarantine", **options)
    wanted = plan.order(3, 0, COUNT)
    images, _, ids = (torch.cat(parts) for parts in zip(*epoch(loader), strict=True))
    replaced = np.flatnonzero(ids.numpy() != wanted)
    assert sorted(wanted[replaced]) == [17, 42]
    draws = plan.draws(3, 0, wanted, SIZE - 48 + 1)
    for row in replaced.tolist():
        assert np.array_equal(images[row].numpy(), cut(int(ids[row]), draws, row, 48))


def test_who_stands_in_is_a_matter_of_the_epoch_alone(tmp_path: Path) -> None:
    """In a loader that has had other epochs, and in one that has not. In epoch 0 the first to stand
    in for 17 is bad itself."""
    bad = (17, plan.stand_in(0, 0, 17, COUNT, 0))
    root = rotten(tmp_path, *bad, codec="raw")
    loader = make(root, bad_samples="quarantine")
    for number in range(3):
        fresh = make(root, bad_samples="quarantine")
        fresh.set_epoch(number)
        ids, wanted = ids_of(loader), loader.epoch_plan(number).order()
        assert ids == ids_of(fresh)
        for sample in bad:
            tried = [plan.stand_in(0, number, sample, COUNT, attempt) for attempt in range(3)]
            sound = next(one for one in tried if one not in bad)
            assert ids[int(np.flatnonzero(wanted == sample)[0])] == sound


def test_the_sample_that_failed_is_the_bad_one_and_its_place_is_the_wanted_ones(
    jpeg_dataset: Path,
) -> None:
    """Sample 9 stood in for 5: it is 9 that is damaged, and 5 that needs another."""
    loader = make(jpeg_dataset)
    quarantine = Quarantine(0, COUNT, allowed=True)
    reader = BatchReader(loader.shard_reader(), StageTimer(), quarantine)
    assert reader.reject(np.array([3, 5]), np.array([3, 9]), [1])
    assert set(quarantine.bad) == {9}
    assert "key s_9," in quarantine.bad[9]
    (message,) = quarantine.take_warnings()
    assert message == f"{quarantine.bad[9]}: cannot be decoded; other samples stand in for it"
    assert quarantine.replace(2, np.array([9, 5, 3])).tolist() == [
        *(9, plan.stand_in(0, 2, 5, COUNT, 0), 3)
    ]
    assert not reader.reject(np.array([3]), np.array([3]), [])
    reader.shards.close()


def test_what_dali_alone_refuses_costs_nobody_else_a_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the bytes look sound: the batches that DALI had begun are made again, each label and id
    beside its own image."""
    monkeypatch.setattr(batch_reader, "is_decodable", lambda *_: True)
    bad = (17, 42)
    root = rotten(tmp_path, *bad)
    sound = make(write_dataset(tmp_path / "sound", [picture(i) for i in range(COUNT)]), seed=3)
    loader = make(root, bad_samples="quarantine", engine="dali", seed=3)
    for _ in range(2):
        images, labels, ids = (torch.cat(parts) for parts in zip(*epoch(loader), strict=True))
        expected = [torch.cat(parts) for parts in zip(*epoch(sound), strict=True)]
        others = ~torch.isin(expected[2], torch.tensor(bad))
        for found, right in zip((images, labels, ids), expected, strict=True):
            assert torch.equal(found[others], right[others])
        assert torch.equal(labels, ids % 7)
        assert set(loader.quarantined) == set(bad)


@pytest.mark.parametrize("dali", [True, False])
def test_images_that_stay_decoded_are_kept_under_their_own_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dali: bool
) -> None:
    """One batch with a sample that is no JPEG and one that only the decoder refuses, be it DALI or,
    without it and of what the engine leaves, Pillow."""

    def options_of(number: int) -> dict[str, Any]:
        return {"progressive": number % 3 == 0}

    unseen = encode(picture(15), "jpeg", **options_of(15))[400:]
    real = batch_reader.is_decodable
    monkeypatch.setattr(
        batch_reader,
        "is_decodable",
        lambda part, *rest: bytes(part).endswith(unseen) or real(part, *rest),
    )
    if not dali:
        monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    root = rotten(tmp_path, 12, 15, count=30, options=options_of)
    bytes_of = [encode(picture(i), "jpeg", **options_of(i)) for i in range(30)]
    decoded = [np.asarray(Pillow.open(io.BytesIO(data))) for data in bytes_of]
    options: dict[str, Any] = {"batch_size": 6, "seed": 46, "crop": SIZE, "flip": 0.0}
    options |= {"normalize": None, "dtype": torch.uint8, "decoded": "host"}
    options |= {"bad_samples": "quarantine", "engine": "dali" if dali else "native"}
    loader = make(root, **options)
    first = loader.epoch_plan(0).order()
    assert first.tolist().index(12) // 6 == first.tolist().index(15) // 6
    for number in range(5):  # from the second on, most batches are what was kept
        images, labels, ids = (torch.cat(parts) for parts in zip(*epoch(loader), strict=True))
        wanted = loader.epoch_plan(number).order()
        assert sorted(wanted[ids.numpy() != wanted]) == [12, 15]
        assert torch.equal(labels, ids % 7)
        for image, sample in zip(images, ids.tolist(), strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), decoded[sample])
    assert set(loader.quarantined) == {12, 15}


def test_dali_s_batches_before_a_bad_sample_come_first(tmp_path: Path) -> None:
    """In the order of ids 42 is in the fourth batch of twelve. Their decoding is timed."""
    loader = make(rotten(tmp_path, 42), engine="dali", augment=False)
    ids: list[int] = []

    def take_all() -> None:
        for batch in loader:
            ids.extend(batch.ids.tolist())

    with pytest.raises(GratisError) as caught:
        take_all()
    assert ids == list(range(36))
    where = f"shard {tmp_path}/rot/train-00004.tar, key s_42, offset "
    assert str(caught.value).startswith(where)
    assert loader.take_counters()["decode_s"] > 0


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_an_error_that_no_sample_makes_again_is_raised_as_it_is(
    codec: str, request: pytest.FixtureRequest
) -> None:
    """Each JPEG is decoded by itself; of raw pixels, which the reader has checked, none."""
    loader = make(request.getfixturevalue(f"{codec}_dataset"))
    reader = BatchReader(loader.shard_reader(), StageTimer(), Quarantine(0, COUNT, allowed=True))
    plan_ = loader.epoch_plan(0)
    batch, error = reader.read(plan_, np.arange(3)), RuntimeError("of the device")
    if codec == "raw":
        batch.parts[1] = batch.parts[1][:5]
    with pytest.raises(RuntimeError) as caught:
        replace_bad_samples(reader, error, [batch], plan_)
    assert caught.value is error
    reader.shards.close()


OUT_OF_MEMORY = "out of memory on cuda:1"


@pytest.mark.parametrize(
    ("device", "free", "message"),
    [
        ("cpu", 0, "sample 3 failed"),
        ("cuda:1", 1 << 30, f"{OUT_OF_MEMORY} (1074 of 85000 MB are free), where DALI decodes: "),
        (
            "cuda:1",
            1_073_500_300,
            f"{OUT_OF_MEMORY} (1074 of 85000 MB are free), where DALI decodes: ",
        ),
        ("cuda:1", (1 << 30) + 1, "sample 3 failed"),
    ],
)
def test_want_of_memory_on_a_device_is_told_from_bad_samples(
    monkeypatch: pytest.MonkeyPatch, device: str, free: int, message: str
) -> None:
    of_devices = {torch.device("cuda:1"): (free, 84_999_550_000)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", of_devices.__getitem__)
    error = RuntimeError("sample 3 failed")
    found = device_error(error, torch.device(device))
    assert (found is error) == (message == "sample 3 failed")
    assert str(found) == (message if found is error else f"{message}sample 3 failed")


def test_a_state_belongs_to_its_split(jpeg_dataset: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(jpeg_dataset, tmp_path / "two"))
    manifest = read_manifest(root)
    splits = {"train": manifest.splits["train"], "val": manifest.splits["train"]}
    shutil.copy(root / index_name("train"), root / index_name("val"))
    (root / MANIFEST).write_bytes(replace(manifest, splits=splits).to_json())
    state = make(root).state_dict()
    with pytest.raises(GratisError, match="has split 'train', this loader 'val'"):
        make(root, "val").load_state_dict(state)


def test_a_state_that_is_loaded_ends_the_epoch_that_is_under_way(jpeg_dataset: Path) -> None:
    loader = make(jpeg_dataset)
    before = threading.active_count()
    batches = iter(loader)
    next(batches)
    assert threading.active_count() > before
    loader.load_state_dict({**loader.state_dict(), "epoch": 3, "step": 8})
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="this epoch was closed"):
        next(batches)
    assert len(ids_of(loader)) == COUNT - 8 * 12


def test_parts_have_the_area_and_the_shape_that_were_asked_for() -> None:
    """By ranges that are not symmetric: shares from 0.2 to 0.4, and half as wide again as high, at
    least. Each end of a range is nearly reached, and every part of the image is."""
    y, x, height, width = plan.boxes(1, 0, np.arange(20_000), 256, (0.2, 0.4), (1.5, 2.0))
    share, shape = height * width / 256**2, width / height
    assert 0.198 < share.min() < 0.205
    assert 0.395 < share.max() < 0.403
    assert 1.48 < shape.min() < 1.52
    assert 1.97 < shape.max() < 2.03
    assert share.mean() == pytest.approx(0.3, abs=0.005)
    assert np.log(shape).mean() == pytest.approx(np.log(3) / 2, abs=0.005)
    assert (y.min(), x.min()) == (0, 0)
    assert ((y + height).max(), (x + width).max()) == (256, 256)
