"""Contract 1: a dataset on disk. What the shards, the manifest, the index and the statistics are,
and how to read them.

    root/
      manifest.json                    written last: its presence means the dataset is complete
      train-00000.tar train-00000.idx  USTAR; per sample `<key>.jpg` or `.ppm`, then `<key>.cls`
      train.index.npz val.index.npz    uncompressed NumPy archives without pickles
      stats.npz                        the same
      rejects.jsonl                    one line per source file that was left out

Needs NumPy alone, so that a reader without torch, DALI or Pillow can use it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import mmap
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.atomic import atomic_path, open_nonblocking, sha256_file, sha256_stream
from gratis.errors import GratisError
from gratis.schema import check_types

FORMAT = 2  # 2: JPEGs have a restart marker at the end of each row of MCUs
READABLE_FORMATS = (FORMAT - 1, FORMAT)
MANIFEST = "manifest.json"
STATS = "stats.npz"
REJECTS = "rejects.jsonl"
# arrays of an index or of statistics that only whole images have, and the one that they have not
OPTIONAL = ("width", "height", "channel_mean", "channel_std", "mean")
EXTENSIONS = {"jpeg": "jpg", "raw": "ppm"}  # codec -> extension of the image member
Shape = Literal["square", "whole"]  # of the images: a central square of one size, or their own
MOST_PIXELS = 100_000_000  # of an image
MOST_ASPECT = 100  # of an image: its longer side by its shorter one
# `shards` writes train-00000.tar, others what they like
SHARD_NAME = re.compile(r"\w[\w.-]{0,200}\.tar", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of samples: its file name in the dataset's folder, and what it must hold. sha256:
    hexadecimal.

    ValueError for a name that may be no plain file's: a manifest may come from a server, and
    readers write files of these names to a cache."""

    name: str
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not SHARD_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no shard's name")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split's shards in order. A sample's id is its row in the index, which runs through the
    shards in this order.

    conversions and rejects count source files by kind ("greyscale", "cmyk", ...; "truncated", ...).
    """

    shards: tuple[Shard, ...]
    index_sha256: str
    conversions: dict[str, int]
    rejects: dict[str, int]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class ImageClass:
    """A class; its label is its position in the manifest, which is the rank of its wnid in sorted
    order.

    ilsvrc_id is the devkit's ILSVRC2012_ID (1-based, another order: spec section 1), None where
    there is no devkit."""

    wnid: str
    words: str
    ilsvrc_id: int | None


def class_words(classes: tuple[ImageClass, ...], label: int) -> str:
    """The first of the class's words; "unlabelled" where there are no classes."""
    return classes[label].words.split(",")[0] if classes else "unlabelled"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset is. Holds no time, host, path or worker count: the same input gives the same
    bytes.

    samples_per_shard is how the plan was cut: the last shard, and those with rejects, hold fewer.
    classes: () where no sample has a label; all are -1 then. shape: of the images. square: all are
    image_size x image_size pixels. whole: each has the size that the index says; image_size is the
    shorter side that they were made with (smaller sources keep theirs unless enlarge is true), or,
    of tars that somebody else wrote, the median one; the longer side is at most max_aspect times
    the shorter one, None: any."""

    format: int
    image_size: int
    codec: str
    quality: int | None
    seed: int
    samples_per_shard: int
    source: str
    tools: dict[str, str]
    classes: tuple[ImageClass, ...]
    splits: dict[str, Split]
    stats_sha256: str
    shape: Shape = "square"
    max_aspect: float | None = None
    enlarge: bool = False

    def to_json(self) -> bytes:
        """The bytes of manifest.json: equal manifests give equal ones. Those of square images say
        nothing of shapes, as before there were others."""
        fields = dataclasses.asdict(self)
        if self.shape == "square":
            del fields["shape"], fields["max_aspect"], fields["enlarge"]
        return (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Raises KeyError, TypeError or ValueError where a field is missing or of another shape."""
        raw: dict[str, Any] = json.loads(text)
        raw["classes"] = tuple(ImageClass(**c) for c in raw["classes"])
        raw["splits"] = {
            name: Split(**(split | {"shards": tuple(Shard(**s) for s in split["shards"])}))
            for name, split in raw["splits"].items()
        }
        manifest = cls(**raw)
        check_types(manifest)
        if manifest.codec not in EXTENSIONS or manifest.image_size < 1:
            raise ValueError(
                f"images of {manifest.image_size} px in codec {shortened(manifest.codec)}"
            )
        return manifest

    @property
    def hash(self) -> str:
        """sha256 of the manifest's bytes: names the dataset in run names, loader states and
        checkpoints."""
        return hashlib.sha256(self.to_json()).hexdigest()


