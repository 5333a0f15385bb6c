"""Images that stay decoded change nothing but the time: the same batches to the bit, whatever
happens in between."""

from __future__ import annotations

import gc
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import assert_same, epoch
from engine_cases import needs_library
from handmade import picture, rotten, write_dataset
from PIL import Image
from test_loader_engine import mixed
from torch import Tensor

from gratis import memory
from gratis.dataset import read_index, read_stats
from gratis.errors import GratisError
from gratis.loader import Batch, Loader, LoaderConfig
from gratis.loader.decoding import cached_decoder, decoded_cache, gpu
from gratis.loader.decoding.cached_decoder import CachedDecoder
from gratis.loader.decoding.cpu import crops_of, cut
from gratis.loader.decoding.decoded_cache import DecodedCache, choose_place
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.plan import Draws
from gratis.loader.reading.batch_reader import BatchReader, EncodedBatch
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.shard_reader import ShardReader
from gratis.loader.views.normalisation import normalisation
from gratis.loader.views.torch_views import apply_views

CROP, EPOCHS = 48, 3


def make(root: Path, *, rank: int = 0, world: int = 1, **options: Any) -> Loader:
    config = LoaderConfig.alexnet(**({"batch_size": 12, "crop": CROP, "threads": 2} | options))
    return Loader(root, "train", config, rank=rank, world_size=world)


CASES: dict[str, dict[str, Any]] = {
    "released": {},
    "dropped remainder": {"remainder": "drop"},
    "window": {"order": "window", "window": 3},
    "offset mean, no noise": {"mean": "offset", "noise": "off"},
    "channels last, bfloat16": {"layout": "channels_last", "dtype": torch.bfloat16},
    "imagenet": {"normalize": "imagenet", "noise": "printed", "remainder": "short", "flip": 0.8},
    "nhwc": {"normalize": "imagenet", "layout": "nhwc"},
    "bytes": {"normalize": None, "noise": "off", "dtype": torch.uint8},
    "resized parts": {"area": (0.08, 1.0), "crop": 32},
    "evaluation": {"augment": False},
    "ten views": {"augment": False, "views": 10},
    "noise ends, odd margin": {"noise_until": 1, "crop": CROP - 1},
}


