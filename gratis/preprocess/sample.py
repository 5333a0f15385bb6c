"""The sample command: a small dataset drawn here, in the layout of the official ILSVRC2012
archives.

    gratis sample --out sample/source

So a machine without ImageNet runs the reader, shards and training that ImageNet runs. Each picture
depends on the seed and its own number alone, so the archives are the same bytes for any number of
workers."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import multiprocessing as mp
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from gratis.atomic import atomic_write
from gratis.command_line import check_ranges
from gratis.errors import GratisError
from gratis.preprocess.shapes import CLASSES, draw
from gratis.preprocess.sources import matlab
from gratis.preprocess.sources.imagenet import DEVKIT, META, TRAIN, TRUTH, VAL
from gratis.signals import interrupt_held_back

SETTINGS = "sample.json"  # written last: its presence means that the archives are whole
VERSION = 1  # of the drawing: part of the settings
FIELDS = (  # of meta.mat
    "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images"
).split()
GREYSCALE_SHARE = 0.02  # as in ImageNet
QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Draws a sample dataset: 10 classes of shapes and textures, as ILSVRC2012 archives."""

    out: Path = Path("sample/source")
    """Folder for the archives."""
    seed: int = 0
    train_per_class: int = 100
    val_per_class: int = 20
    workers: int | None = None
    """Processes. Default: one per core that this process may use."""

    def __post_init__(self) -> None:
        names = ("train_per_class", "val_per_class", "workers")
        check_ranges(self, dict.fromkeys(names, (1, 100_000)))
        if not 0 <= self.seed < 2**63:
            raise GratisError(f"--seed {self.seed}: between 0 and 2**63 - 1")


DrawAll = Callable[[SampleConfig, list[int]], list[bytes]]


def make_sample(config: SampleConfig, draw_all: DrawAll | None = None) -> None:
    """Draws the archives into config.out, unless they are there already, drawn by the same
    settings. draw_all: makes a JPEG for each label; by default in processes."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "workers")}
    wanted = json.dumps(settings | {"version": VERSION}, indent=1).encode()
    marker = config.out / SETTINGS
    if marker.is_file() and all((config.out / name).is_file() for name in (TRAIN, VAL, DEVKIT)):
        if marker.read_bytes() == wanted:
            print(f"{config.out} is already there")
            return
        raise GratisError(
            f"{config.out} holds a sample of other settings; choose another --out or remove it"
        )
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        for name, content in _archives(config, draw_all or _draw_all).items():
            atomic_write(config.out / name, content)
        atomic_write(marker, wanted)
    except OSError as error:
        raise GratisError(
            f"cannot write to {config.out}: {error.strerror}; choose another --out"
        ) from None
    count = len(CLASSES) * (config.train_per_class + config.val_per_class)
    print(f"{config.out}: {count:,} images of {len(CLASSES)} classes drawn")


def _archives(config: SampleConfig, draw_all: DrawAll) -> dict[str, bytes]:
    """The three archives by name."""
    labels, per_class = range(len(CLASSES)), config.train_per_class
    train = [label for label in labels for _ in range(per_class)]
    val = [label for label in labels for _ in range(config.val_per_class)]
    val = [val[k] for k in np.random.Generator(np.random.Philox(config.seed)).permutation(len(val))]
    pictures = draw_all(config, train + val)
    ids = _ilsvrc_ids(config.seed)
    tars = []
    for label in labels:
        files = enumerate(pictures[label * per_class : (label + 1) * per_class])
        tar = _tar([(f"{wnid(label)}_{k}.JPEG", data) for k, data in files])
        tars.append((f"{wnid(label)}.tar", tar))
    numbered = enumerate(pictures[len(train) :], 1)
    flat = [(f"ILSVRC2012_val_{k:08d}.JPEG", data) for k, data in numbered]
    truth = "".join(f"{ids[label]}\n" for label in val).encode()
    kit = _tar([(META, _meta(ids, per_class)), (TRUTH, truth)])
    return {TRAIN: _tar(tars), VAL: _tar(flat), DEVKIT: gzip.compress(kit, mtime=0)}


def _draw_all(config: SampleConfig, labels: list[int]) -> list[bytes]:
    """A JPEG for each label."""
    jobs = [(config.seed, number, label) for number, label in enumerate(labels)]
    with interrupt_held_back():
        pool = mp.get_context("spawn").Pool(config.workers or len(os.sched_getaffinity(0)))
    with pool:
        drawn = pool.imap(_draw, jobs, chunksize=16)
        bar = tqdm(
            drawn, "drawing", total=len(jobs), unit="img", delay=2.0, leave=False, disable=None
        )
        return list(bar)


def wnid(label: int) -> str:
    return f"n{label + 1:08d}"


def _draw(job: tuple[int, int, int]) -> bytes:
    seed, number, label = job
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    picture = Image.fromarray(draw(label, rng))
    if rng.uniform() < GREYSCALE_SHARE:
        picture = picture.convert("L")
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _ilsvrc_ids(seed: int) -> list[int]:
    """1-based ids by label, in another order than the wnids', as in the official kit."""
    order = np.random.Generator(np.random.Philox(key=[seed, 1 << 32])).permutation(len(CLASSES))
    return [int(k) + 1 for k in order]


def _tar(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _meta(ids: list[int], images: int) -> bytes:
    """meta.mat: the classes by id, then, as in the official kit, an inner node of WordNet."""
    labels = sorted(range(len(ids)), key=lambda label: ids[label])
    rows: list[tuple[matlab.Cell, ...]] = []
    for label in labels:
        words = CLASSES[label][0]
        rows.append((ids[label], wnid(label), words, words, 0, [], 0, images))
    children, inner = sorted(ids), ("n00000000", "shape", "any drawn figure")
    rows.append((len(ids) + 1, *inner, len(ids), children, 1, 0))
    return matlab.write_struct("synsets", [dict(zip(FIELDS, row, strict=True)) for row in rows])
