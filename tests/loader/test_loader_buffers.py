"""A batch is safe: what still refers to its memory never sees another batch's pixels; and a loop
that lets each batch go for the next allocates nothing."""

from __future__ import annotations

import gc
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import epoch

from gratis.loader import Batch, Loader, LoaderConfig
from gratis.loader.pipeline.buffer_pool import NEW, BufferPool

CROP = 48
NBYTES = 12 * 3 * CROP**2 * 4  # of a batch's images

Keep = Callable[[torch.Tensor], Any]  # what a user keeps of the images, or a function that reads it


def make(root: Path, **options: Any) -> Loader:
    config = LoaderConfig(**({"batch_size": 12, "crop": CROP, "threads": 1} | options))
    return Loader(root, "train", config)


def closure(images: torch.Tensor) -> Callable[[], Any]:
    def read() -> Any:
        return images.numpy()

    return read


def saved_by_autograd(images: torch.Tensor) -> Callable[[], Any]:
    weight = torch.ones((), requires_grad=True)
    total = (weight * images).sum()  # its backward needs the images

    def read() -> Any:
        return torch.autograd.grad(total, weight, retain_graph=True)[0].numpy()

    return read


def in_a_cycle(images: torch.Tensor) -> Callable[[], Any]:
    cycle: list[Any] = [images]
    cycle.append(cycle)

    def read() -> Any:
        return cycle[0].numpy()

    return read


KEEPS: dict[str, Keep] = {
    "tensor": lambda images: images,
    "detached": lambda images: images.detach(),
    "one image": lambda images: images[-1],
    "one pixel": lambda images: images[2, 1, 5, 7],
    "transposed": lambda images: images.permute(0, 2, 3, 1),
    "another type": lambda images: images.view(-1).view(torch.int32),
    "parameter": lambda images: torch.nn.Parameter(images, requires_grad=False),
    "storage": lambda images: images.untyped_storage(),
    "numpy": lambda images: images.numpy(),
    "slice of numpy": lambda images: images.numpy()[3:5, ::-1, 7],
    "numpy of a slice": lambda images: images[4:].numpy().reshape(-1),
    "memoryview": lambda images: memoryview(images.numpy()),
    "dlpack": np.from_dlpack,
    "dlpack and back": lambda images: torch.from_dlpack(np.from_dlpack(images[1:])),
    "capsule": lambda images: torch.from_dlpack(torch.utils.dlpack.to_dlpack(images)),
    "closure": closure,
    "autograd": saved_by_autograd,
    "cycle": in_a_cycle,
}


def read(kept: Any) -> Any:
    """What is there now, copied."""
    if isinstance(kept, torch.UntypedStorage):
        return np.array(kept[:99])
    return np.asarray(kept() if callable(kept) else kept).copy()


@cache
def usual_images(root: Path) -> list[torch.Tensor]:
    """Of two epochs, copied."""
    with make(root) as plain:
        return [batch.images for batch in epoch(plain) + epoch(plain)]


def assert_kept(root: Path, keep: Keep, **options: Any) -> None:
    """Over two epochs, of which the batches themselves are let go."""
    if not options:
        wanted = [read(keep(images)) for images in usual_images(root)]
    else:
        with make(root, **options) as plain:
            wanted = [read(keep(batch.images)) for batch in epoch(plain) + epoch(plain)]
    with make(root, **options) as loader:
        kept = [keep(batch.images) for _ in range(2) for batch in loader]
        for one, value in zip(kept, wanted, strict=True):
            np.testing.assert_array_equal(read(one), value)
    for one, value in zip(kept, wanted, strict=True):  # after the end too
        np.testing.assert_array_equal(read(one), value)


@pytest.mark.parametrize("name", KEEPS)
def test_what_refers_to_a_batch_keeps_its_pixels(few_jpeg: Path, name: str) -> None:
    assert_kept(few_jpeg, KEEPS[name])


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "channels_last"},
        {"layout": "nhwc", "dtype": torch.float16},
        {"dtype": torch.uint8, "normalize": None},
        {"decoded": "host"},
        {"remainder": "pad"},
        {"augment": False, "views": 10},
        {"prefetch": 3},
        {"area": (0.2, 1.0)},
    ],
)
def test_in_every_form(few_jpeg: Path, options: dict[str, Any]) -> None:
    assert_kept(few_jpeg, lambda images: images.numpy()[1:], **options)