@pytest.mark.parametrize("codec", ["jpeg", pytest.param("raw", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_batches_are_the_same_to_the_bit(
    name: str, codec: str, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(f"few_{codec}")
    plain, kept = make(root, **CASES[name]), make(root, **CASES[name], decoded="host")
    assert kept.decoded_place == "host"
    for number in range(EPOCHS):
        assert_same(epoch(kept), epoch(plain))
        counters = kept.take_counters()
        if number and "drop" not in name:  # what an epoch leaves out comes in another one
            assert (counters["bytes_read"], counters["read_s"]) == (0, 0.0)
            assert counters["decode_s"] == 0 or "area" in CASES[name]


@pytest.mark.parametrize("ratio", [(100.0, 100.0), (0.01, 0.01)])
def test_slivers_of_a_small_image_are_the_same(tmp_path: Path, ratio: tuple[float, float]) -> None:
    """A part that never fits is the largest central one, which has a row or column at least."""
    root = write_dataset(tmp_path / "small", [picture(number, 40) for number in range(30)])
    options = {"area": (0.9, 1.0), "ratio": ratio, "crop": 32, "noise": "off"}
    batches = epoch(make(root, **options))
    assert_same(epoch(make(root, **options, decoded="host")), batches)
    mean = read_stats(root).mean[4:36, 4:36].transpose(2, 0, 1)
    for image, sample in zip(
        batches[0].images.numpy() + mean, batches[0].ids.tolist(), strict=True
    ):
        middle = picture(sample, 40)[19] if ratio[0] > 1 else picture(sample, 40)[:, 19]
        assert abs(image.mean() - middle.mean()) < 5


def test_ranks_decode_what_they_have_not_had(jpeg_dataset: Path) -> None:
    """Each rank gets other samples in every epoch; what it reads falls as 1/2, 1/4, ... of the
    split."""
    ranks = [make(jpeg_dataset, rank=r, world=2, decoded="host") for r in range(2)]
    whole, read = make(jpeg_dataset), []
    for _ in range(EPOCHS):
        parts = [epoch(loader) for loader in ranks]
        merged = [
            Batch(*(torch.cat(t) for t in zip(*step, strict=True)))
            for step in zip(*parts, strict=True)
        ]
        assert_same(merged, epoch(whole))
        read.append(sum(loader.take_counters()["bytes_read"] for loader in ranks))
    assert read[0] > 1.5 * read[1] > 2 * read[2] > 0


def test_an_epoch_left_or_resumed_in_its_middle_goes_on_with_what_is_there(
    jpeg_dataset: Path,
) -> None:
    plain, kept = make(jpeg_dataset), make(jpeg_dataset, decoded="host")
    for loader in (plain, kept):
        for number, _ in enumerate(loader):
            if number == 3:
                break
    kept.take_counters()
    assert_same(epoch(kept), epoch(plain))  # epoch 1
    sizes = read_index(jpeg_dataset, "train").size
    assert kept.take_counters()["bytes_read"] < int(sizes.sum())
    state = plain.state_dict() | {"epoch": 2, "step": 5}
    kept.load_state_dict(state)
    plain.load_state_dict(state)
    for _ in range(2):
        assert_same(epoch(kept), epoch(plain))


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_other_samples_stand_in_as_ever(tmp_path: Path, codec: str) -> None:
    root = rotten(tmp_path, 17, 40, codec=codec)
    plain, kept = (
        make(root, bad_samples="quarantine", decoded=place) for place in ("none", "host")
    )
    for _ in range(EPOCHS):
        assert_same(epoch(kept), epoch(plain))
        assert sorted(kept.take_warnings()) == sorted(plain.take_warnings())
    assert kept.quarantined == plain.quarantined
    assert set(kept.quarantined) == {17, 40}


@needs_library
@pytest.mark.parametrize("name", ["released", "resized parts", "ten views"])
def test_the_engine_fills_it_with_dali_s_pixels(tmp_path: Path, name: str) -> None:
    """And DALI with what the engine refuses: those are counted once, as nothing is decoded
    again."""
    root = mixed(tmp_path)
    kept = {
        engine: make(root, **CASES[name], decoded="host", engine=engine)
        for engine in ("native", "dali")
    }
    plain, refused = make(root, **CASES[name], engine="dali"), 15 + 6
    for number in range(EPOCHS):
        wanted = epoch(plain)
        for engine, loader in kept.items():
            assert_same(epoch(loader), wanted)
            counters = loader.take_counters()
            new = number == 0 and engine == "native"
            assert counters["native"] == (60 - refused if new else 0)
            assert counters["fallback"] == (refused if new else 0)


def test_a_bad_sample_ends_the_epoch_at_its_step(tmp_path: Path) -> None:
    errors = []
    for place in ("none", "host"):
        loader, seen = make(rotten(tmp_path / place, 17), decoded=place), 0
        batches = iter(loader)
        while seen < 9:
            try:
                next(batches)
            except GratisError as error:
                errors.append((str(error).replace(f"/{place}/", "/"), seen))
                break
            seen += 1
    assert errors[0] == errors[1]
    assert "key s_17," in errors[0][0]


def test_a_batch_with_a_sample_that_the_cache_cannot_hold_is_made_as_ever(
    jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit rot below the crop, where the decoder of the crop alone never comes. Each epoch reads the
    batches of samples that cannot be decoded whole, and no others."""
    root, bad = Path(shutil.copytree(jpeg_dataset, tmp_path / "low")), (5, 30)
    index = read_index(root, "train")
    shard, offset, size = int(index.shard[30]), int(index.offset[30]), int(index.size[30])
    with (root / f"train-{shard:05d}.tar").open("r+b") as file:
        file.seek(offset + size - size // 8)
        file.write(b"\xff\xd9" + bytes(size // 8 - 2))  # its end comes early
    lengths = {int(index.size[sample]) for sample in bad}

    def cannot_be_whole(parts: list[Any], codec: str, side: int) -> list[int]:
        return [row for row, part in enumerate(parts) if len(part) in lengths]

    monkeypatch.setattr(cached_decoder, "invalid_rows", cannot_be_whole)
    bad = tuple(np.flatnonzero(np.isin(index.size, list(lengths))).tolist())
    plain, kept = make(root, crop=16), make(root, crop=16, decoded="host", engine="dali")
    for number in range(4):
        batches = epoch(kept)
        assert_same(batches, epoch(plain))
        read = [ids[ids >= 0] for _, _, ids in batches if any(k in ids for k in bad)]
        counters = kept.take_counters()
        if number:
            assert counters["bytes_read"] == sum(int(index.size[ids].sum()) for ids in read) > 0
            assert counters["decode_s"] > 0


def test_a_part_of_the_whole_image_is_what_decoding_the_part_gives(jpeg_dataset: Path) -> None:
    """The pixels in the cache equal Pillow's, and the crops that DALI decodes alone equal the
    cache's: 0 levels."""
    cache = filled_cache(jpeg_dataset)
    assert cache.holds(np.arange(101))
    for shard in sorted(jpeg_dataset.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".jpg"):
                    sample = int(member.name[2:-4])
                    data = tar.extractfile(member)
                    assert data is not None
                    wanted = np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB"))
                    assert np.abs(cache.pixels[sample].numpy().astype(int) - wanted).max() == 0


@pytest.mark.parametrize("name", [name for name in CASES if name != "resized parts"])
def test_torch_applies_views_as_the_graph_for_gpus_does(few_jpeg: Path, name: str) -> None:
    """On the CPU both, to the bit: the same operations in the same order."""
    from test_loader_views import graph_of, plan_of

    config = LoaderConfig.alexnet(**({"batch_size": 25, "crop": CROP, "seed": 3} | CASES[name]))
    plan, pixels = plan_of(few_jpeg, config), filled_cache(few_jpeg).pixels
    mean = torch.from_numpy(normalisation(plan.stats, config, 0).mean)
    seen = 0
    for batch, tensor in graph_of(few_jpeg, plan):
        seen += len(batch.ids)
        wanted, ids = gpu.to_torch(tensor, plan, batch), torch.from_numpy(batch.ids)
        got = apply_views(pixels, ids, batch.draws, mean, plan.stats, config, 0)
        assert (got.shape, got.dtype, got.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
        assert torch.equal(got, wanted)
    assert seen == (25 if "drop" in name else 41)


def filled_cache(root: Path) -> DecodedCache:
    """With all samples of a split, decoded as an epoch decodes them."""
    from test_loader_views import plan_of

    plan, timer = plan_of(root, LoaderConfig.alexnet(batch_size=25, crop=CROP)), StageTimer()
    sides = np.full(len(plan.index.label), 64)
    cache = DecodedCache(sides, sides, None, square=True)
    shards = ShardReader(root, plan.manifest.splits["train"], plan.index)
    reader = BatchReader(shards, timer, Quarantine(0, 101, allowed=False))
    decoder = CachedDecoder(cache, reader, timer, 2)
    assert all(held for _, held in decoder.steps(plan))
    decoder.close()
    shards.close()
    return cache


CPU, GB = torch.device("cpu"), 10**9


def test_auto_keeps_what_fits(
    jpeg_dataset: Path, raw_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = 101 * 64 * 64 * 3
    assert make(jpeg_dataset, decoded="auto", decoded_gb=pixels / GB).decoded_place == "host"
    assert make(jpeg_dataset, decoded="auto", decoded_gb=(pixels - 1) / GB).decoded_place == "none"
    assert make(raw_dataset, decoded="auto").decoded_place == "none"
    manifest = make(jpeg_dataset).manifest
    monkeypatch.setattr(decoded_cache, "available_bytes", lambda: 8 * pixels)
    index = read_index(jpeg_dataset, "train")
    for ranks, place in ((1, "host"), (2, "host"), (3, "none")):
        config = LoaderConfig.alexnet(batch_size=12, crop=CROP, decoded="auto")
        assert choose_place(config, manifest, index, CPU, local_world=ranks) == place


@pytest.mark.parametrize(
    ("ranks", "device", "host"), [(1, "device", "host"), (2, "device", "none"), (4, "none", "none")]
)
def test_ranks_in_one_memory_share_what_was_allowed(
    ranks: int, device: str, host: str, jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two devices: four ranks are two on each. Each rank keeps pixels of its own."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    manifest, pixels = make(jpeg_dataset).manifest, 101 * 64 * 64 * 3
    config = LoaderConfig.alexnet(batch_size=12, crop=CROP, decoded="auto", decoded_gb=pixels / GB)
    index, cuda = read_index(jpeg_dataset, "train"), torch.device("cuda", 0)
    assert choose_place(config, manifest, index, cuda, local_world=ranks) == device
    assert choose_place(config, manifest, index, CPU, local_world=ranks) == host


@pytest.mark.parametrize(("version", "unlimited"), [(1, str(2**63 - 4096)), (2, "max")])
def test_limits_of_containers_and_batch_jobs_count(
    version: int, unlimited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {1: memory.VERSION_1, 2: memory.VERSION_2}[version]
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN", tmp_path / "own")
    free = memory.available_bytes()
    (tmp_path / "own").write_text(
        "0::/job/step\n" if version == 2 else "9:cpuset,memory:/job/step\n1:cpu:/\n"
    )
    assert memory.available_bytes() > 0.5 * free
    job = tmp_path / "job" if version == 2 else tmp_path / "memory" / "job"
    # the one above the process's own is limited
    for group, limit in ((job / "step", unlimited), (job, "5000")):
        group.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names[:2], (limit, "2000"), strict=True):
            (group / name).write_text(value + "\n")
        (group / "memory.stat").write_text(f"anon 1\n{names[2]} 700\n")
    assert memory.available_bytes() == 3700
    (job / names[0]).write_text(unlimited + "\n")
    assert memory.available_bytes() > 0.5 * free


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoded": "disk"}, "decoded is 'disk'"),
        (
            {"decoded": "device"},
            "decoded='device': the loader's device is cpu; take 'host' or 'auto'",
        ),
        (
            {"decoded": "host", "decoded_gb": 0.001},
            " GB of pixels are more than the 0.001 GB meant for them; raise",
        ),
        ({"decoded_gb": -1.0}, "decoded_gb is -1.0"),
    ],
)
def test_mistakes_are_one_line(jpeg_dataset: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GratisError, match=message):
        make(jpeg_dataset, **options)


def test_closing_frees_the_pixels(jpeg_dataset: Path) -> None:
    def pixels() -> list[torch.Tensor]:
        shape = (101, 64, 64, 3)
        return [each for each in gc.get_objects() if type(each) is Tensor and each.shape == shape]

    gc.collect()
    assert not pixels()
    kept = make(jpeg_dataset, decoded="host")
    epoch(kept)
    assert len(pixels()) == 1
    kept.close()
    assert not pixels()
    assert len(epoch(kept)) == 9


def test_the_cache_of_images_of_their_own_sizes() -> None:
    """Image after image in one row of bytes; what was tried and is bad is not tried again."""
    heights, widths = np.array([2, 3, 1], np.int32), np.array([4, 2, 5], np.int32)
    cache = DecodedCache(heights, widths, None, square=False)
    assert cache.pixels.shape == (3 * (8 + 6 + 5),)
    cache.pixels.zero_()
    pictures = {k: torch.arange(9 * k, 9 * k + 3 * h * w) for k, h, w in ((2, 1, 5), (0, 2, 4))}
    shaped = [pictures[2].view(1, 5, 3).to(torch.uint8), pictures[0].view(2, 4, 3).to(torch.uint8)]
    cache.put(np.array([2, 0]), shaped)
    for number, values in pictures.items():
        assert cache.part(number).tolist() == values.tolist()
    assert cache.part(1).tolist() == [0] * 18
    assert cache.state.tolist() == [decoded_cache.PRESENT, 0, decoded_cache.PRESENT]
    assert cache.lacks(np.array([1, 0, 1, 2])).tolist() == [1]
    assert (cache.holds(np.array([2, 0])), cache.holds(np.array([2, 1]))) == (True, False)
    cache.state[1] = decoded_cache.BAD
    assert cache.lacks(np.array([1, 0])).tolist() == []
    assert not cache.holds(np.array([1]))
    with pytest.raises(ValueError, match="shorter"):
        cache.put(np.array([2, 0]), shaped[:1])


def test_the_cache_of_square_images() -> None:
    two = np.full(3, 2, np.int32)
    cache = DecodedCache(two, two, None, square=True)
    assert (cache.pixels.shape, cache.pixels.dtype) == ((3, 2, 2, 3), torch.uint8)
    cache.put(np.array([1]), [torch.full((2, 2, 3), 7, dtype=torch.uint8)])
    assert (cache.pixels[1] == 7).all()
    assert cache.part(1).data_ptr() == cache.pixels[1].data_ptr()
    none = np.empty(0, np.int32)
    assert DecodedCache(none, none, None, square=True).pixels.shape == (0, 0, 0, 3)
    large = np.array([40_000], np.int32)
    assert decoded_cache.bytes_of(large, large).tolist() == [4_800_000_000]


@pytest.mark.parametrize(
    ("decoded", "fields", "free", "place"),
    [
        ("auto", {}, 2, "device"),
        ("auto", {}, 1.99, "host"),  # half of what is free is too little
        ("device", {}, 2, "device"),
        ("device", {}, 1.99, "decoded='device': 0.00124 GB of pixels are more than the 0.001"),
        ("host", {}, 9, "host"),
        ("host", {"decoded_gb": 1e-9}, 9, "decoded='host': .*1e-09 GB meant .*; raise decoded_gb"),
        ("auto", {"area": (0.1, 1.0)}, 9, "host"),
        ("auto", {"area": (0.1, 1.0), "decoded_gb": 1e-9}, 9, "none"),
        ("device", {"area": (0.1, 1.0)}, 9, "decoded='device': parts are resized by the decoder"),
        ("none", {}, 9, "none"),
    ],
)
def test_where_the_pixels_of_a_gpu_s_loader_are(  # noqa: PLR0917
    jpeg_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    decoded: Any,
    fields: dict[str, Any],
    free: float,
    place: str,
) -> None:
    """free: on the device, in sizes of the split's pixels; on the machine there are four."""
    pixels = 101 * 64 * 64 * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    memory_of = {torch.device("cuda", 0): (int(free * pixels), 9 * pixels)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory_of.__getitem__)
    monkeypatch.setattr(decoded_cache, "available_bytes", lambda: 4 * pixels)
    manifest, index = make(jpeg_dataset).manifest, read_index(jpeg_dataset, "train")
    config = LoaderConfig(batch_size=12, crop=CROP, decoded=decoded, **fields)
    cuda = torch.device("cuda", 0)
    if place in ("device", "host", "none"):
        assert choose_place(config, manifest, index, cuda, local_world=1) == place
        return
    with pytest.raises(GratisError, match=place):
        choose_place(config, manifest, index, cuda, local_world=1)


def test_the_crops_of_a_batch_by_hand(jpeg_dataset: Path) -> None:
    """Where in memory each view's first pixel is; and what is cut out before it is resized."""
    plan = make(jpeg_dataset, batch_size=2, crop=2, views=2).epoch_plan(0)
    y, x = np.array([0, 1, 2, 3]), np.array([3, 2, 1, 0])
    extents = np.array([[1, 2], [2, 1], [3, 3], [1, 4]])
    draws = Draws(y, x, np.array([True, False, True, True]), np.arange(12.0).reshape(4, 3))
    wanted, none = np.array([5, 8]), np.empty(0, np.uint8)
    batch = EncodedBatch(wanted, wanted, draws, extents, [none, none], none)
    pixels, begins = np.zeros(9, np.uint8), np.array([1000, 5000])
    whole = crops_of(batch, pixels, begins, plan, side=10, corner=True)
    places = [3 * (10 * down + right) for down, right in zip(y, x, strict=True)]
    assert whole.start.tolist() == [
        begin + place for begin, place in zip((1000, 1000, 5000, 5000), places, strict=True)
    ]
    assert whole.stride == 30
    cropped = crops_of(batch, pixels, begins, plan, side=2, corner=False)
    assert (cropped.start.tolist(), cropped.stride) == ([1000, 1000, 5000, 5000], 6)
    for crops in (whole, cropped):
        assert crops.pixels is pixels
        assert (crops.y.tolist(), crops.x.tolist()) == (y.tolist(), x.tolist())
        assert crops.flip.tolist() == [True, False, True, True]
        assert crops.normals.tolist() == draws.normals.tolist()
    images = [np.arange(48, dtype=np.uint8).reshape(4, 4, 3) + 50 * k for k in range(2)]
    parts = cut(batch, images, plan)
    assert [part.shape for part in parts] == [(1, 1, 3), (2, 1, 3), (2, 3, 3), (1, 4, 3)]
    for row, part in enumerate(parts):
        image = images[row // 2]
        assert part.tolist() == [
            line[x[row] : x[row] + extents[row, 1]]
            for line in image.tolist()[y[row] : y[row] + extents[row, 0]]
        ]


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_batches_are_those_without_it(jpeg_dataset: Path, name: str, place: str) -> None:
    """To rounding: both decode whole images, by the same decoder, and differ in what normalises
    them. Beyond 128 levels neighbours in bfloat16 are 1 apart."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if place == "device" and "area" in CASES[name]:
        pytest.skip("resized parts are made from the host's copy")
    options = {"batch_size": 12, "crop": CROP} | CASES[name]
    plain, kept = (
        Loader(
            jpeg_dataset,
            "train",
            LoaderConfig.alexnet(**options, decoded=where),
            device=torch.device("cuda"),
        )
        for where in ("none", place)
    )
    with plain, kept:
        for _ in range(2):
            worst = 0.0
            for a, b in zip(plain, kept, strict=True):
                assert torch.equal(a.ids, b.ids)
                assert torch.equal(a.labels, b.labels)
                assert a.images.stride() == b.images.stride()
                worst = max(worst, float((a.images.float() - b.images.float()).abs().max()))
            print(f"{name}, {place}: at most {worst:.4f} levels")
            assert worst <= (1 if "dtype" in CASES[name] else 1e-3)
