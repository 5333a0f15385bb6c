"""Images that keep their shape, through every way of decoding: crops, resized crops, evaluation as
torchvision's Resize and CenterCrop."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import FEW, picture, write_dataset
from numpy.typing import NDArray
from PIL import Image
from serving import faulty
from test_loader_views import read_with_pillow, through_the_graph, through_the_loader

from gratis import Loader, LoaderConfig, dataset
from gratis.errors import GratisError
from gratis.loader import plan
from gratis.loader.inspect import explain, explain_whole_figure, preview

CROP = 32
# height and width: larger than the crop, one side or both smaller, odd, a single pixel
SIZES = [
    (64, 64),
    (48, 90),
    (90, 48),
    (33, 32),
    (32, 32),
    (20, 70),
    (70, 21),
    (16, 16),
    (1, 1),
    (3, 40),
]
COUNT = FEW


def sizes_of(count: int) -> list[tuple[int, int]]:
    return [SIZES[k % len(SIZES)] for k in range(count)]


def images_of(count: int) -> list[NDArray[np.uint8]]:
    return [picture(k, *size) for k, size in enumerate(sizes_of(count))]


@pytest.fixture(scope="module")
def whole_jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("whole") / "jpeg", images_of(COUNT))


@pytest.fixture(scope="module")
def whole_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "raw"
    return write_dataset(root, images_of(COUNT), codec="raw")


def config_of(**changes: Any) -> LoaderConfig:
    fields: dict[str, Any] = {"batch_size": 9, "crop": CROP, "normalize": None, "seed": 3}
    return LoaderConfig(**fields | {"dtype": torch.uint8, "layout": "nhwc"} | changes)


def interpolated(
    image: NDArray[np.uint8], height: int, width: int, **how: Any
) -> NDArray[np.uint8]:
    planes = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    how = {"mode": "bilinear", "antialias": True} | how
    made = torch.nn.functional.interpolate(planes, size=(height, width), **how)
    return made[0].permute(1, 2, 0).numpy()


def evaluated(image: NDArray[np.uint8], resize: int, crop: int = CROP) -> list[NDArray[np.uint8]]:
    """The ten views as torchvision has them (its Resize and CenterCrop), in our order: corners and
    centre, then the mirrors."""
    height, width = image.shape[:2]
    if height <= width:
        tall, wide = resize, int(resize * width / height)
    else:
        tall, wide = int(resize * height / width), resize
    made = interpolated(image, tall, wide)
    top, left = round((tall - crop) / 2.0), round((wide - crop) / 2.0)
    low, right = tall - crop, wide - crop
    corners = [(0, 0), (0, right), (top, left), (low, 0), (low, right)]
    views = [made[y : y + crop, x : x + crop] for y, x in corners]
    return views + [view[:, ::-1] for view in views]


def boxed(config: LoaderConfig, sample: int, size: tuple[int, int]) -> list[int]:
    """Height and width of the image: y, x, height and width of what training cuts out."""
    ids = np.array([sample])
    if config.area:
        pair = np.array(size)[:, None]
        drawn = plan.boxes(config.seed, 0, ids, pair, config.area, config.ratio)
        return [int(one[0]) for one in drawn]
    side = min(config.crop, *size)
    words = plan.words(config.seed, 0, ids, plan.CROP)
    y, x = (
        (int(word[0]) * (length - side + 1)) >> 32
        for word, length in zip(words, size, strict=False)
    )
    return [y, x, side, side]


def trained(config: LoaderConfig, image: NDArray[np.uint8], sample: int) -> NDArray[np.uint8]:
    y, x, height, width = boxed(config, sample, image.shape[:2])
    made = interpolated(image[y : y + height, x : x + width], config.crop, config.crop)
    flip = plan.mirrors(config.seed, 0, np.array([sample]), 0.5)[0]
    return made[:, ::-1] if flip else made


CONFIGS = {
    "crop": config_of(),
    "crop at the paper's places": config_of(crop=16),
    "resized crop": config_of(area=(0.08, 1.0)),
    "evaluation": config_of(augment=False),
    "evaluation, enlarged": config_of(augment=False, resize=200),
    "evaluation as stored": config_of(augment=False, resize=32),
    "ten views": config_of(augment=False, views=10, resize=41),
}
WAYS: dict[str, dict[str, Any]] = {
    "native": {"engine": "auto"},
    "dali": {"engine": "dali"},
    "pillow": {"engine": "dali"},
    "kept": {"decoded": "host"},
    "raw": {},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_batches_equal_pillow_and_torch(
    name: str, way: str, whole_jpeg: Path, whole_raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = whole_raw if way == "raw" else whole_jpeg
    if way == "pillow":
        monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    config = replace(CONFIGS[name], threads=2, **WAYS[way])
    ids, got = through_the_loader(root, config)
    assert sorted(ids.tolist()) == list(range(COUNT))
    wanted = wanted_of(root, name)
    for sample, view in zip(ids.tolist(), got, strict=True):
        np.testing.assert_array_equal(view, wanted[sample])


@cache
def wanted_of(root: Path, name: str) -> list[NDArray[np.uint8]]:
    """Of each sample, whichever way it comes."""
    config, wanted = CONFIGS[name], []
    for sample, image in enumerate(read_with_pillow(root)):
        if config.augment:
            wanted.append(trained(config, image, sample))
        else:
            ten = evaluated(image, config.resize or round(config.crop * 8 / 7), config.crop)
            wanted.append(np.stack(ten) if config.views == 10 else ten[2])
    return wanted


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_evaluation_by_every_filter(whole_jpeg: Path, interpolation: Any, antialias: bool) -> None:
    config = config_of(augment=False, interpolation=interpolation, antialias=antialias, resize=40)
    ids, native = through_the_loader(whole_jpeg, config)
    _, dali = through_the_loader(whole_jpeg, replace(config, engine="dali"))
    images = read_with_pillow(whole_jpeg)
    for sample, one, other in zip(ids, native.astype(int), dali, strict=True):
        height, width = images[sample].shape[:2]
        shorter = min(height, width)
        size = int(40 * height / shorter), int(40 * width / shorter)
        made = interpolated(images[sample], *size, mode=interpolation, antialias=antialias)
        y, x = (round((side - CROP) / 2) for side in size)
        wanted = made[y : y + CROP, x : x + CROP]
        np.testing.assert_array_equal(other, wanted)
        assert np.abs(one - wanted).max() <= 1


@pytest.mark.parametrize("resize", [None, 40, 64, 80, 200])
@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_square_images_are_resized_too(codec: str, resize: int | None, request: Any) -> None:
    root: Path = request.getfixturevalue(f"few_{codec}")
    ids, got = through_the_loader(root, config_of(augment=False, resize=resize))
    images = read_with_pillow(root)
    for sample, view in zip(ids, got, strict=True):
        wanted = images[sample][16:48, 16:48]
        if resize is not None:
            wanted = evaluated(images[sample], resize)[2]
        np.testing.assert_array_equal(view, wanted)


def test_square_images_smaller_than_the_crop_are_enlarged_on_request(few_jpeg: Path) -> None:
    ids, got = through_the_loader(few_jpeg, config_of(augment=False, crop=96, resize=110))
    images = read_with_pillow(few_jpeg)
    for sample, view in zip(ids, got, strict=True):
        np.testing.assert_array_equal(view, evaluated(images[sample], 110, 96)[2])
    config = config_of(crop=96, area=(0.5, 1.0))
    ids, got = through_the_loader(few_jpeg, config)
    for sample, view in zip(ids.tolist(), got, strict=True):
        np.testing.assert_array_equal(view, trained(config, images[sample], sample))


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize("resize", [40, 64])
@pytest.mark.parametrize("shape", ["whole", "square"])
def test_the_graph_for_gpus_evaluates_alike(
    shape: str, resize: int, views: int, whole_jpeg: Path, few_jpeg: Path
) -> None:
    """Also square images that have that size already, 64 px."""
    root = whole_jpeg if shape == "whole" else few_jpeg
    fields: dict[str, Any] = {"views": views, "resize": resize, "batch_size": 20}
    config = config_of(augment=False, dtype=torch.float32, **fields)
    ids, graph = through_the_graph(root, config)
    _, cpu = through_the_loader(root, config)
    apart = np.abs(graph - cpu)
    assert len(ids) == COUNT
    assert apart.max() <= 3
    assert apart.mean() <= 0.3


@pytest.mark.parametrize("area", [None, (0.08, 1.0)])
@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_the_graph_for_gpus_trains_alike(
    codec: str, area: tuple[float, float] | None, whole_jpeg: Path, whole_raw: Path
) -> None:
    root = whole_raw if codec == "raw" else whole_jpeg
    config = config_of(area=area, dtype=torch.float32, batch_size=20)
    ids, graph = through_the_graph(root, config)
    again, cpu = through_the_loader(root, config)
    assert (ids == again).all()
    apart = np.abs(graph - cpu)
    assert apart.max() <= 4
    assert apart.mean() <= 0.3


def test_normalised_by_imagenet_s_numbers_in_every_layout(whole_jpeg: Path) -> None:
    grey = config_of(area=(0.2, 1.0))
    ids, pixels = through_the_loader(whole_jpeg, grey)
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    wanted = (pixels / 255 - mean) / std
    for layout in ("nhwc", "nchw", "channels_last"):
        for engine in ("auto", "dali"):
            config = replace(
                grey, normalize="imagenet", dtype=torch.float32, layout=layout, engine=engine
            )
            again, got = through_the_loader(whole_jpeg, config)  # type: ignore[arg-type]
            assert (ids == again).all()
            got = got if layout == "nhwc" else got.transpose(0, 2, 3, 1)
            np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_same_on_two_ranks_and_after_a_resume(whole_jpeg: Path) -> None:
    config = config_of(batch_size=6, area=(0.08, 1.0))
    with Loader(whole_jpeg, "train", config) as one:
        whole = [(batch.ids.tolist(), batch.images.clone()) for batch in one]
    halves = []
    for rank in range(2):
        with Loader(whole_jpeg, "train", config, rank=rank, world_size=2) as part:
            halves.append([batch.images.clone() for batch in part])
    for (_, images), *parts in zip(whole, *halves, strict=True):
        assert torch.equal(images, torch.cat(parts))
    with Loader(whole_jpeg, "train", config) as begun:
        iterator = iter(begun)
        next(iterator)
        state = begun.state_dict()
    with Loader(whole_jpeg, "train", config) as resumed:
        resumed.load_state_dict(state)
        for (ids, images), batch in zip(whole[1:], resumed, strict=True):
            assert ids == batch.ids.tolist()
            assert torch.equal(images, batch.images)


def test_parts_lie_inside_their_images_and_are_drawn_as_torchvision_s() -> None:
    """Shares of the area: uniform where they fit. Places: uniform over all that there are."""
    count, size = 40_000, (300, 500)
    ids = np.arange(count)
    sizes = np.tile(np.array(size)[:, None], count)
    y, x, height, width = plan.boxes(1, 0, ids, sizes, (0.08, 0.4), (3 / 4, 4 / 3))  # all fit
    assert (y >= 0).all()
    assert (x >= 0).all()
    assert (y + height <= 300).all()
    assert (x + width <= 500).all()
    share, shape = height * width / (300 * 500), np.log(width / height)
    assert abs(share.mean() - 0.24) < 4 * 0.32 / math.sqrt(12 * count)
    assert abs(shape.mean()) < 4 * 2 * math.log(4 / 3) / math.sqrt(12 * count)
    for place, room in ((y, 300 - height), (x, 500 - width)):
        assert abs(((place + 0.5) / (room + 1)).mean() - 0.5) < 4 / math.sqrt(12 * count)


@pytest.mark.parametrize(
    ("size", "wanted"),  # torchvision's: the whole where its ratio fits, else the nearest
    [
        ((100, 400), (0, 133, 100, 133)),
        ((400, 100), (133, 0, 133, 100)),
        ((100, 110), (0, 0, 100, 110)),
    ],
)
def test_what_never_fits_is_the_central_part(
    size: tuple[int, int], wanted: tuple[int, ...]
) -> None:
    pair = np.array(size)[:, None]
    never = plan.boxes(0, 0, np.arange(1), pair, (1.0, 1.0), (3 / 4, 4 / 3))
    assert tuple(int(one[0]) for one in never) == wanted


def test_plain_crops_are_at_every_place() -> None:
    ids = np.arange(4000)
    positions = np.stack([np.full(4000, 3), np.full(4000, 7)])
    drawn = plan.draws(0, 0, ids, positions)
    assert set(drawn.y.tolist()) == set(range(3))
    assert set(drawn.x.tolist()) == set(range(7))
    same = plan.draws(0, 0, ids, 7)
    assert (drawn.x == same.x).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": 40}, "resize is for evaluation; set augment=False"),
        ({"augment": False, "resize": 31}, "resize is 31, less than the crop; choose at least 32"),
        ({"augment": False, "resize": 40.0}, "resize is 40.0; it must be a whole number"),
        ({"augment": False, "resize": 0}, "resize is 0; it must be at least 1"),
        ({"shape": "oblong"}, "shape is 'oblong'; it may be 'any' or 'square' or 'whole'"),
    ],
)
def test_contradictions_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GratisError, match=message):
        config_of(**changes)


def test_resizing_and_a_mean_by_place_contradict() -> None:
    with pytest.raises(GratisError, match="mean='offset' has no meaning for resized images"):
        LoaderConfig.alexnet(augment=False, resize=256, mean="offset")


def test_a_dataset_of_the_other_shape_says_what_to_do(whole_jpeg: Path, few_jpeg: Path) -> None:
    with pytest.raises(GratisError, match=r"no mean image; take normalize='imagenet', or make the"):
        Loader(whole_jpeg, "train", LoaderConfig.alexnet(crop=CROP))
    anew = "jpeg has square images; make them anew: gratis shards --src SRC --out OUT --shape whole"
    with pytest.raises(GratisError, match=anew):
        Loader(few_jpeg, "train", config_of(shape="whole"))
    Loader(whole_jpeg, "train", config_of(shape="whole")).close()
    with pytest.raises(GratisError, match=r"crop is 96; the images of .* have 64 px a side"):
        Loader(few_jpeg, "train", config_of(crop=96))


def changed_index(root: Path, to: Path, **columns: Any) -> Path:
    """The dataset with another index."""
    to.mkdir()
    for path in root.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    manifest, index = dataset.read_manifest(root), dataset.read_index(root, "train")
    sha256 = dataset.write_index(to, "train", index._replace(**columns))
    split = dataclasses.replace(manifest.splits["train"], index_sha256=sha256)
    changed = dataclasses.replace(manifest, splits={"train": split})
    (to / "manifest.json").write_bytes(changed.to_json())
    return to


@pytest.mark.parametrize("value", [0, -5, 1 << 16])
@pytest.mark.parametrize("name", ["width", "height"])
def test_an_index_of_impossible_sizes_is_damaged(
    whole_jpeg: Path, tmp_path: Path, name: str, value: int
) -> None:
    column = getattr(dataset.read_index(whole_jpeg, "train"), name).copy()
    column[5] = value
    root = changed_index(whole_jpeg, tmp_path / "t", **{name: column})
    with pytest.raises(GratisError, match=rf"is damaged \({name}s from .*make the shards again"):
        Loader(root, "train", config_of())


def test_an_index_without_sizes_or_with_half_of_them(whole_jpeg: Path, tmp_path: Path) -> None:
    root = changed_index(whole_jpeg, tmp_path / "none", width=None, height=None)
    with pytest.raises(GratisError, match=r"are not of whole images, as the manifest's are"):
        Loader(root, "train", config_of())
    root = changed_index(whole_jpeg, tmp_path / "half", width=None)
    with pytest.raises(GratisError, match="is damaged"):
        Loader(root, "train", config_of())
    long = np.where(np.arange(COUNT) == 4, 32 * 102, dataset.read_index(whole_jpeg, "train").width)
    root = changed_index(whole_jpeg, tmp_path / "long", width=long.astype(np.int32))
    with pytest.raises(GratisError, match=r"is damaged \(aspect ratios from 1 to 102"):
        Loader(root, "train", config_of())
    huge = np.full(COUNT, 60_000, np.int32)
    root = changed_index(whole_jpeg, tmp_path / "huge", width=huge, height=huge)
    with pytest.raises(GratisError, match=r"is damaged \(pixel numbers from 3600000000"):
        Loader(root, "train", config_of())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", [47, 49, 90])
def test_a_size_that_is_not_the_file_s_is_a_bad_sample(  # noqa: PLR0917
    way: str,
    wrong: int,
    whole_jpeg: Path,
    whole_raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "pillow":
        monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    source = whole_raw if way == "raw" else whole_jpeg
    height = dataset.read_index(source, "train").height
    assert height is not None
    height = height.copy()  # of a mapped file
    height[1] = wrong  # it is 48
    root = changed_index(source, tmp_path / "t", height=height)
    config = replace(config_of(area=(0.3, 1.0)), **WAYS[way])
    with (
        pytest.raises(GratisError, match="cannot be decoded; verify the copy"),
        Loader(root, "train", config) as loader,
    ):
        list(loader)
    with Loader(root, "train", replace(config, bad_samples="quarantine")) as loader:
        ids = [sample for batch in loader for sample in batch.ids.tolist()]
        assert list(loader.quarantined) == [1]
    assert len(ids) == COUNT
    assert 1 not in ids


def test_a_stand_in_is_cut_by_its_own_size(whole_jpeg: Path, tmp_path: Path) -> None:
    """By the numbers that were drawn for the sample that is missing."""
    height = dataset.read_index(whole_jpeg, "train").height
    assert height is not None
    height = height.copy()  # of a mapped file
    height[1] = 7
    root = changed_index(whole_jpeg, tmp_path / "t", height=height)
    config = config_of(area=(0.3, 1.0), bad_samples="quarantine")
    images, other = read_with_pillow(whole_jpeg), plan.stand_in(3, 0, 1, COUNT, 0)
    for engine in ("auto", "dali"):
        with Loader(root, "train", replace(config, engine=engine)) as loader:  # type: ignore[arg-type]
            order = loader.epoch_plan(0).order().tolist()
            shown = torch.cat([batch.images.clone() for batch in loader])
        view = shown[order.index(1)].numpy()
        np.testing.assert_array_equal(view, trained(config, images[other], 1))


def test_from_a_server(whole_jpeg: Path, tmp_path: Path) -> None:
    config = config_of(area=(0.08, 1.0))
    with faulty(whole_jpeg) as server:
        remote = replace(config, cache=str(tmp_path / "cache"))
        ids, got = through_the_loader(server.url, remote)  # type: ignore[arg-type]
    local, wanted = through_the_loader(whole_jpeg, config)
    assert (ids == local).all()
    np.testing.assert_array_equal(got, wanted)


def test_foreign_jpegs_the_engine_leaves_to_others(tmp_path: Path) -> None:
    """Progressive files and such with EXIF that says they are turned: as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[dict[str, Any]] = [
        {},
        {"progressive": True},
        {"exif": exif.tobytes()},
        {"subsampling": "4:4:4"},
    ]
    root = write_dataset(tmp_path / "t", images_of(COUNT), options=lambda k: kinds[k % 4])
    images = read_with_pillow(root)
    for config in (config_of(area=(0.08, 1.0)), config_of(augment=False)):
        ids, got = through_the_loader(root, config)
        for sample, view in zip(ids.tolist(), got, strict=True):
            image = images[sample]
            wanted = trained(config, image, sample) if config.augment else evaluated(image, 37)[2]
            np.testing.assert_array_equal(view, wanted)


