"""What the engine makes of pixels: mirror, scale, shift and mean, types, layouts, resized crops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import ABLE, cut, decoded, jpeg, needs_library, photo, random_box, views
from numpy.typing import NDArray
from PIL import Image

from gratis.loader.engine.decoder import NativeDecoder
from gratis.loader.engine.library import Filter, PixelType, Status

pytestmark = needs_library

F32 = np.float32


@pytest.fixture(params=ABLE)
def decoder(request: pytest.FixtureRequest) -> Iterator[NativeDecoder]:
    with NativeDecoder(isa=request.param) as decoder:
        yield decoder


def affine(
    part: NDArray[np.uint8],
    scale: NDArray[np.float32],
    plus: NDArray[np.float32],
    minus: Any,
    *,
    channels_last: bool = False,
) -> NDArray[np.float32]:
    """In float64, where 8 bits times 24 plus 24 are exact here: rounded once, like a fused
    multiplication and addition in float32."""
    pixels = part.astype(np.float64) * scale
    if channels_last:
        return (pixels + plus).astype(F32) - F32(minus)
    return (pixels + (plus - F32(minus)).astype(F32)).astype(F32)


def as_type(values: NDArray[np.float32], type: PixelType) -> NDArray[Any]:
    """As torch rounds."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if type == PixelType.BFLOAT16:
        return tensor.bfloat16().view(torch.int16).numpy().view(np.uint16)
    return tensor.half().numpy() if type == PixelType.FLOAT16 else values


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("type", [PixelType.FLOAT32, PixelType.BFLOAT16, PixelType.FLOAT16])
@pytest.mark.parametrize("with_mean", [False, True])
def test_types_layouts_means(
    decoder: NativeDecoder, type: PixelType, channels_last: bool, with_mean: bool
) -> None:
    """Every width up to more than a vector, aligned or not."""
    rng = np.random.default_rng(3)
    picture = photo(30, 150)
    file = jpeg(picture)
    pixels = decoded(file)
    scale, mean = rng.random(3, F32) + F32(0.1), rng.random((40, 160, 3), F32) * 255
    memory = np.ascontiguousarray(mean if channels_last else mean.transpose(2, 0, 1))
    for width in [*range(1, 70), 127, 128, 150]:
        box = (int(rng.integers(0, 20)), int(rng.integers(0, 151 - width)), 9, width)
        plus, flip = (rng.random((1, 1, 3), F32) - F32(0.5)) * 60, bool(rng.integers(0, 2))
        top, left = (int(n) for n in rng.integers(0, 10, 2))
        first = ((160 * top + left) * (3 if channels_last else 1)) * 4
        options: dict[str, Any] = {}
        if with_mean:
            options["minus"] = np.array([[memory.ctypes.data + first]], np.uint64)
            options |= {"minus_row": 480 if channels_last else 160, "minus_plane": 40 * 160}
        status, [[view]] = views(
            decoder,
            [file],
            [[box]],
            type=type,
            channels_last=channels_last,
            flip=np.array([[flip]], np.uint8),
            scale=scale,
            plus=plus,
            misaligned=int(rng.integers(0, 3)),
            **options,
        )
        assert status == [Status.OK]
        part = cut(pixels, box)[:, ::-1] if flip else cut(pixels, box)
        minus = mean[top : top + 9, left : left + width] if with_mean else 0
        expected = affine(part, scale, plus[0, 0], minus, channels_last=channels_last)
        np.testing.assert_array_equal(view, as_type(expected, type))


