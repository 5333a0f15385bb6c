"""Batches by the engine: those of DALI and Numba to the bit; what it refuses, DALI decodes in the
same batch."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from batches import LAYOUTS, assert_same, epoch
from engine_cases import LIBRARY, needs_library, views
from handmade import encode, picture, write_dataset

from gratis import Loader, LoaderConfig
from gratis.dataset import read_index, read_manifest
from gratis.errors import GratisError
from gratis.jpeg_check import well_formed
from gratis.loader.augmentations import ColorJitter
from gratis.loader.decoding import native
from gratis.loader.engine import library
from gratis.loader.engine.decoder import NativeDecoder
from gratis.loader.engine.library import ISA_VARIABLE, ISAS, Status
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.mixing import RandomErasing
from gratis.loader.reading.batch_reader import BatchReader
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.views.draw_mixing import Mix

CASES: dict[str, dict[str, Any]] = {
    "released": {"normalize": "mean-image", "noise": "sqrt", "remainder": "pad"},
    "offset mean": {"normalize": "mean-image", "mean": "offset", "noise": "printed"},
    "imagenet": {},
    "imagenet, noise": {"noise": "sqrt"},
    "own mean": {"normalize": ((0.1, 0.5, 0.9), (0.3, 0.2, 0.7)), "flip": 0.9},
    "grey levels": {"normalize": None},
    "resized": {"area": (0.08, 1.0), "crop": 40},
    "resized, released": {"area": (0.08, 1.0), "normalize": "mean-image", "noise": "sqrt"},
    "resized, bicubic": {"area": (0.08, 1.0), "crop": 40, "interpolation": "bicubic"},
    "resized, bilinear, 2 x 2": {"area": (0.3, 1.0), "crop": 24, "antialias": False},
    "resized, bicubic, 4 x 4": {
        "area": (0.08, 1.0),
        "crop": 24,
        "interpolation": "bicubic",
        "antialias": False,
    },
    "evaluation": {"augment": False},
    "ten views": {"augment": False, "views": 10, "normalize": "mean-image", "remainder": "pad"},
}


def both(root: Path, **options: Any) -> list[Loader]:
    given = {"batch_size": 25, "crop": 48, "threads": 2} | options
    return [
        Loader(root, "train", LoaderConfig(engine=engine, **given)) for engine in ("native", "dali")
    ]


@needs_library
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_batches_are_dali_s_to_the_bit(few_jpeg: Path, name: str, layout: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ours, theirs = both(few_jpeg, layout=layout, dtype=dtype, **CASES[name])
        assert (ours.engine, theirs.engine) == ("native", "dali")
        assert_same(epoch(ours), epoch(theirs))


@needs_library
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nhwc"])
@pytest.mark.parametrize("area", [None, (0.1, 1.0)])
def test_so_are_those_of_bytes(few_jpeg: Path, area: Any, layout: Any) -> None:
    options: dict[str, Any] = {"normalize": None, "dtype": torch.uint8, "layout": layout}
    ours, theirs = both(few_jpeg, area=area, **options)
    assert_same(epoch(ours), epoch(theirs))


CODINGS: list[dict[str, Any]] = [{}, {"subsampling": 0}, {"restart_marker_rows": 1}]


def mixed(tmp_path: Path) -> Path:
    """Every fourth image is progressive, and every seventh has colour at half its width alone:
    neither is the engine's."""
    root = tmp_path / "mixed"
    root.mkdir()
    for name, data in files_of_mixed().items():
        (root / name).write_bytes(data)
    return root


@cache
def files_of_mixed() -> dict[str, bytes]:
    def options(number: int) -> dict[str, Any]:
        return {"progressive": number % 4 == 0, "subsampling": "4:2:2" if number % 7 == 0 else 2}

    images = [picture(number) for number in range(60)]
    with TemporaryDirectory() as folder:
        root = write_dataset(Path(folder) / "mixed", images, options=options)
        return {path.name: path.read_bytes() for path in root.iterdir()}