@pytest.mark.prove
@pytest.mark.parametrize("codec", ["jpeg", "raw"])
@pytest.mark.parametrize(
    ("resize", "crop"), [(256, 224), (232, 224), (235, 224), (64, 64), (97, 32)]
)
def test_torchvision_s_resize_and_center_crop(
    tmp_path: Path, resize: int, crop: int, codec: str
) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    sizes = np.random.default_rng(resize).integers(30, 520, (24, 2)).tolist()
    images = [picture(k, *size) for k, size in enumerate(sizes)]
    root = write_dataset(tmp_path / "t", images, codec=codec)
    images = read_with_pillow(root)
    ids, got = through_the_loader(root, config_of(augment=False, resize=resize, crop=crop))
    theirs = v2.Compose([v2.Resize(resize), v2.CenterCrop(crop)])
    for sample, view in zip(ids, got, strict=True):
        wanted = theirs(torch.from_numpy(images[sample].transpose(2, 0, 1).copy()))
        np.testing.assert_array_equal(view, wanted.permute(1, 2, 0).numpy())


def test_what_explain_draws_is_what_the_loader_does(whole_jpeg: Path) -> None:
    config = config_of(area=(0.08, 1.0))
    with Loader(whole_jpeg, "train", config) as loader:
        images = torch.cat([batch.images.clone() for batch in loader]).numpy()
        order = loader.epoch_plan(0).order().tolist()
        for sample in range(10):
            image = explain.read(loader, sample)
            shown = explain_whole_figure.apply_views(loader.epoch_plan(0), sample, image)
            np.testing.assert_array_equal(shown[0], images[order.index(sample)])
        image = explain.read(loader, 1)
        views = explain_whole_figure.many_views(loader, image, 50)
        share = explain_whole_figure.coverage(views, image)
    count = np.zeros(image.shape[:2])
    assert views.extents is not None
    for y, x, (height, width) in zip(views.draws.y, views.draws.x, views.extents, strict=True):
        count[y : y + height, x : x + width] += 1
    np.testing.assert_allclose(share, count / 50)


