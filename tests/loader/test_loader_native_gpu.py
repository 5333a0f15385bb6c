"""The engine as the decoder for a GPU: its bytes, finished by torch, are the batches that it makes
on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import epoch
from engine_cases import needs_library
from handmade import rotten
from test_loader_engine import CASES, mixed
from test_loader_views import plan_of
from torch import Tensor

from gratis.dataset import read_manifest
from gratis.loader import Batch, Loader, LoaderConfig, MixUp, RandomErasing
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.decoding.native import NativeBatches, choose_engine
from gratis.loader.decoding.native_gpu import NativeImages
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.reading.batch_reader import BatchReader
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.shard_reader import ShardReader

pytestmark = needs_library
BYTES: dict[str, Any] = {"normalize": None, "dtype": torch.uint8}
FORMS: dict[str, dict[str, Any]] = {
    **CASES,
    "bytes": BYTES,
    "bytes, resized": {**BYTES, "area": (0.1, 1.0), "layout": "nhwc"},
    "channels last, bfloat16": {"layout": "channels_last", "dtype": torch.bfloat16},
    "nhwc, float16": {"layout": "nhwc", "dtype": torch.float16},
}


def config_of(**options: Any) -> LoaderConfig:
    given = {"batch_size": 25, "crop": 48, "threads": 2, "engine": "native"} | options
    return LoaderConfig(**given)


@contextmanager
def images_of(plan: EpochPlan, root: Path) -> Iterator[Iterator[tuple[Any, Tensor]]]:
    """Ids and images of each step of a plan, by the route for GPUs, on the plan's device."""
    quarantine = Quarantine(0, len(plan.index.label), allowed=True)
    shards, timer = ShardReader(root, plan.manifest.splits["train"], plan.index), StageTimer()
    reader = BatchReader(shards, timer, quarantine)
    native = NativeBatches(reader, DaliRunner(timer, reader), 2)
    with closing(shards), closing(NativeImages(native)) as route:
        yield ((ids, make()) for _, ids, make in route.images(plan))


def assert_equal(ids: Any, images: Tensor, batch: Batch) -> None:
    """To rounding: the engine multiplies and adds in one step. In half precision values up to 3 are
    0.016 apart at most."""
    wanted, rows = batch.images, len(ids)
    assert ids.tolist() == batch.ids.tolist()[:rows]
    assert (images.shape[1:], images.dtype) == (wanted.shape[1:], wanted.dtype)
    assert images.stride() == wanted.stride()
    levels = 0 if images.dtype == torch.uint8 else 1e-3 if images.dtype == torch.float32 else 0.02
    assert float((images.float() - wanted[:rows].float()).abs().max()) <= levels


@pytest.mark.parametrize("name", FORMS)
def test_bytes_that_torch_finishes_are_the_engine_s_batches(tmp_path: Path, name: str) -> None:
    """On the CPU both; also of samples that the engine refuses."""
    root, config = mixed(tmp_path), config_of(**FORMS[name])
    wanted = epoch(Loader(root, "train", config))
    with images_of(plan_of(root, config), root) as steps:
        for batch, (ids, images) in zip(wanted, steps, strict=True):
            assert_equal(ids, images, batch)


def test_other_samples_stand_in(tmp_path: Path) -> None:
    root, config = rotten(tmp_path, 17, 40), config_of(bad_samples="quarantine")
    wanted = epoch(Loader(root, "train", config))
    with images_of(plan_of(root, config), root) as steps:
        for batch, (ids, images) in zip(wanted, steps, strict=True):
            assert_equal(ids, images, batch)
            assert not {17, 40} & set(ids.tolist())


def test_crops_that_grow_and_mixing_that_begins(tmp_path: Path) -> None:
    """One route over the epochs of a schedule, as a loader has it: the memory for bytes grows with
    crops and with the sample of another rank, and what bytes cannot have is not theirs."""
    root, last = mixed(tmp_path), {"mix": (MixUp(),), "erasing": RandomErasing(mode="pixel")}
    stages: Any = ((1, {"crop": 56}), (2, {"crop": 40} | last))
    config, part = config_of(batch_size=30, schedule=stages), {"rank": 1, "world_size": 2}
    with Loader(root, "train", config, **part) as loader, closing(loader.shard_reader()) as shards:
        timer, quarantine = StageTimer(), Quarantine(0, loader.num_samples, allowed=False)
        reader = BatchReader(shards, timer, quarantine)
        with closing(NativeImages(NativeBatches(reader, DaliRunner(timer, reader), 2))) as route:
            for number, crop in enumerate((48, 56, 40)):
                plain = Loader(root, "train", config_of(batch_size=30, crop=crop), **part)
                plain.set_epoch(number)
                steps = route.images(loader.epoch_plan(number))
                for batch, (_, ids, make) in zip(epoch(plain), steps, strict=True):
                    assert len(ids) == 15 + (number == 2)
                    assert_equal(ids[:15], make()[:15], batch)


def test_a_gpu_gets_the_engine_only_by_name(jpeg_dataset: Path) -> None:
    manifest, device = read_manifest(jpeg_dataset), torch.device("cuda", 0)
    chosen = [
        choose_engine(config_of(engine=name), manifest, device) for name in ("auto", "native")
    ]
    assert chosen == ["dali", "native"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMS)
def test_on_a_gpu_batches_are_those_of_the_cpu(tmp_path: Path, name: str) -> None:
    """And stay as they are while later ones are made."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    root, config = mixed(tmp_path), config_of(**FORMS[name])
    with Loader(root, "train", config) as cpu, Loader(root, "train", config, device="cuda") as gpu:
        assert gpu.engine == "native"
        for _ in range(2):
            for ours, theirs in zip(list(gpu), epoch(cpu), strict=True):
                assert ours.images.device.type == "cuda"
                rows = int((theirs.ids >= 0).sum())
                assert_equal(ours.ids[:rows], ours.images[:rows].cpu(), theirs)
                assert torch.equal(ours.labels.cpu(), theirs.labels)
                assert not ours.images[rows:].any()