@needs_library
@pytest.mark.parametrize("name", ["released", "imagenet", "resized", "ten views"])
def test_what_it_refuses_dali_decodes_in_the_same_batch(tmp_path: Path, name: str) -> None:
    ours, theirs = both(mixed(tmp_path), **CASES[name])
    for _ in range(2):
        assert_same(epoch(ours), epoch(theirs))
        refused = len([n for n in range(60) if n % 4 == 0 or n % 7 == 0])
        taken = ours.take_counters()
        assert (taken["native"], taken["fallback"]) == (60 - refused, refused)
        assert theirs.take_counters()["native"] == 0


@needs_library
def test_a_dataset_that_is_none_of_its_own(tmp_path: Path) -> None:
    root = write_dataset(
        tmp_path / "progressive",
        [picture(number) for number in range(30)],
        options=lambda _: {"progressive": True},
    )
    ours, theirs = both(root, batch_size=8)
    assert_same(epoch(ours), epoch(theirs))


def damage(root: Path, sample: int, change: Callable[[bytearray], None]) -> None:
    index = read_index(root, "train")
    path = root / f"train-{index.shard[sample]:05d}.tar"
    with path.open("r+b") as file:
        file.seek(index.offset[sample])
        data = bytearray(file.read(int(index.size[sample])))
        change(data)
        file.seek(index.offset[sample])
        file.write(data)


def in_the_middle(data: bytearray) -> None:
    """Bytes of the scan: libjpeg-turbo decodes on, and warns."""
    begin = data.index(b"\xff\xda") + 400
    data[begin : begin + 40] = bytes(range(40))


@needs_library
def test_damage_that_decodes_is_seen_as_ever(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "rot", [picture(number) for number in range(30)])
    for sample in (3, 11, 12):
        damage(root, sample, in_the_middle)
    ours, theirs = both(root, batch_size=10)
    found = epoch(ours)
    assert_same(found, epoch(theirs))
    sound = write_dataset(tmp_path / "sound", [picture(number) for number in range(30)])
    for batch, clean in zip(found, epoch(both(sound, batch_size=10)[0]), strict=True):
        same = (batch.images == clean.images).flatten(1).all(1)
        assert set(batch.ids[~same].tolist()) <= {3, 11, 12}


@needs_library
@pytest.mark.parametrize("engine", ["native", "dali"])
def test_an_image_of_another_side_is_named(tmp_path: Path, engine: Any) -> None:
    """Larger, so that every crop lies inside it."""
    images = [picture(number) for number in range(20)]
    root = write_dataset(tmp_path / "sides", images, options=lambda _: {"quality": 95})
    larger = encode(picture(5, 80), "jpeg", quality=30)

    def change(data: bytearray) -> None:
        data[:] = larger + bytes(len(data) - len(larger))

    damage(root, 5, change)
    loader = Loader(root, "train", LoaderConfig(batch_size=20, crop=48, engine=engine))
    with pytest.raises(GratisError, match=r"key s_5, offset \d+: cannot be decoded"):
        epoch(loader)


@needs_library
def test_it_accepts_nothing_that_the_check_before_dali_refuses() -> None:
    """Of files with a byte changed, or cut: the engine's word is enough where it decodes."""
    rng = np.random.default_rng(5)
    good = [encode(picture(n), "jpeg", **options) for n, options in enumerate(CODINGS)]
    accepted = 0
    with NativeDecoder() as decoder:
        for number in range(3000):
            data = np.frombuffer(good[number % len(good)], np.uint8).copy()
            place = rng.integers(0, 700 if number % 3 else len(data))
            data[place] = rng.integers(0, 256)
            data = data[: rng.integers(2, len(data))] if number % 10 == 0 else data
            status, _ = views(
                decoder, [data.tobytes()], [[(0, 0, 64, 64)]], shape=np.array([[64, 64]], np.int32)
            )
            if status == [Status.OK]:
                accepted += 1
                assert well_formed(data, 64, 64)
    assert accepted > 500


