"""The plan of an epoch: who comes when, and how each sample is augmented. Pure functions of seed,
epoch and sample id.

    (seed, epoch)              -> order of all samples
    (seed, epoch, sample ids)  -> crop offset, mirror, three normals
    (order, step, rank)        -> ids of one rank's rows

The generator is our own Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", SC 2011), since NumPy does not promise its streams across versions. The counter holds (id,
epoch, purpose), the key the seed, so every number can be had alone and in any order: batch size,
ranks, threads and resumption cannot change it.

Cost of an order, one core of a 2.6 GHz EPYC with AVX-512, shared; CPU seconds, n = 1. In brackets
that of `window`:

| samples              | CPU seconds | memory          |
|----------------------|-------------|-----------------|
| 1,281,167 (ILSVRC)   | 0.05 (0.05) | 12 MB (20 MB)   |
| 14 million           | 0.3 (0.9)   | 110 MB (215 MB) |
| 200 million          | 8 (15)      | 1.5 GB (3.1 GB) |
| a billion, by these  | 42 (73)     | 8 GB (16 GB)    |

Training draws a large order in parts (`order_parts`), and maps the index from its file, so that
neither is held by every rank. Python and NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Ids = NDArray[np.int64]

PAD = -1  # the id of a row that stands for no sample
# purposes: one independent stream each
ORDER, SHARDS, CROP, MIRROR, COLOUR, STAND_IN, BOX, PLACE = range(8)
MIX, GAMMA, OTHER_GAMMA, MIX_BOX, ERASE, ERASE_BOX, ERASE_COLOUR, ERASE_NOISE = range(8, 16)
OPERATION, OPERATION_GAMMA = 16, 17
# of a draw id, from which on the copy's number stands, below 2**15; ids are below 2**48
COPY_BIT = 48
TRIES = 10  # to draw a part that fits inside the image
# ids drawn at a time while ordering: the temporaries stay in the cache, 3 times quicker
CHUNK = 1 << 14
PARTS = 16  # that an order is drawn in, at most


class Draws(NamedTuple):
    """Of n views: the corner int64 [n] of what is cut out of the image, mirror bool [n], normals
    float64 [n,3]."""

    y: Ids
    x: Ids
    flip: NDArray[np.bool_]
    normals: NDArray[np.float64]


def copies(ids: Ids, numbers: Ids | int) -> Ids:
    """Draw ids: copy `number` of a sample is drawn like a sample of its own, and copy 0 like the
    sample itself. Random numbers take them in the place of ids."""
    drawn: Ids = ids | np.asarray(numbers, np.int64) << COPY_BIT
    return drawn


def samples_of(draw_ids: Ids) -> Ids:
    """The ids of the samples that draw ids are of; PAD stays."""
    return np.where(draw_ids < 0, draw_ids, draw_ids & (1 << COPY_BIT) - 1)


def of_views(draw_ids: Ids, views: int) -> Ids:
    """Draw ids of each one's views, int64 [n*views], those of one adjacent."""
    if views == 1:
        return draw_ids
    first = (draw_ids >> COPY_BIT) * views
    return copies(
        np.repeat(samples_of(draw_ids), views), (first[:, None] + np.arange(views)).ravel()
    )


def repeated(order: Ids, repeats: int, batch_size: int) -> Ids:
    """The order with each sample `repeats` times, as draw ids int64 [n*repeats].

    A sample's copies follow each other, so that they come into the same batch (but for one at its
    end), as repeated augmentation means it (Hoffer et al., "Augment your batch", 2020). Within a
    batch all first copies come first, then all second ones: so ranks, which take consecutive parts,
    get different copies, and no sample stands beside itself."""
    every = every_copy(order, repeats)
    for first in range(0, len(every), batch_size):
        every[first : first + batch_size] = by_copy(every[first : first + batch_size])
    return every


def every_copy(ids: Ids, repeats: int) -> Ids:
    """Each sample `repeats` times, its copies adjacent, as draw ids int64 [n*repeats]."""
    return copies(np.repeat(ids, repeats), np.tile(np.arange(repeats), len(ids)))


def by_copy(draw_ids: Ids) -> Ids:
    """All first copies, then all second ones, and so on."""
    return draw_ids[np.argsort(draw_ids >> COPY_BIT, kind="stable")]