def test_explain_and_preview_of_whole_images(
    whole_jpeg: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(explain, "DRAWS", 5000)
    shards, out = str(whole_jpeg), ["--out", str(tmp_path / "p.png")]
    explain.main([shards, "--sample", "1", *out])
    assert "parts of an image of 90 x 48 px" in capsys.readouterr().out
    (tmp_path / "p.png").unlink()
    preview.main([shards, *out])
    assert (tmp_path / "p.png").exists()
    with pytest.raises(GratisError, match="--mean is of AlexNet's crops"):
        explain.main([shards, "--sample", "1", "--mean", "offset", *out])
    with pytest.raises(GratisError, match="normalize='mean-image' is for square images"):
        preview.main([shards, "--config", "alexnet", *out])


def test_what_needs_square_images_says_so(whole_jpeg: Path) -> None:
    manifest = dataset.read_manifest(whole_jpeg)
    with pytest.raises(
        GratisError, match=r"training AlexNet needs square .*make shards with --shape"
    ):
        dataset.require_square(whole_jpeg, manifest, "training AlexNet")


@pytest.mark.parametrize("area", [None, (0.08, 1.0)])
def test_several_views_of_each_sample(whole_jpeg: Path, area: tuple[float, float] | None) -> None:
    config = config_of(views=3, area=area)
    wanted = [
        [trained(config, image, one) for one in plan.of_views(np.array([sample]), 3).tolist()]
        for sample, image in enumerate(read_with_pillow(whole_jpeg))
    ]
    for engine in ("auto", "dali"):
        ids, got = through_the_loader(whole_jpeg, replace(config, engine=engine))  # type: ignore[arg-type]
        for sample, views in zip(ids.tolist(), got, strict=True):
            np.testing.assert_array_equal(views, wanted[sample])
    again, graph = through_the_graph(whole_jpeg, replace(config, dtype=torch.float32))
    assert (ids == again).all()
    assert np.abs(graph - got).max() <= 4


def test_crops_that_change_by_epoch(whole_jpeg: Path) -> None:
    """One of them larger than all images of a square dataset may be."""
    stages = ((0, {"crop": 24}), (1, {"crop": 80}))
    config = config_of(area=(0.3, 1.0), schedule=stages)
    images = read_with_pillow(whole_jpeg)
    with Loader(whole_jpeg, "train", config) as loader:
        for crop in (24, 80):
            batch = next(iter(loader))
            assert batch.images.shape == (9, crop, crop, 3)
        drawn = plan.boxes(
            3,
            1,
            batch.ids.numpy(),
            loader.epoch_plan(1).sizes(batch.ids.numpy()),
            (0.3, 1.0),
            config.ratio,
        )
        flips = plan.mirrors(3, 1, batch.ids.numpy(), 0.5)
        for sample, view, flip, y, x, h, w in zip(
            batch.ids.tolist(), batch.images.numpy(), flips, *drawn, strict=True
        ):
            made = interpolated(images[sample][y : y + h, x : x + w], 80, 80)
            np.testing.assert_array_equal(view, made[:, ::-1] if flip else made)