@pytest.mark.prove
@pytest.mark.parametrize("way", ["device_put", "dlpack"])
def test_jax_arrays_keep_their_pixels(jpeg_dataset: Path, way: str) -> None:
    """On a CPU they share memory that begins at a multiple of 64 bytes, and copy other memory."""
    jax = pytest.importorskip("jax", reason="needs jax")
    with make(jpeg_dataset) as plain:
        wanted = [batch.images.flatten().numpy() for batch in epoch(plain) + epoch(plain)]
    kept, shared = [], 0
    with make(jpeg_dataset) as loader:
        for batch in (batch for _ in range(2) for batch in loader):
            flat = batch.images.view(-1)[-batch.images.data_ptr() % 64 // 4 :]
            dlpack = way == "dlpack"
            array = jax.dlpack.from_dlpack(flat) if dlpack else jax.device_put(flat.numpy())
            shared += array.unsafe_buffer_pointer() == flat.data_ptr()
            kept.append(array)
    assert shared
    for array, whole in zip(kept, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(array), whole[-len(array) :])


def test_a_list_of_a_loader_is_its_epoch(few_jpeg: Path) -> None:
    """Images, labels and ids belong together, as in gradient accumulation."""
    wanted = epoch(make(few_jpeg))
    for one, other in zip(list(make(few_jpeg)), wanted, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.labels, one.ids % 7)


@pytest.mark.parametrize("prefetch", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
def test_whoever_keeps_whatever_for_as_long(jpeg_dataset: Path, prefetch: int, seed: int) -> None:
    """Batches are kept and let go by chance, over the ends of epochs."""
    plain, loader = make(jpeg_dataset), make(jpeg_dataset, prefetch=prefetch)
    chance, kept = np.random.default_rng(seed), []
    for _ in range(4):
        for batch, copy in zip(loader, epoch(plain), strict=True):
            kept.append((batch, copy))
            chance.shuffle(kept)  # type: ignore[arg-type]
            while kept and chance.random() < 0.45:
                kept.pop()
            for one, other in kept:
                assert torch.equal(one.images, other.images)
                assert torch.equal(one.labels, other.labels)


def for_loop(batches: Iterable[Batch]) -> None:
    for images, _, _ in batches:
        images.sum()


def by_name(batches: Iterable[Batch]) -> None:
    for batch in batches:
        images = batch.images
        flat = images.flatten(1)
        flat.sum()


def enumerated(batches: Iterable[Batch]) -> None:
    for _number, (_images, _labels, _ids) in enumerate(batches):
        pass


def through_generators(batches: Iterable[Batch]) -> None:
    def once_more(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            given = item  # as a progress bar has it
            yield given

    for_loop(once_more(once_more(batches)))


def by_next(batches: Iterable[Batch]) -> None:
    iterator = iter(batches)
    while (batch := next(iterator, None)) is not None:
        batch.images.sum()


def trained(batches: Iterable[Batch]) -> None:
    network = torch.nn.Conv2d(3, 2, 3)
    for images, labels, _ in batches:
        loss = torch.nn.functional.cross_entropy(network(images).mean((2, 3)), labels % 2)
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("prefetch", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "loop", [for_loop, by_name, enumerated, through_generators, by_next, trained]
)
def test_the_usual_loop_allocates_no_buffer_after_its_first(
    few_jpeg: Path, loop: Callable[[Iterable[Batch]], None], prefetch: int
) -> None:
    """prefetch + 1 buffers in turn, over epochs; and nothing else as large is allocated."""
    seen: set[int] = set()

    def watched() -> Iterator[Batch]:
        iterator = iter(loader)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            seen.add(batch.images.data_ptr())
            yield batch
            del batch

    with make(few_jpeg, prefetch=prefetch) as loader:
        for _ in range(3):
            loop(watched())
        assert len(seen) == prefetch + 1
        tracemalloc.start()
        try:
            loop(loader)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            loop(loader)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak - before < NBYTES


def test_who_keeps_the_batch_before_has_two_buffers_more(few_jpeg: Path) -> None:
    """And not one more for each batch."""
    seen, before = set(), None
    with make(few_jpeg) as loader:
        for _ in range(3):
            for batch in loader:
                seen.add(batch.images.data_ptr())
                assert before is None or before.images.data_ptr() != batch.images.data_ptr()
                before = batch
    assert len(seen) <= 4


@pytest.mark.parametrize("prefetch", [1, 2, 4])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_who_keeps_batches_for_good_allocates_nothing_for_the_others(
    prefetch: int, kept: int
) -> None:
    """Whether the loader's thread, too, has let a batch go by the time the next one is wanted
    changes from step to step."""
    pool, allocated = BufferPool(prefetch), []

    def write() -> torch.Tensor:
        memory = pool.get()
        assert memory is not None
        if not len(memory):
            memory = np.empty(8, np.uint8)
            allocated.append(memory.ctypes.data)
        return pool.lend(memory)

    def take(let_go: list[torch.Tensor], *, late: bool) -> torch.Tensor:
        if not late:
            let_go.clear()
        pool.want()
        while pool._free.qsize():
            ready.append(write())
        batch = ready.pop(0)
        pool.taken(on_device=False)
        let_go.clear()
        return batch

    ready: list[torch.Tensor] = []
    held = [take([], late=False) for _ in range(kept)]
    before: list[torch.Tensor] = []
    for step in range(40):
        if step == 8:
            allocated.clear()
        batch = take(before, late=step % 3 == 0)
        before.append(batch)
        del batch
    assert len(held) == kept
    assert not allocated


@pytest.mark.parametrize("kept", [4, 200])
def test_what_was_kept_and_let_go_is_freed(few_jpeg: Path, kept: int) -> None:
    """All but as many buffers as the usual loop has."""
    with make(few_jpeg) as loader:
        for _ in range(2):
            for_loop(loader)
        gc.collect()
        tracemalloc.start()
        try:
            last: deque[Batch] = deque(maxlen=kept)
            for _ in range(2):
                last.extend(loader)
            grown = tracemalloc.get_traced_memory()[0]
            assert grown > (min(kept, 8) - 2) * NBYTES
            last.clear()
            assert tracemalloc.get_traced_memory()[0] < 3 * NBYTES
        finally:
            tracemalloc.stop()


def test_batches_outlive_their_loader(few_jpeg: Path) -> None:
    loader = make(few_jpeg)
    batch = next(iter(loader))
    copy = batch.images.clone()
    for _ in loader:
        pass
    loader.close()
    del loader
    gc.collect()
    assert torch.equal(batch.images, copy)


def written(pool: BufferPool) -> tuple[torch.Tensor, int]:
    """A batch in what the pool gives, and its address; what is NEW is allocated."""
    assert pool._free.qsize() > 0  # else it would wait
    memory = pool.get()
    assert memory is not None
    batch = pool.lend(memory if len(memory) else np.empty(8, np.uint8))
    return batch, batch.data_ptr()


def taken(pool: BufferPool, ready: list[tuple[torch.Tensor, int]]) -> torch.Tensor:
    pool.want()
    batch = ready.pop(0)[0]
    pool.taken(on_device=False)
    return batch


@pytest.mark.parametrize("prefetch", [1, 3])
def test_how_many_may_be_written_by_hand(prefetch: int) -> None:
    """One more than the number in advance; then, of a loop that lets go, one for each, in the
    memory that came back; for who keeps two, in new memory."""
    pool = BufferPool(prefetch)
    assert pool._free.qsize() == prefetch + 1
    ready = [written(pool) for _ in range(prefetch + 1)]
    addresses = [address for _, address in ready]
    assert len(set(addresses)) == prefetch + 1
    batch = taken(pool, ready)
    assert pool._free.qsize() == 0
    for step in range(3 * prefetch):
        del batch
        assert pool._free.qsize() == 1
        ready.append(written(pool))
        assert ready[-1][1] == addresses[step % (prefetch + 1)]
        batch = taken(pool, ready)
        assert pool._free.qsize() == 0
    kept = [batch]
    kept.append(taken(pool, ready))
    assert pool._free.qsize() == 0  # with the last one it has two: the next is wanted for that
    pool.want()
    assert pool._free.qsize() == 2
    assert all(pool._free.get() is NEW for _ in range(2))


def test_what_comes_back_beyond_need_is_one_spare_buffer() -> None:
    """Which is taken where a new one would be."""
    pool = BufferPool(1)
    ready = [written(pool) for _ in range(2)]
    kept = [taken(pool, ready)]
    pool.want()  # of one that is kept no other comes
    assert pool._free.qsize() == 0
    pool.taken(on_device=False)
    kept.append(ready.pop()[0])
    pool.want()  # two are kept
    assert pool._free.qsize() == 2
    ready = [written(pool) for _ in range(2)]
    addresses = [batch.data_ptr() for batch in kept]
    kept.pop()
    kept.pop()  # two are ready: neither is needed
    assert pool._free.qsize() == 0
    assert [memory.ctypes.data for memory in pool._spare] == addresses[:1]
    kept.append(taken(pool, ready))
    kept.append(taken(pool, ready))
    pool.want()
    assert written(pool)[1] == addresses[0]
    assert pool._free.get() is NEW


def test_memory_of_a_device_is_not_waited_for() -> None:
    """None of it is lent. After the first batch, which is more than were asked for, one may be made
    for each that is taken."""
    pool, allowed = BufferPool(2), []
    for _ in range(3):
        assert pool.get() is NEW
    for _ in range(4):
        pool.want()
        pool.taken(on_device=True)
        allowed.append(pool._free.qsize())
        for _ in range(allowed[-1]):
            assert pool.get() is NEW
    assert allowed == [0, 1, 1, 1]


def test_a_closed_pool_gives_nothing_and_keeps_nothing() -> None:
    pool = BufferPool(2)
    batch = written(pool)[0]
    pool._spare.append(np.empty(8, np.uint8))
    pool.close()
    assert pool.closed is True
    assert pool.get() is None
    assert not pool._spare
    del batch
    assert pool._free.qsize() == 0
    assert not pool._lent
