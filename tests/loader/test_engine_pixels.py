"""The engine's pixels: those of libjpeg-turbo's full decode (through Pillow), cut out, to the
bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_cases import ABLE, cut, decoded, jpeg, needs_library, photo, random_box, views

from gratis.image import to_image
from gratis.loader.engine.decoder import NativeDecoder
from gratis.loader.engine.library import Status
from gratis.preprocess.codecs import encode_jpeg

pytestmark = needs_library

SIZES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 4),
    (4, 3),
    (4, 5),
    (5, 4),
    (7, 9),
    (8, 8),
    (15, 17),
    (16, 16),
    (17, 16),
]
SIZES += [(33, 31), (64, 64), (65, 129), (100, 200), (130, 3), (2, 300)]
FORMS: dict[str, dict[str, Any]] = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:0, fitted": {"subsampling": "4:2:0", "optimize": True},
    "4:2:0, restarts at rows": {"subsampling": "4:2:0", "restart_marker_rows": 1, "optimize": True},
    "4:2:0, restarts at every third row": {"subsampling": "4:2:0", "restart_marker_rows": 3},
    "4:2:0, restarts inside rows": {"subsampling": "4:2:0", "restart_marker_blocks": 3},
    "4:2:0, a restart at each MCU": {"subsampling": "4:2:0", "restart_marker_blocks": 1},
    "4:4:4": {"subsampling": "4:4:4"},
    "4:4:4, restarts at rows": {"subsampling": "4:4:4", "restart_marker_rows": 1, "optimize": True},
    "4:4:4, restarts inside rows": {"subsampling": "4:4:4", "restart_marker_blocks": 5},
    "grey": {"mode": "L"},
    "grey, restarts at rows": {"mode": "L", "restart_marker_rows": 1, "optimize": True},
}


@pytest.fixture(params=ABLE)
def decoder(request: pytest.FixtureRequest) -> Iterator[NativeDecoder]:
    with NativeDecoder(isa=request.param) as decoder:
        yield decoder


@pytest.mark.parametrize("form", FORMS)
def test_every_size_whole_and_in_parts(decoder: NativeDecoder, form: str) -> None:
    """All sizes in one batch, so that images of one lane follow each other."""
    rng = np.random.default_rng(1)
    files = [jpeg(photo(*size), **FORMS[form]) for size in SIZES]
    boxes = [[(0, 0, *size)] for size in SIZES]
    for _ in range(7):
        status, made = views(decoder, files, boxes)
        assert status == [Status.OK] * len(files)
        for file, [box], [view] in zip(files, boxes, made, strict=True):
            np.testing.assert_array_equal(view, cut(decoded(file), box), f"{form} {box}")
        boxes = [[random_box(rng, *size)] for size in SIZES]


@pytest.mark.parametrize("quality", [1, 25, 60, 90, 100])
def test_every_quality(decoder: NativeDecoder, quality: int) -> None:
    """Also of noise without end: the longest codes, and sums that are clamped."""
    pictures = [photo(70, 90, number, noise) for number, noise in enumerate((0, 5, 60, 255))]
    files = [
        jpeg(
            picture,
            quality=quality,
            subsampling=sampling,
            optimize=fitted,
            restart_marker_rows=rows,
        )
        for picture in pictures
        for sampling in ("4:2:0", "4:4:4")
        for fitted in (False, True)
        for rows in (0, 1)
    ]
    status, made = views(decoder, files, [[(0, 0, 70, 90)]] * len(files))
    assert status == [Status.OK] * len(files)
    for file, [view] in zip(files, made, strict=True):
        np.testing.assert_array_equal(view, decoded(file))


def test_every_corner_of_a_crop(decoder: NativeDecoder) -> None:
    """Smoothing looks at neighbours outside a rectangle, and across MCUs."""
    files = [jpeg(photo(48, 64), subsampling="4:2:0", restart_marker_rows=rows) for rows in (0, 1)]
    whole = [decoded(file) for file in files]
    for y in range(0, 48, 3):
        boxes = [(y, x, min(17, 48 - y), min(19, 64 - x)) for x in range(64)]
        status, made = views(decoder, files, [boxes] * 2)
        assert status == [Status.OK] * 2
        for box in boxes[::5]:
            made = [
                [*row, *one]
                for row, one in zip(made, views(decoder, files, [[box]] * 2)[1], strict=True)
            ]
        for picture, row in zip(whole, made, strict=True):
            for box, view in zip(boxes + boxes[::5], row, strict=True):
                np.testing.assert_array_equal(view, cut(picture, box), str(box))


def test_many_views_of_one_decode(decoder: NativeDecoder) -> None:
    size = (72, 80)
    corners = [(0, 0), (0, 24), (16, 0), (16, 24), (8, 12)]
    boxes = [(y, x, 56, 56) for y, x in corners] * 2
    flip = np.repeat(np.uint8([0, 1]), 5)
    files = [jpeg(photo(*size, number=n), restart_marker_rows=n % 2) for n in range(5)]
    status, made = views(decoder, files, [boxes] * 5, size=(56, 56), flip=np.tile(flip, (5, 1)))
    assert status == [Status.OK] * 5
    for file, row in zip(files, made, strict=True):
        for box, mirrored, view in zip(boxes, flip, row, strict=True):
            part = cut(decoded(file), box)
            np.testing.assert_array_equal(view, part[:, ::-1] if mirrored else part)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_share_a_batch(threads: int) -> None:
    files = [jpeg(photo(40, 40, n), restart_marker_rows=n % 2) for n in range(40)]
    with NativeDecoder(threads) as decoder:
        for _ in range(5):
            status, made = views(decoder, files, [[(3, 5, 30, 30)]] * 40)
            assert status == [Status.OK] * 40
            for file, [view] in zip(files, made, strict=True):
                np.testing.assert_array_equal(view, cut(decoded(file), (3, 5, 30, 30)))


@pytest.mark.parametrize(
    "every", [pytest.param(10, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.prove)]
)
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_photographs_as_shards_hold_them(ilsvrc500: Path, every: int, threads: int) -> None:
    """Whole, and random crops of 224; with and without restart markers."""
    rng = np.random.default_rng(threads)
    paths = sorted((ilsvrc500 / "train").glob("*/*"))[::every]
    pictures = [to_image(path.read_bytes()).pixels for path in paths]
    files = [encode_jpeg(picture, 95) for picture in pictures]
    files += [jpeg(picture, subsampling="4:2:0", optimize=True) for picture in pictures]
    wanted = [decoded(file) for file in files]
    for isa in ABLE:
        with NativeDecoder(threads, isa=isa) as decoder:
            corners = rng.integers(0, 33, (len(files), 2)).tolist()
            for boxes in [(0, 0, 256, 256)] * len(files), [(y, x, 224, 224) for y, x in corners]:
                status, made = views(decoder, files, [[box] for box in boxes])
                assert status == [Status.OK] * len(files)
                for picture, box, [view] in zip(wanted, boxes, made, strict=True):
                    np.testing.assert_array_equal(view, cut(picture, box))