class Index(NamedTuple):
    """One row per sample, in id order, all [samples]: its shard (a position in the split's), the
    image's first byte there and its size in bytes, and its label (a position in the manifest's
    classes; -1 where there are none); where images are whole its width and height in pixels, else
    None."""

    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    label: NDArray[np.int32]
    width: NDArray[np.int32] | None = None
    height: NDArray[np.int32] | None = None

    def sizes(self, manifest: Manifest) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of each image height and width in pixels, int32 [samples]."""
        if self.height is None or self.width is None:
            same = np.broadcast_to(np.int32(manifest.image_size), self.label.shape)
            return same, same
        return self.height, self.width

    def rows(self, which: Any) -> Index:
        """Some of the rows."""
        return Index._make(None if column is None else column[which] for column in self)


class Stats(NamedTuple):
    """Pixel statistics of the training split, RGB, 0-255 units (spec section 2, steps 4 and 5).

    mean float32 [S,S,3], of whole images, which have none, [0,0,3]; eigenvalues float64 [3],
    descending, of the covariance of single pixels; eigenvectors float64 [3,3], column k belonging
    to eigenvalue k, rows R, G, B, each signed so that its component of the largest magnitude is
    positive; of whole images channel_mean and channel_std float64 [3], over all their pixels."""

    mean: NDArray[np.float32]
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]
    num_images: int
    channel_mean: NDArray[np.float64] | None = None
    channel_std: NDArray[np.float64] | None = None

    @property
    def channels(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel over all pixels, float64 [3], of images of
        either shape."""
        if self.channel_mean is not None and self.channel_std is not None:
            return self.channel_mean, self.channel_std
        variance = (self.eigenvectors**2 * self.eigenvalues).sum(axis=1)
        return self.mean.mean(axis=(0, 1), dtype=np.float64), np.sqrt(variance)


def is_decodable(image: NDArray[np.uint8], codec: str, height: int, width: int) -> bool:
    """Whether the loader hands these bytes uint8 [bytes] of a sample to its decoder: a PPM of that
    size in pixels with the header that this project writes, or a JPEG that the decoder will not
    give up on. What `index` takes and `verify` accepts is what this says."""
    if codec == "raw":
        header = b"P6\n%d %d\n255\n" % (width, height)
        whole = len(image) == len(header) + 3 * height * width
        return whole and image[: len(header)].tobytes() == header
    from gratis.jpeg_check import well_formed  # with Numba: its import takes 0.4 s

    return well_formed(image, height, width)


def index_name(split: str) -> str:
    return f"{split}.index.npz"


def read_manifest(root: Path) -> Manifest:
    """The dataset's manifest; GratisError if `root` holds none, or one of a format that this
    version does not read."""
    path = root / MANIFEST
    try:
        with open(path, "rb", opener=open_nonblocking) as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        way_out = f"make one with `gratis shards --src ... --out {root}`"
        raise GratisError(f"{root} is no dataset: it has no {MANIFEST}; {way_out}") from None
    except OSError as error:  # a folder of that name, no permission
        raise GratisError(
            f"{path} cannot be read ({error.strerror}); verify the copy, or its permissions"
        ) from None
    return parse_manifest(text, path)


def parse_manifest(text: bytes, path: Path | str) -> Manifest:
    """A manifest from the bytes of its file; `path` is for the GratisError if it is none, or of a
    format that this version does not read."""
    try:
        version = json.loads(text)["format"]
    except RecursionError:
        raise _damaged(path, "is damaged (brackets within brackets)") from None
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "is not a manifest") from None
    if version not in READABLE_FORMATS:
        readable = " and ".join(map(str, READABLE_FORMATS))
        raise GratisError(
            f"{path} has format {version}; this version reads {readable}: make the shards again"
        )
    try:
        return Manifest.from_json(text)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"is damaged ({error})") from None


def require_split(root: Path | str, manifest: Manifest, split: str) -> Split:
    """The split's entry; GratisError naming those that exist if it does not."""
    if not isinstance(split, str) or split not in manifest.splits:
        raise GratisError(
            f"{root} has no split {split!r}; it has {', '.join(sorted(manifest.splits))}"
        )
    return manifest.splits[split]


def require_square(root: Path | str, manifest: Manifest, reader: str) -> None:
    """GratisError that names who reads the dataset, unless its images are square."""
    if manifest.shape != "square":
        way_out = "make shards with --shape square"
        raise GratisError(
            f"{reader} needs square images of one size, and those of {root} keep their shape: "
            f"{way_out}"
        )