def test_without_the_library(
    jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "FILE", tmp_path / "none.so")
    library.load.cache_clear()
    native.tell_of_absence.cache_clear()
    try:
        with pytest.raises(GratisError, match=r"engine='native'.*not compiled.*engine='auto'"):
            both(jpeg_dataset)
        config = LoaderConfig(batch_size=25, crop=48)
        with pytest.warns(RuntimeWarning, match="DALI decodes instead"):
            assert Loader(jpeg_dataset, "train", config).engine == "dali"
        assert Loader(jpeg_dataset, "train", config).engine == "dali"  # and says no more
        native.tell_of_absence.cache_clear()
        monkeypatch.setitem(sys.modules, "nvidia.dali", None)
        with pytest.warns(RuntimeWarning, match="Pillow decodes instead"):
            Loader(jpeg_dataset, "train", config).close()
    finally:
        library.load.cache_clear()
        native.tell_of_absence.cache_clear()


@needs_library
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86-64 alone")
@pytest.mark.parametrize("named", ["portable", ""])
def test_without_avx2_dali_is_taken_where_it_is(
    jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """Unless the engine is asked for by name. Without a word: there is nothing to do about it."""
    assert LIBRARY is not None
    slow = "portable" in (named, ISAS[LIBRARY.best_isa])
    monkeypatch.setenv(ISA_VARIABLE, named)

    def chosen(engine: Any) -> str:
        config = LoaderConfig(batch_size=25, crop=48, engine=engine)
        return Loader(jpeg_dataset, "train", config).engine

    assert chosen("auto") == ("dali" if slow else "native")
    assert chosen("native") == "native"
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert chosen("auto") == "native"


def test_who_decodes_where_there_is_nothing_to_choose(raw_dataset: Path) -> None:
    for engine in ("auto", "dali"):
        config = LoaderConfig(batch_size=25, crop=48, engine=engine)
        assert Loader(raw_dataset, "train", config).engine == "dali"
    with pytest.raises(GratisError, match="engine is 'c'"):
        LoaderConfig(engine="c")  # type: ignore[arg-type]


WITHOUT = """
    import sys
    {block}
    from gratis.loader import Loader, LoaderConfig
    import hashlib

    for decoded in sys.argv[2:]:
        for area in (None, (0.1, 1.0)):
            config = LoaderConfig(
                batch_size=25, crop=48, area=area, bad_samples="quarantine", decoded=decoded
            )
            with Loader(sys.argv[1], "train", config) as loader:
                for batch in [*loader, *loader]:
                    print(hashlib.sha256(batch.images.numpy().tobytes()).hexdigest(), batch.ids)
    print([name for name in ("numba", "nvidia.dali") if sys.modules.get(name)])
"""
BLOCK = "sys.modules['nvidia'] = sys.modules['nvidia.dali'] = None"


def run(root: Path, block: str, *decoded: str) -> list[str]:
    program = textwrap.dedent(WITHOUT).format(block=block)
    done = subprocess.run(
        [sys.executable, "-c", program, str(root), *decoded],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@needs_library
@pytest.mark.starts
def test_the_usual_batches_need_neither_numba_nor_dali(jpeg_dataset: Path) -> None:
    assert run(jpeg_dataset, "", "none")[-1] == "[]"


@needs_library
@pytest.mark.starts
def test_without_dali_pillow_decodes_what_the_engine_refuses(tmp_path: Path) -> None:
    root = mixed(tmp_path)
    damage(root, 7, lambda data: data.__setitem__(slice(0, 300), bytes(300)))
    with_dali, without = (run(root, block, "none", "host") for block in ("", BLOCK))
    assert with_dali[:-1] == without[:-1]
    assert (with_dali[-1], without[-1]) == ("['numba', 'nvidia.dali']", "['numba']")


@needs_library
@pytest.mark.parametrize("batch_size", [1, 25])
def test_batches_begin_at_a_line_of_the_cache(few_jpeg: Path, batch_size: int) -> None:
    for loader in both(few_jpeg, batch_size=batch_size):
        assert all(batch.images.data_ptr() % 64 == 0 for batch in loader)


def chosen(root: Path, engine: Any, device: str = "cpu", codec: str = "jpeg", **how: Any) -> str:
    config = LoaderConfig(engine=engine, **how.pop("fields", {}))
    manifest = replace(read_manifest(root), codec=codec)
    return native.choose_engine(config, manifest, torch.device(device), **how)


@needs_library
@pytest.mark.parametrize(
    ("arguments", "engine"),
    [
        (("native",), "native"),
        (("native", "cpu", "raw"), "dali"),  # nothing is decoded
        (("dali",), "dali"),
        (("auto", "cuda"), "dali"),
        (("native", "cuda"), "native"),
        (("native", "cuda", "raw"), "dali"),
    ],
)
def test_who_decodes(jpeg_dataset: Path, arguments: tuple[str, ...], engine: str) -> None:
    assert chosen(jpeg_dataset, *arguments) == engine


@needs_library
def test_who_fills_a_decoded_cache(jpeg_dataset: Path) -> None:
    """On a GPU's host DALI, until it is measured."""
    assert chosen(jpeg_dataset, "native", decoded=True) == "native"
    assert chosen(jpeg_dataset, "native", "cuda", decoded=True) == "dali"


def test_without_the_library_operations_are_an_error_wherever_the_engine_has_them(
    jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any epoch; on a GPU they are torch's."""
    operates: dict[str, Any] = {"operations": (ColorJitter(brightness=0.1),)}
    later: dict[str, Any] = {"schedule": ((0, {}), (3, operates))}
    monkeypatch.setattr(library, "FILE", tmp_path / "none.so")
    library.load.cache_clear()
    try:
        for fields in (operates, later):
            for codec in ("jpeg", "raw"):
                with pytest.raises(
                    GratisError, match="operations are the engine's, and the engine"
                ):
                    chosen(jpeg_dataset, "dali", codec=codec, fields=fields)
            assert chosen(jpeg_dataset, "auto", "cuda", fields=fields) == "dali"
        assert chosen(jpeg_dataset, "dali") == "dali"
    finally:
        library.load.cache_clear()


def test_what_the_engine_mixes_itself(jpeg_dataset: Path) -> None:
    """Neither bytes, which are rounded once, nor what boxes are erased of first."""

    def neighbours(mix: Any, **fields: Any) -> Any:
        plan = Loader(jpeg_dataset, "train", LoaderConfig(crop=48, **fields)).epoch_plan(0)
        return native.neighbours_of(plan, 5, mix, 4)

    for mix in (Mix(0.25, None), Mix(0.75, (1, 2, 3, 4))):
        found = neighbours(mix)
        assert (found.total, found.mixed, found.lam, found.box) == (5, 4, *mix)
        assert neighbours(mix, erasing=RandomErasing(0.1)) is None
        assert neighbours(mix, normalize=None, dtype=torch.uint8) is None
    assert neighbours(None) is None


def test_where_the_files_of_a_batch_begin(jpeg_dataset: Path) -> None:
    loader = Loader(jpeg_dataset, "train", LoaderConfig(batch_size=25, crop=48))
    plan = loader.epoch_plan(0)
    reader = BatchReader(loader.shard_reader(), StageTimer(), Quarantine(0, 101, allowed=False))
    batch = reader.read(plan, np.array([7, 3, 90]), check=False)
    data, size = native.files_of(batch)
    index = read_index(jpeg_dataset, "train")
    assert size.tolist() == index.size[[7, 3, 90]].tolist()
    assert (data.dtype.name, size.dtype.name) == ("uint64", "int64")
    assert data.tolist() == [part.ctypes.data for part in batch.parts]
    reader.shards.close()
