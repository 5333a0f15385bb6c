"""The models of traffic and of memory, against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gratis.train.analysis.summary import FLOAT, exchanges
from gratis.train.network.layers import plan
from gratis.train.network.memory import (
    COPIES,
    RESERVED,
    TRANSIENT,
    fitting_batch,
    kept_bytes,
    ran_out,
    too_large,
)
from gratis.train.recipes import RELEASED


def test_model_parallel_wins_at_small_batches_only() -> None:
    """Specification 3.2: two towers move less than data parallelism up to a batch of about 1,040
    (without images)."""
    # an image, there and back
    pair = 2 * sum(row.original for row in exchanges(RELEASED, 1000)) * FLOAT
    # a step, whatever its batch
    gradients = 2 * sum(own.parameters for own in plan(RELEASED, 1000).values()) * FLOAT
    assert gradients / pair == pytest.approx(1_040, abs=1)


def test_memory_kept_for_backward_is_counted() -> None:
    """What the large operators and the norms must keep, their inputs, and a third more."""
    per_image, parameters = kept_bytes(RELEASED, 1000)
    assert parameters == 60_965_224 * 4
    inputs = 3 * 227**2 + 96 * 27**2 + 256 * 13**2 + 2 * 384 * 13**2 + 9216 + 2 * 4096
    norms = 3 * 96 * 55**2 + 2 * 3 * 256 * 27**2
    assert per_image == pytest.approx(1.3 * 4 * (inputs + norms), rel=0.1)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_told_with_one_that_would() -> None:
    def advice(gib: float, **fields: int) -> str:
        recipe = replace(RELEASED, batch=fields.pop("batch", 8192))
        return too_large(recipe, 1000, size=int(gib * 2**30), **fields)

    line = advice(16, world=1)
    assert line.startswith("--batch 8192 on 1 does not fit into a GPU of 16 GiB: about --batch ")
    assert advice(16) == line.replace(" on 1", "")  # of the benchmark, which has one GPU
    fits = int(line.split()[-2])
    per_image, parameters = kept_bytes(RELEASED, 1000)
    assert RESERVED + COPIES * parameters + TRANSIENT * fits * per_image <= 16 * 2**30
    assert int(advice(16, sharers=2).split()[-2]) < fits
    assert "on 6 does not fit into a GPU of 16 GiB: about --batch 48 fits" in advice(
        16, batch=102, world=6
    )
    assert advice(1, world=1).endswith(": take more GPUs, or a smaller --width")
    assert advice(1).endswith(": take a smaller --width")


def test_other_libraries_words_for_no_memory_are_known() -> None:
    for words, known in (
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: out of memory", True),
        (
            "Critical error in pipeline:\nError in GPU operator `nvidia.dali.fn.cast`\nCUDA "
            "allocation failed",
            True,
        ),
        (
            "Critical error when building pipeline:\nCan't allocate 402653184 bytes on device 0.",
            True,
        ),
        ("Can't allocate 402653184 bytes on host.", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ):
        assert ran_out(RuntimeError(words)) is known
    assert ran_out(torch.OutOfMemoryError("Tried to allocate 20.00 GiB"))


SMALL = replace(RELEASED, image_size=73, crop=64, width=1 / 16, batch=100)


def test_memory_kept_of_a_small_network_is_that_of_its_operators() -> None:
    """Without norms and pools that keep more than they read: of each image what conv1 to fc8 read
    and write, in float32, once, and pooling's places in 8 bytes."""
    recipe = replace(SMALL, lrn=False, map_norm=False, activation="tanh", dropout="off")
    layers = plan(recipe, 10)
    per_image, parameters = kept_bytes(recipe, 10)
    assert parameters == 4 * sum(own.parameters for own in layers.values())
    padded = 3 * 67**2  # conv1's overhang
    pooled = [(name, layers[name]) for name in ("conv1", "conv2", "conv5")]
    values = padded + sum(own.outputs * own.side**2 for own in layers.values()) - 10
    values += sum(own.outputs * own.pooled**2 for _, own in pooled)
    places = sum(own.outputs * own.pooled**2 for _, own in pooled)
    assert per_image == 4 * values + 8 * places


def test_which_batch_fits_is_what_is_free_by_what_an_image_takes() -> None:
    """2 GiB are others', and each parameter is there four times; an image takes half as much again
    as what is kept of it."""
    per_image, parameters = kept_bytes(SMALL, 10)

    def fits(images: float, towers: int = 1, world: int = 1) -> int:
        device = int((2 << 30) + 4 * parameters / towers + images * 1.5 * per_image)
        return fitting_batch(SMALL, 10, world=world, towers=towers, device_bytes=device)

    assert [fits(7.5), fits(7.5, world=3), fits(7.5, towers=2, world=2)] == [7, 21, 14]
    assert [fits(0.5), fits(-3.0)] == [0, 0]

    def advice(images: float, **more: int) -> str:
        size = int((2 << 30) + 4 * parameters + images * 1.5 * per_image)
        return too_large(SMALL, 10, size=size * more.get("sharers", 1), **more)

    assert advice(7.5).endswith(" does not fit into a GPU of 2 GiB: about --batch 7 fits")
    assert advice(7.5, world=3).startswith("--batch 100 on 3 does not")
    assert advice(7.5, world=3).endswith("about --batch 21 fits")
    assert advice(7.5, sharers=2).endswith("a GPU of 4 GiB: about --batch 7 fits")
    # 100 did not: at most half of it, a multiple of the processes
    assert advice(1000.5).endswith("about --batch 50 fits")
    assert advice(1000.5, world=4).endswith("about --batch 48 fits")
    assert advice(0.5).endswith(": take a smaller --width")
    assert advice(0.5, world=1).endswith(": take more GPUs, or a smaller --width")


@pytest.mark.slow
def test_a_batch_that_fits() -> None:
    per_image, parameters = kept_bytes(RELEASED, 1000)
    device = int(RESERVED + COPIES * parameters + 1000.5 * TRANSIENT * per_image)
    assert fitting_batch(RELEASED, 1000, world=1, towers=1, device_bytes=device) == 1000
    assert fitting_batch(RELEASED, 1000, world=4, towers=1, device_bytes=device) == 4000
    assert fitting_batch(RELEASED, 1000, world=2, towers=2, device_bytes=device) > 2000
    assert fitting_batch(RELEASED, 1000, world=1, towers=1, device_bytes=RESERVED) == 0