def write_index(root: Path, split: str, index: Index) -> str:
    """Writes the split's index, returns its sha256."""
    return _write_npz(root / index_name(split), index._asdict())


def read_index(root: Path, split: str, sha256: str | None = None) -> Index:
    """The split's index; GratisError if its file is missing, is no index, or has another sha256
    than this one of the manifest: an index of other shards would give samples wrong labels.

    The arrays lie in the mapped file, for reading: the processes of a machine share them."""
    path = root / index_name(split)
    index = Index(**_read_npz(path, Index._fields, sha256, OPTIONAL, mapped=True))
    columns = [column for column in index if column is not None]
    sized = (index.width is None) == (index.height is None)
    if not sized or any(
        rows.shape != (index.label.size,) or rows.dtype.kind != "i" for rows in columns
    ):
        raise _damaged(path, "is damaged (not rows of whole numbers)")
    return index


def write_stats(root: Path, stats: Stats) -> str:
    """Writes the statistics, returns the file's sha256."""
    arrays = stats._asdict()
    if stats.channel_mean is not None:  # of whole images, which have no mean image
        del arrays["mean"]
    return _write_npz(root / STATS, arrays)


def read_stats(root: Path, sha256: str | None = None) -> Stats:
    """The training split's statistics; GratisError if their file is missing, holds something else,
    or has another sha256 than this one of the manifest."""
    path = root / STATS
    arrays = _read_npz(path, Stats._fields, sha256, OPTIONAL)
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "eigenvalues": ("f", (3,)),
        "eigenvectors": ("f", (3, 3)),
        "num_images": ("i", ()),
    }
    if "channel_mean" in arrays:
        expected |= {"channel_mean": ("f", (3,)), "channel_std": ("f", (3,))}
        arrays.setdefault("mean", np.empty((0, 0, 3), np.float32))
    side = arrays["mean"].shape[:1] if "mean" in arrays else ()
    expected["mean"] = ("f", (*side, *side, 3))
    for name, (kind, shape) in expected.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype.kind != kind:
            found = "missing" if array is None else f"{array.dtype} {array.shape}"
            raise _damaged(path, f"is damaged ({name} is {found})")
    return Stats(**(arrays | {"num_images": int(arrays["num_images"])}))


def _damaged(path: Path | str, what: str) -> GratisError:
    return GratisError(f"{path} {what}; make the shards again, or verify the copy")


def _write_npz(path: Path, arrays: dict[str, Any]) -> str:
    # np.savez stamps its members with the same constant date, so equal arrays give equal bytes
    present = {name: array for name, array in arrays.items() if array is not None}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **present)
    return sha256_file(path)


def _array_in(whole: mmap.mmap, member: zipfile.ZipInfo) -> NDArray[Any]:
    """A member of a mapped, uncompressed NumPy archive, where it lies. Raises ValueError."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    lengths = struct.unpack_from("<HH", whole, member.header_offset + 26)  # of name and extra field
    start = member.header_offset + 30 + sum(lengths)
    header = io.BytesIO(whole[start : start + min(member.file_size, 1 << 16)])
    version = np.lib.format.read_magic(header)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(header)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    values = math.prod(shape)
    if not values:
        return np.empty(shape, dtype)
    return np.frombuffer(whole, dtype, values, start + header.tell()).reshape(shape)


def _read_npz(
    path: Path,
    fields: tuple[str, ...],
    sha256: str | None,
    optional: tuple[str, ...],
    *,
    mapped: bool = False,
) -> dict[str, Any]:
    damage = (ValueError, KeyError, TypeError, OSError, EOFError, RuntimeError, struct.error)
    try:
        # opened once, for the sum and for NumPy, which leaves a damaged file open
        with open(path, "rb", opener=open_nonblocking) as file:
            if sha256 is not None and sha256_stream(file) != sha256:
                way_out = "copy the dataset again, or make the shards again"
                raise GratisError(
                    f"{path} is not the one the manifest names (its sha256 differs); {way_out}"
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                wanted = [name for name in fields if name in arrays or name not in optional]
                if not mapped:
                    return {name: arrays[name] for name in wanted}
                if sha256 is None and (bad := arrays.zip.testzip()):
                    raise ValueError(f"the sum of {bad} differs")
                members = {name: arrays.zip.getinfo(f"{name}.npy") for name in wanted}
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # until no array is left
            return {name: _array_in(whole, member) for name, member in members.items()}
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None
    except (*damage, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, f"is damaged ({error})") from None