@pytest.mark.parametrize("type", [PixelType.BFLOAT16, PixelType.FLOAT16])
def test_the_ends_of_half_precision(decoder: NativeDecoder, type: PixelType) -> None:
    """Subnormal, huge, infinite, and ties: one grey level for each column, scaled."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, -1, 1).repeat(16, 0).repeat(3, 2)
    file = jpeg(ramp, quality=100, subsampling="4:4:4")
    for scale in (1e-9, 3e-8, 6e-8, 1.7e-6, 2.4e-7, 1 / 3, 1.0, 257.0, 259.7, 1e5, -260.0, 1e36):
        factors = np.full(3, scale, F32)
        status, [[view]] = views(decoder, [file], [[(0, 0, 16, 256)]], type=type, scale=factors)
        assert status == [Status.OK]
        expected = affine(decoded(file), factors, np.zeros(3, F32), 0)
        np.testing.assert_array_equal(view, as_type(expected, type))


def test_large_batches_are_written_around_the_cache(decoder: NativeDecoder) -> None:
    """The same values where the batch is large enough for it, in every type."""
    files = [jpeg(photo(256, 256, n), restart_marker_rows=1) for n in range(2)] * 12
    boxes = [[(n, 32 - n, 224, 224)] for n in range(24)]
    for type in (PixelType.FLOAT32, PixelType.FLOAT16, PixelType.BFLOAT16):
        for channels_last in (False, True):
            _, made = views(
                decoder, files, boxes, size=(224, 224), type=type, channels_last=channels_last
            )
            for file, [box], [view] in list(zip(files, boxes, made, strict=True))[::5]:
                part = cut(decoded(file), box).astype(F32)
                np.testing.assert_array_equal(view, as_type(part, type))


def test_channels_last_bytes_are_the_pixels(decoder: NativeDecoder) -> None:
    file = jpeg(photo(20, 77))
    for width in range(1, 77):
        status, [[view]] = views(
            decoder, [file], [[(3, 77 - width, 15, width)]], channels_last=True
        )
        assert status == [Status.OK]
        np.testing.assert_array_equal(view, decoded(file)[3:18, 77 - width :])


def by_torch(
    part: NDArray[np.uint8], size: tuple[int, int], mode: str, *, antialias: bool
) -> NDArray[np.uint8]:
    """What torchvision's resized_crop calls on tensors of uint8."""
    planes = torch.from_numpy(part.transpose(2, 0, 1).copy())[None]
    made = torch.nn.functional.interpolate(planes, size=size, mode=mode, antialias=antialias)
    return made[0].permute(1, 2, 0).numpy()


MODES = {Filter.TRIANGLE: "bilinear", Filter.CUBIC: "bicubic"}
RESAMPLING = {Filter.TRIANGLE: Image.Resampling.BILINEAR, Filter.CUBIC: Image.Resampling.BICUBIC}
both_forms = pytest.mark.parametrize("antialias", [True, False])


@both_forms
@pytest.mark.parametrize("filter", MODES)
def test_resized_crops_equal_torch_and_pillow_to_one_level(
    decoder: NativeDecoder, filter: Filter, antialias: bool
) -> None:
    """Enlarged and reduced, at the borders of the image, one pixel and the whole. Pillow always
    antialiases."""
    rng = np.random.default_rng(5)
    image = (150, 200)
    file = jpeg(photo(*image, noise=40))
    boxes = [random_box(rng, *image) for _ in range(40)]
    boxes += [
        (0, 0, 150, 200),
        (149, 199, 1, 1),
        (0, 0, 1, 200),
        (20, 30, 64, 64),
        (86, 136, 64, 64),
    ]
    common: dict[str, Any] = {"filter": filter, "antialias": antialias}
    for size in ((64, 64), (37, 90), (5, 7), (2, 1)):
        flip = rng.integers(0, 2, (1, len(boxes)), np.uint8)
        status, [made] = views(decoder, [file], [boxes], size=size, flip=flip, **common)
        assert status == [Status.OK]
        different, values = 0, 0
        for box, mirrored, view in zip(boxes, flip[0], made, strict=True):
            part = cut(decoded(file), box)
            back = (view[:, ::-1] if mirrored else view).astype(int)
            gap = np.abs(back - by_torch(part, size, MODES[filter], antialias=antialias))
            assert gap.max() <= 1, (box, size)
            if antialias:
                picture = Image.fromarray(part).resize(size[::-1], RESAMPLING[filter])
                assert np.abs(back - np.asarray(picture)).max() <= 1, (box, size)
            different, values = different + np.count_nonzero(gap), values + gap.size
        assert different / values < 0.02


@both_forms
@pytest.mark.parametrize("filter", MODES)
def test_resized_crops_of_large_images(
    decoder: NativeDecoder, filter: Filter, antialias: bool
) -> None:
    """So strong a reduction that the weights of a group of outputs span many vectors."""
    file = jpeg(photo(500, 900))
    box, common = (3, 5, 490, 890), {"filter": filter, "antialias": antialias}
    status, [[view]] = views(decoder, [file], [[box]], size=(32, 24), **common)
    assert status == [Status.OK]
    part = cut(decoded(file), box)
    expected = by_torch(part, (32, 24), MODES[filter], antialias=antialias)
    assert np.abs(view.astype(int) - expected).max() <= 1