def philox(counter: tuple[U64, U64, U64, U64], key: tuple[int, int]) -> tuple[U64, U64, U64, U64]:
    """Philox4x32-10: four random 32-bit words, each in a uint64, for every counter of four such
    words."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(
    seed: int, epoch: int, ids: Ids, purpose: int | Ids, attempt: int | Ids = 0
) -> tuple[U64, U64, U64, U64]:
    """Four random 32-bit words per id, each in a uint64 [n]. purpose, and attempt, below 2**24: of
    all or of each."""
    number = ids.astype(np.uint64)
    low, high = number & np.uint64(0xFFFFFFFF), number >> np.uint64(32)
    epochs, last = np.full_like(number, epoch), np.full_like(number, purpose | attempt << 8)
    return philox((low, high, epochs, last), (seed & 0xFFFFFFFF, seed >> 32))


def uniforms(
    seed: int, epoch: int, ids: Ids, purpose: int | Ids, attempt: int = 0
) -> NDArray[np.float64]:
    """Four independent uniform numbers in (0, 1) per id, float64 [4,n]."""
    return (np.stack(words(seed, epoch, ids, purpose, attempt)).astype(np.float64) + 0.5) / 2**32


def below(bound: int | Ids, seed: int, epoch: int, ids: Ids, purpose: int) -> tuple[Ids, Ids]:
    """Two independent uniform integers in [0, bound) per id, int64 [n]. bound: of both, or int64
    [2,n].

    Lemire's method: the upper half of word * bound, where the few words that would favour some
    results are drawn again. For 33 crop offsets that happens once in 2**30 draws."""
    bounds = np.broadcast_to(np.asarray(bound, np.uint64), (2, len(ids)))
    biased = np.uint64(2**32) % bounds
    results = np.empty((2, len(ids)), np.int64)
    todo, attempt = np.arange(len(ids)), 0
    while len(todo):
        drawn = np.stack(words(seed, epoch, ids[todo], purpose, attempt)[:2])
        products = drawn * bounds[:, todo]
        results[:, todo] = products >> np.uint64(32)
        again = (products & np.uint64(0xFFFFFFFF)) < biased[:, todo]
        todo, attempt = todo[again.any(axis=0)], attempt + 1
    return results[0], results[1]


def normals(seed: int, epoch: int, ids: Ids) -> NDArray[np.float64]:
    """Three independent standard normals per id, float64 [n,3], at most 6.8: Box-Muller on 32-bit
    uniforms."""
    uniform = uniforms(seed, epoch, ids, COLOUR)
    radius, angle = np.sqrt(-2 * np.log(uniform[:2])), 2 * np.pi * uniform[2:]
    both = radius * np.cos(angle)
    return np.stack([both[0], radius[0] * np.sin(angle[0]), both[1]], axis=1)


def draws(  # noqa: PLR0917
    seed: int,
    epoch: int,
    ids: Ids,
    positions: int | Ids,
    chunks: Ids | None = None,
    flip: float = 0.5,
) -> Draws:
    """Random augmentation; `positions` is the number of offsets along each axis, usually image size
    - crop + 1, or int64 [2,n]: along y and x of each; flip: the probability of the mirror.

    chunks [n]: samples of the same number there share one offset and one mirror; None: each sample
    has its own."""
    sharers = ids if chunks is None else chunks
    y, x = below(positions, seed, epoch, sharers, CROP)
    return Draws(y, x, mirrors(seed, epoch, sharers, flip), normals(seed, epoch, ids))


def mirrors(seed: int, epoch: int, ids: Ids, probability: float) -> NDArray[np.bool_]:
    """Who is mirrored, bool [n]: exactly nobody at 0 and everybody at 1; who is at one probability
    is so at every higher one.

    The lowest bit of the word counts most: at 0.5 it decides alone."""
    word = words(seed, epoch, ids, MIRROR)[0]
    number = word >> np.uint64(1) | (word & np.uint64(1)) << np.uint64(31)
    mirrored: NDArray[np.bool_] = number >= (1 - probability) * 2**32
    return mirrored


def boxes(  # noqa: PLR0917
    seed: int,
    epoch: int,
    ids: Ids,
    size: int | Ids,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Ids, Ids, Ids, Ids]:
    """Random parts of images: y, x, height and width int64 [n], in pixels, all of them inside.
    size: of square images, or int64 [2,n]: height and width of each.

    As torchvision's RandomResizedCrop: area uniform, logarithm of width / height uniform; what does
    not fit is drawn again, ten times at most; then the largest central part whose ratio is within
    the range."""
    low, high = np.log(ratio[0]), np.log(ratio[1])
    most_h, most_w = np.broadcast_to(np.asarray(size, np.int64), (2, len(ids)))
    nearest = np.clip(most_w / most_h, *ratio)  # the ratio where nothing fits
    height = np.rint(most_w / nearest).astype(np.int64).clip(1, most_h)
    width = np.rint(most_h * nearest).astype(np.int64).clip(1, most_w)
    fits, todo = np.zeros(len(ids), np.bool_), np.arange(len(ids))
    for attempt in range(TRIES):
        uniform = uniforms(seed, epoch, ids[todo], BOX, attempt)
        tall, wide = most_h[todo], most_w[todo]
        pixels = (area[0] + (area[1] - area[0]) * uniform[0]) * tall * wide
        shape = np.exp(low + (high - low) * uniform[1])
        w = np.rint(np.sqrt(pixels * shape)).astype(np.int64)
        h = np.rint(np.sqrt(pixels / shape)).astype(np.int64)
        good = (w >= 1) & (h >= 1) & (w <= wide) & (h <= tall)
        height[todo[good]], width[todo[good]], fits[todo[good]] = h[good], w[good], True
        todo = todo[~good]
    place = uniforms(seed, epoch, ids, PLACE)
    y = np.where(fits, np.floor(place[0] * (most_h - height + 1)), (most_h - height) // 2)
    x = np.where(fits, np.floor(place[1] * (most_w - width + 1)), (most_w - width) // 2)
    return y.astype(np.int64), x.astype(np.int64), height, width


def stand_in(seed: int, epoch: int, sample: int, count: int, attempt: int) -> int:
    """Who takes the place of a sample that cannot be decoded: uniform in [0, count); another on
    each attempt."""
    word = words(seed, epoch, np.array([sample]), STAND_IN, attempt)
    return int((word[0][0] << np.uint64(32) | word[1][0]) % np.uint64(count))


def ten_views(positions: int) -> Draws:
    """The views of an evaluation: four corners and the centre, then their mirrors
    (specification, section 2); no colour noise."""
    last, centre = positions - 1, (positions - 1) // 2
    y, x = np.array([0, 0, centre, last, last] * 2), np.array([0, last, centre, 0, last] * 2)
    return Draws(y, x, np.arange(10) >= 5, np.zeros((10, 3)))


def centre_view(positions: int) -> Draws:
    """The one view of an evaluation."""
    centre = np.array([(positions - 1) // 2])
    return Draws(centre, centre, np.array([False]), np.zeros((1, 3)))


def order(seed: int, epoch: int, count: int) -> Ids:
    """The epoch's permutation of ids 0..count-1: a sort by 64-bit keys, of which the last bits are
    the id itself.

    So the result is unique whatever the sort, and 8 bytes per sample are all it needs. The
    remaining bits are random: 43 for 1.3 million samples, 34 for a billion (where one sample in 17
    shares them with another and falls behind it by id: no matter for a shuffle)."""
    return _sorted_by_key(seed, epoch, count, ORDER)


def window_order(seed: int, epoch: int, shard: NDArray[np.int32], window: int) -> Ids:
    """As `order`, but shards are permuted, and samples only within each run of `window` shards.

    shard [count] is each id's shard, ascending. Reads then touch `window` files at a time.

    How well it shuffles, on ILSVRC's 1,281,167 samples of 1,000 classes in shards of 1,000 and
    batches of 256. Mix: different classes in a batch, as a share of what a random batch has (226).
    Again: how often two samples of one batch meet in one batch of the next epoch, as a multiple of
    chance.

    | order     | mix, classes sorted | mix, shards as `preprocess` writes them | again |
    |-----------|---------------------|------------------------------------------|-------|
    | full      | 0.9997              | 1.000                                    | 1     |
    | window 64 | 0.39                | 1.000                                    | 3     |
    | window 8  | 0.06                | 1.000                                    | 21    |
    | window 1  | 0.01                | 1.000                                    | 1,280 |

    Since `preprocess` shuffles before it cuts shards, every batch of theirs is well mixed; but
    neighbours meet again, so choose the largest window that the disk bears. With shards from
    elsewhere, sorted by class, use `full`."""
    return np.concatenate([*window_parts(seed, epoch, shard, window)])


def order_parts(seed: int, epoch: int, count: int, first: int = 0) -> Iterator[Ids]:
    """`order` from place `first` on, in at most PARTS parts of an equal share of the keys each, so
    that of a large dataset no more than a part is ever in memory. Each part draws all keys again,
    which takes less than a thousandth of decoding their samples."""
    parts = min(PARTS, 1 << (count >> 21).bit_length())
    if first:
        sizes = sum(
            (
                np.bincount(_part_of(keys, parts), minlength=parts)
                for keys in _key_chunks(seed, epoch, count, ORDER)
            ),
            np.zeros(parts, np.int64),
        )
    for part in range(parts):
        if first and first >= sizes[part]:
            first -= int(sizes[part])
            continue
        chunks = _key_chunks(seed, epoch, count, ORDER)
        keys = np.concatenate([chunk[_part_of(chunk, parts) == part] for chunk in chunks])
        keys.sort()
        keys &= _mask(count)
        yield keys.view(np.int64)[first:]
        first = 0


def window_parts(
    seed: int, epoch: int, shard: NDArray[np.int32], window: int, first: int = 0
) -> Iterator[Ids]:
    """`window_order` from place `first` on, a window at a time."""
    count = len(shard)
    sizes = np.zeros(int(shard[-1]) + 1, np.int64)
    for begin in range(0, count, CHUNK):
        sizes += np.bincount(shard[begin : begin + CHUNK], minlength=len(sizes))
    ends = np.cumsum(sizes)
    shards = _sorted_by_key(seed, epoch, len(sizes), SHARDS)
    for number in range(0, len(shards), window):
        opened = shards[number : number + window]
        if first >= (size := int(sizes[opened].sum())):
            first -= size
            continue
        ranges = [(int(ends[k] - sizes[k]), int(ends[k])) for k in opened.tolist()]
        keys = np.concatenate([_keys(seed, epoch, count, ORDER, *ids) for ids in ranges])
        keys.sort()
        keys &= _mask(count)
        yield keys.view(np.int64)[first:]
        first = 0


def num_steps(count: int, batch_size: int, remainder: str) -> int:
    """Batches in an epoch, on every rank."""
    return count // batch_size if remainder == "drop" else -(-count // batch_size)


def rows(sequence: Ids, step: int, batch_size: int, rank: int, world_size: int) -> Ids:
    """Ids of one rank's rows of one global batch, int64 [batch_size / world_size]; PAD behind the
    epoch's end.

    Ranks take consecutive parts, so that the batches of all ranks in rank order are the global
    batch."""
    size = batch_size // world_size
    first = step * batch_size + rank * size
    part = sequence[first : first + size]
    return np.concatenate([part, np.full(size - len(part), PAD, np.int64)])


def short_rows(sequence: Ids, step: int, batch_size: int, rank: int, world_size: int) -> Ids:
    """As `rows`, but without padding: the ranks share what the batch has as evenly as they can. The
    first have one more where it does not divide."""
    batch = sequence[step * batch_size : (step + 1) * batch_size]
    bounds = [-(-len(batch) * number // world_size) for number in (rank, rank + 1)]
    return batch[bounds[0] : bounds[1]]


def _sorted_by_key(seed: int, epoch: int, count: int, purpose: int) -> Ids:
    keys = _keys(seed, epoch, count, purpose)
    keys.sort()
    keys &= _mask(count)
    return keys.view(np.int64)


def _keys(  # noqa: PLR0917
    seed: int, epoch: int, count: int, purpose: int, begin: int = 0, end: int | None = None
) -> U64:
    """Of each id from begin to end (all `count` of them), uint64 [ids]: random bits, and in the
    last ones the id itself."""
    end = count if end is None else end
    keys = np.empty(max(end - begin, 0), np.uint64)
    done = 0
    for part in _key_chunks(seed, epoch, count, purpose, begin, end):
        keys[done : done + len(part)] = part
        done += len(part)
    return keys


def _key_chunks(  # noqa: PLR0917
    seed: int, epoch: int, count: int, purpose: int, begin: int = 0, end: int | None = None
) -> Iterator[U64]:
    """`_keys` in parts of 2 * CHUNK ids at most."""
    mask, end = _mask(count), count if end is None else end
    # a block of four words makes the keys of two ids
    for first in range(begin & ~1, end, 2 * CHUNK):
        last = min(first + 2 * CHUNK, end + 1 & ~1)
        part = np.empty(last - first, np.uint64)
        w = words(seed, epoch, np.arange(first // 2, last // 2), purpose)
        part[0::2], part[1::2] = w[0] << np.uint64(32) | w[1], w[2] << np.uint64(32) | w[3]
        part &= ~mask
        part |= np.arange(first, last, dtype=np.uint64)
        yield part[max(begin - first, 0) : end - first]


def _part_of(keys: U64, parts: int) -> Ids:
    """Which of so many equal shares of all keys each is in; parts: a power of two."""
    return (keys >> np.uint64(32) >> np.uint64(33 - parts.bit_length())).astype(np.int64)


def _mask(count: int) -> np.uint64:
    """The bits of a key that hold an id below count."""
    return np.uint64((1 << max(count - 1, 1).bit_length()) - 1)
