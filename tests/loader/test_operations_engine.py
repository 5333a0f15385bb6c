"""The engine's operations on pixels: those of the NumPy reference, to the bit, on every instruction
set; before every type and layout; on what it decoded itself and on what others did."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from engine_cases import ABLE, NUMPY, jpeg, needs_library, photo, views
from numpy.typing import NDArray

from gratis.loader.augmentations import AugMix, ColorJitter, RandAugment, TrivialAugmentWide
from gratis.loader.engine.decoder import NativeDecoder, ViewBatch, addresses
from gratis.loader.engine.library import VALUES, Filter, Op, PixelType, Status
from gratis.loader.views.draw_operations import Program, affine_matrix, draw_program
from gratis.loader.views.operations_reference import apply_program

pytestmark = needs_library

F32 = np.float32
SIZES = [(40, 224), (1, 1), (2, 7), (3, 5), (17, 33), (30, 64), (41, 65)]
Steps = list[tuple[Op, list[float]]]


@pytest.fixture(params=ABLE)
def decoder(request: pytest.FixtureRequest) -> Iterator[NativeDecoder]:
    with NativeDecoder(isa=request.param) as decoder:
        yield decoder


def program(steps: Steps) -> Program:
    """Of one sample."""
    values = np.zeros((1, len(steps), VALUES), F32)
    for row, (_, numbers) in zip(values[0], steps, strict=True):
        row[: len(numbers)] = numbers
    return Program(np.array([[op for op, _ in steps]], np.int32), values)


def augment(
    decoder: NativeDecoder, images: NDArray[np.uint8], made: Program, **options: Any
) -> NDArray[Any]:
    """images uint8 [n,h,w,3], as [n,3,h,w] or what the options say."""
    count, height, width, _ = images.shape
    type = options.pop("type", PixelType.UINT8)
    last = options.get("channels_last")
    shape = (count, height, width, 3) if last else (count, 3, height, width)
    out = np.zeros(shape, NUMPY[type])
    batch = ViewBatch(
        data=np.zeros(count, np.uint64),
        size=np.zeros(count, np.int64),
        rectangles=np.zeros((count, 1, 4), np.int32),
        out=addresses(list(out))[:, None],
        height=height,
        width=width,
        ops=made.ops[:, None],
        values=made.values[:, None],
        type=type,
        **options,
    )
    decoder.augment(batch, addresses(list(images))[:, None], 3 * width)
    return out


def geometries(size: tuple[int, int]) -> list[list[float]]:
    corner = (-size[1] / 2, -size[0] / 2)
    given: list[dict[str, Any]] = [
        *({"shear_x": m, "centre": corner} for m in (0.3, -0.264, 0.99)),
        *({"shear_y": m, "centre": corner} for m in (0.3, -0.264)),
        *({"x": x} for x in (3, -1, 400)),
        {"y": -2},
        *({"angle": a} for a in (0, 30, 90, -133.3)),
    ]
    matrices = [
        affine_matrix(size, **{k: np.array([v]) if k != "centre" else v for k, v in g.items()})
        for g in given
    ]
    fills = ([0.0] * 4, [1.0, 20.0, 128.4, 255.0])
    return [[*m[0], mode, *fill] for m in matrices for mode in (0.0, 1.0) for fill in fills]


def cases(size: tuple[int, int]) -> list[tuple[Op, list[float]]]:
    factors = (0.0, 0.1, 0.5, 1.0, 1.37, 1.9, 6.0)
    blends = (Op.CONTRAST, Op.SATURATION)
    return [
        *((Op.BRIGHTNESS, [f]) for f in factors),
        *((op, [f, 1 - f]) for op in blends for f in factors),
        *((Op.SHARPNESS, [1 - f]) for f in factors),
        *((Op.HUE, [f]) for f in (-0.5, -0.1, 0.0, 0.02, 0.37, 0.5)),
        (Op.GREY, []),
        *((Op.POSTERIZE, [float(b)]) for b in range(9)),
        *((Op.SOLARIZE, [t]) for t in (0.0, 8.5, 128.0, 255.0, 256.0)),
        *((Op.SOLARIZE_ADD, [t]) for t in (0.0, 50.0, 110.0)),
        (Op.AUTOCONTRAST, []),
        (Op.EQUALIZE, []),
        *((Op.AFFINE, v) for v in geometries(size)),
    ]


@cache
def by_the_reference(
    size: tuple[int, int],
) -> list[tuple[str, Program, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Of each case the pictures and what becomes of them: colours, greys, and few levels."""
    image = photo(*size, noise=30)
    few = [image] if size == SIZES[0] else [image, image[..., [0, 0, 0]], image // 32 + 100]
    pictures, made = np.stack(few), []
    for op, numbers in cases(size):
        one = program([(op, numbers)])
        expected = [apply_program(p.transpose(2, 0, 1), one.ops[0], one.values[0]) for p in few]
        all_alike = Program(one.ops.repeat(len(few), 0), one.values.repeat(len(few), 0))
        made.append((f"{op!r} {numbers}", all_alike, pictures, np.stack(expected)))
    return made


@pytest.mark.parametrize("size", SIZES)
def test_operations_equal_the_reference_to_the_bit(
    decoder: NativeDecoder, size: tuple[int, int]
) -> None:
    for case, made, pictures, expected in by_the_reference(size):
        np.testing.assert_array_equal(augment(decoder, pictures, made), expected, err_msg=case)


@pytest.mark.parametrize("size", [(224, 224), (12, 70), (1, 1)])
def test_blur_equals_the_reference_to_one_level(
    decoder: NativeDecoder, size: tuple[int, int]
) -> None:
    """Which sums in float64: only where a sum is next to a half may it round otherwise."""
    image = photo(*size, noise=30)
    for sigma, most in ((0.1, 23), (0.7, 3), (2.0, 23), (9.0, 11), (30.0, 23)):
        taps = most if most // 2 < min(size) else 1
        made = program([(Op.BLUR, [sigma, sigma / 2, taps, taps])])
        found = augment(decoder, image[None], made)[0].astype(int)
        expected = apply_program(image.transpose(2, 0, 1), made.ops[0], made.values[0])
        assert np.abs(found - expected).max() <= 1
        assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize(
    "operation",
    [
        TrivialAugmentWide(fill=(3.0, 4.0, 200.0)),
        RandAugment(num_ops=3, interpolation="bilinear"),
        AugMix(),
        ColorJitter(0.4, 0.4, 0.4, 0.1),
    ],
)
def test_drawn_programs_equal_the_reference(decoder: NativeDecoder, operation: Any) -> None:
    """One after the other in the same scratch memory."""
    count, size = 20, (37, 50)
    images = np.stack([photo(*size, number) for number in range(count)])
    made = draw_program((operation,), 5, 1, np.arange(count), *size)
    found = augment(decoder, images, made)
    for image, ops, values, out in zip(images, *made, found, strict=True):
        expected = apply_program(image.transpose(2, 0, 1), ops, values)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("type", PixelType)
def test_what_follows_is_as_without_operations(
    decoder: NativeDecoder, type: PixelType, channels_last: bool
) -> None:
    """Mirror before, scale, shift, mean and type after."""
    rng = np.random.default_rng(2)
    images = np.stack([photo(20, 77, number) for number in range(6)])
    mean = rng.random((20, 77, 3) if channels_last else (3, 20, 77), F32) * 200
    options: dict[str, Any] = {"type": type, "channels_last": channels_last}
    if type != PixelType.UINT8:
        options |= {"scale": rng.random(3, F32), "plus": rng.random((6, 1, 3), F32)}
        options |= {"minus": np.full((6, 1), mean.ctypes.data, np.uint64)}
        options |= {"minus_row": 231 if channels_last else 77, "minus_plane": 20 * 77}
    flip = np.arange(6, dtype=np.uint8)[:, None] % 2
    made = program([(Op.SOLARIZE, [100.0])])
    made = Program(made.ops.repeat(6, axis=0), made.values.repeat(6, axis=0))
    found = augment(decoder, images, made, flip=flip, **options)
    solarized = np.where(images >= 100, 255 - images, images)
    solarized[1::2] = solarized[1::2, :, ::-1]
    nothing = Program(np.zeros_like(made.ops), made.values)
    expected = augment(decoder, np.ascontiguousarray(solarized), nothing, **options)
    np.testing.assert_array_equal(found, expected)


RESIZED: dict[str, Any] = {
    "filter": Filter.TRIANGLE,
    "targets": np.array([[[60, 80, 11, n], [40, 60, 0, 0]] for n in range(5)], np.int32),
}


@pytest.mark.parametrize("how", [{}, RESIZED], ids=["cut out", "resized"])
def test_on_what_the_engine_decodes(decoder: NativeDecoder, how: dict[str, Any]) -> None:
    """Two views of each image, with programs of their own, on the pixels of a batch of bytes."""
    files = [jpeg(photo(90, 110, number)) for number in range(5)]
    boxes = [[(3, n, 40, 60), (n, 7, 40, 60)] for n in range(5)]
    flip = np.array([[0, 1]] * 5, np.uint8)
    made = draw_program((RandAugment(), AugMix(), AugMix()), 1, 0, np.arange(10), 40, 60)
    ops, values = made.ops.reshape(5, 2, -1), made.values.reshape(5, 2, -1, VALUES)
    options: dict[str, Any] = {"size": (40, 60), "flip": flip} | how
    _, plain = views(decoder, files, boxes, **options)
    status, found = views(decoder, files, boxes, ops=ops, values=values, **options)
    assert status == [Status.OK] * 5
    for n in range(5):
        for v in range(2):
            pixels = plain[n][v].transpose(2, 0, 1)
            expected = apply_program(pixels, ops[n, v], values[n, v])
            np.testing.assert_array_equal(found[n][v], expected.transpose(1, 2, 0))


def test_a_program_needs_the_size_of_its_views(decoder: NativeDecoder) -> None:
    made = program([(Op.GREY, [])])
    with pytest.raises(ValueError, match="0 x 0"):
        views(
            decoder,
            [jpeg(photo(9, 9))],
            [[(0, 0, 9, 9)]],
            ops=made.ops[:, None],
            values=made.values[:, None],
        )