@both_forms
@pytest.mark.parametrize("filter", MODES)
def test_a_window_of_a_resized_part_is_cut_out_of_the_whole(
    decoder: NativeDecoder, filter: Filter, antialias: bool
) -> None:
    """As torchvision's Resize and CenterCrop, to the bit: nothing but the window is computed."""
    rng = np.random.default_rng(6)
    file = jpeg(photo(150, 200, noise=40), restart_marker_rows=1)
    boxes = [random_box(rng, 150, 200) for _ in range(20)] + [(0, 0, 150, 200), (149, 199, 1, 1)]
    common: dict[str, Any] = {"filter": filter, "antialias": antialias}
    for target, size in (((64, 85), (56, 56)), ((300, 400), (33, 50)), ((7, 9), (7, 1))):
        corners = [
            [rng.integers(0, t - s + 1) for t, s in zip(target, size, strict=True)] for _ in boxes
        ]
        corners[0], corners[1] = [0, 0], [t - s for t, s in zip(target, size, strict=True)]
        targets = np.array([[(*target, *corner) for corner in corners]], np.int32)
        flip = rng.integers(0, 2, (1, len(boxes)), np.uint8)
        for some in (slice(None), slice(5, 6)):  # many views of an image, and one alone
            mine = {"targets": targets[:, some].copy(), "flip": flip[:, some].copy()} | common
            status, [made] = views(decoder, [file], [boxes[some]], size=size, **mine)
            _, [wholes] = views(decoder, [file], [boxes[some]], size=target, **common)
            assert status == [Status.OK]
            turned = zip(made, wholes, corners[some], flip[0, some], strict=True)
            for view, whole, (y, x), mirrored in turned:
                expected = whole[y : y + size[0], x : x + size[1]]
                np.testing.assert_array_equal(view[:, ::-1] if mirrored else view, expected)


@pytest.mark.parametrize(
    "target", [(63, 64, 0, 0), (64, 64, 1, 0), (64, 80, 0, 17), (80, 80, -1, 0), (0, 64, 0, 0)]
)
def test_a_window_outside_of_the_resized_part_is_refused(
    decoder: NativeDecoder, target: tuple[int, int, int, int]
) -> None:
    targets, common = np.array([[target]], np.int32), {"size": (64, 64), "filter": Filter.CUBIC}
    boxes: Any = [[(0, 0, 50, 60)]]
    status, _ = views(decoder, [jpeg(photo(90, 90))], boxes, targets=targets, **common)
    assert status == [Status.RECTANGLE]
    with pytest.raises(ValueError, match="targets"):
        views(decoder, [jpeg(photo(90, 90))], boxes, size=(50, 60), targets=targets)


def test_a_resized_crop_of_its_own_size_is_the_crop(decoder: NativeDecoder) -> None:
    file = jpeg(photo(90, 90))
    for filter in MODES:
        status, [[view]] = views(decoder, [file], [[(7, 9, 50, 60)]], size=(50, 60), filter=filter)
        assert status == [Status.OK]
        np.testing.assert_array_equal(view, decoded(file)[7:57, 9:69])


def test_resized_crops_are_finished_like_crops(decoder: NativeDecoder) -> None:
    file, box = jpeg(photo(90, 90)), (7, 9, 50, 60)
    scale, plus = F32([0.5, 2, 1 / 3]), F32([[[1, -2, 0.1]]])
    common: dict[str, Any] = {"size": (33, 45), "filter": Filter.TRIANGLE}
    _, [[bytes_]] = views(decoder, [file], [[box]], **common)
    for channels_last in (False, True):
        _, [[view]] = views(
            decoder,
            [file],
            [[box]],
            type=PixelType.FLOAT32,
            channels_last=channels_last,
            scale=scale,
            plus=plus,
            **common,
        )
        np.testing.assert_array_equal(view, affine(bytes_, scale, plus[0, 0], 0))


@both_forms
@pytest.mark.parametrize("filter", MODES)
def test_instruction_sets_agree(filter: Filter, antialias: bool) -> None:
    """On every bit of resized crops and windows too, where they have algorithms of their own."""
    rng = np.random.default_rng(8)
    file = jpeg(photo(99, 130, noise=60))
    boxes = [random_box(rng, 99, 130) for _ in range(50)]
    windows = np.array([[(70, 61, *rng.integers(0, 14, 2)) for _ in boxes]], np.int32)
    common: dict[str, Any] = {"size": (56, 48), "filter": filter, "antialias": antialias}
    for targets in (None, windows):
        made = []
        for isa in ABLE:
            with NativeDecoder(isa=isa) as decoder:
                _, [row] = views(decoder, [file], [boxes], targets=targets, **common)
                made.append(row)
        for other in made[1:]:
            np.testing.assert_array_equal(other, made[0])
