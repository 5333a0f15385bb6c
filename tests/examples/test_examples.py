"""What the README and this folder show other people to write, with their lines run as they
stand."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resnet
import torch
from PIL import Image

from gratis.dataset import read_index, read_manifest
from gratis.loader import Loader, LoaderConfig
from gratis.torch import ShardDataset

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.starts  # the drawn sample is made by commands


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small are quicker on one, and on a busy machine fifty times so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stand_in_for_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example asks it for, in this test alone; examples can be imported then."""
    models = types.ModuleType("torchvision.models")
    models.resnet50 = resnet.resnet18  # type: ignore[attr-defined]
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, models)
    monkeypatch.syspath_prepend(ROOT / "examples")


def readme_examples() -> tuple[str, str, str]:
    """The README's lines of Python: the first look at a batch, the training of a ResNet, and what
    stands in for a DataLoader."""
    first, training, face = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    return first, training, face


def test_the_first_example_runs_as_it_stands_on_the_drawn_sample(
    sample_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample/shards").symlink_to(sample_shards)
    monkeypatch.chdir(tmp_path)
    exec(readme_examples()[0], {})
    output = capsys.readouterr().out.splitlines()
    assert len(output) == 10
    assert output[0].startswith("torch.Size([100, 3, 112, 112]) [")


def test_the_dataloader_of_the_readme_gives_pairs_of_images_and_labels(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards").symlink_to(sample_shards)
    monkeypatch.chdir(tmp_path)
    code = readme_examples()[2]
    for shown, here in (("batch_size=256", "batch_size=100"), ("cuda:0", "cpu")):
        assert shown in code
        code = code.replace(shown, here)
    names: dict[str, Any] = {}
    crop = '"train", LoaderConfig.imagenet(crop=112)'
    exec("from gratis import LoaderConfig\n" + code.replace('"train"', crop), names)
    images, labels = next(iter(names["loader"]))
    assert images.shape == (100, 3, 112, 112)
    assert labels.min() >= 0
    assert labels.max() < 10


@pytest.mark.slow
def test_a_plain_loop_trains_a_resnet(
    sample_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The README's example, with shards, size and number of epochs put in: the loss falls below
    chance's 2.3, every validation image is counted, and the checkpoint says
    where the loader stands."""
    example = readme_examples()[1]
    assert len(example.strip().splitlines()) <= 24
    example = re.sub("from torchvision.models import resnet50.*\n", "", example)
    example = example.replace('"shards"', repr(str(sample_shards))).replace("range(90)", "range(6)")
    example = example.replace("batch_size=256", "batch_size=50, crop=96")
    example = example.replace("lr=0.1", "lr=0.01").replace(
        ".imagenet(", ".imagenet(area=(0.5, 1), "
    )
    losses: list[float] = []

    def noted(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(logits, labels)
        losses.append(loss.item())
        return loss

    example = example.replace("torch.nn.functional.cross_entropy", "noted")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(example, {"noted": noted, "resnet50": lambda: resnet.resnet18(10, width=8)})
    print(f"loss {sum(losses[:9]) / 9:.2f} at first, {sum(losses[-9:]) / 9:.2f} at last")
    assert len(losses) == 120
    assert sum(losses[-9:]) / 9 < 2.05  # ln 10 is 2.3
    top1 = re.findall(r"epoch \d: top-1 ([\d.]+)%", capsys.readouterr().out)
    assert len(top1) == 6
    *_, state = torch.load("resnet50.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (6, 0)


def resnet50_ddp(folder: Path, shards: Path, ranks: int, *arguments: str) -> str:
    """Runs the example in that folder with a small network; its output."""
    here = Path(__file__).resolve().parent
    small = "--batch 50 --crop 64 --epochs 1 --warmup-epochs 0 --lr 0.05".split()
    program = [str(ROOT / "examples/resnet50_ddp.py"), "--shards", str(shards), *small]
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node".split()
    done = subprocess.run(
        [sys.executable, *torchrun, str(ranks), *program, *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{here}:{here / 'stand_in'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_resnet50_resumes_inside_an_epoch(sample_shards: Path, tmp_path: Path) -> None:
    """Stopped after 13 of 20 steps and started again by two ranks, the weights are those of a
    training that was not stopped; one rank can go on there too."""
    whole, parts, alone = (tmp_path / f"{name}.pt" for name in ("whole", "parts", "alone"))
    resnet50_ddp(tmp_path, sample_shards, 2, "--checkpoint", str(whole))
    stopped = ("--checkpoint", str(parts), "--max-steps", "13")
    assert resnet50_ddp(tmp_path, sample_shards, 2, *stopped) == ""
    state = torch.load(parts, weights_only=True)["loader"]
    assert (state["epoch"], state["step"]) == (0, 13)
    shutil.copy(parts, alone)
    for path, ranks in ((parts, 2), (alone, 1)):
        output = resnet50_ddp(tmp_path, sample_shards, ranks, "--checkpoint", str(path))
        assert re.search(r"^epoch 0: loss [\d.]+, top-1 [\d.]+% of 200 images, ", output)
    first, second, third = (torch.load(path, weights_only=True) for path in (whole, parts, alone))
    assert (first["loader"]["epoch"], first["loader"]["step"]) == (1, 0)
    assert first["loader"] == second["loader"] == third["loader"]
    assert first["network"].keys() == second["network"].keys()
    for name, value in first["network"].items():
        torch.testing.assert_close(second["network"][name], value, rtol=0, atol=1e-6)


def test_resnet50_gets_torchvisions_input(sample_shards: Path) -> None:
    """(RGB - mean) / standard deviation of the stored pixels, as torchvision's weights expect."""
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # published, in grey levels
    with Loader(sample_shards, "val", LoaderConfig.evaluation(batch_size=8, crop=112)) as val:
        batch = next(iter(val))
        result = batch.images[3].permute(1, 2, 0).numpy()
    manifest, index = read_manifest(sample_shards), read_index(sample_shards, "val")
    row = batch.ids[3]
    shard = sample_shards / manifest.splits["val"].shards[index.shard[row]].name
    data = shard.read_bytes()[index.offset[row] :][: index.size[row]]
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)
    expected = (pixels[8:120, 8:120] - mean) / std
    assert np.abs(result - expected).max() < 0.03  # a level, of decoders that round differently


@pytest.mark.parametrize(("remainder", "empty"), [("pad", [2, 3]), ("drop", [])])
def test_ranks_without_a_row(remainder: Any, empty: list[int], sample_shards: Path) -> None:
    """What the README says of an epoch's last batch, and why the Lightning example leaves it
    out."""
    config, without = LoaderConfig(batch_size=300, crop=8, remainder=remainder), []
    for rank in range(4):
        with Loader(sample_shards, "train", config, rank=rank, world_size=4) as loader:
            for batch in loader:
                loss = torch.nn.functional.cross_entropy(
                    batch.images.mean((2, 3)).repeat(1, 4), batch.labels
                )
        if loss.isnan():
            without.append(rank)
    assert without == empty
    assert "drop_last=True" in (ROOT / "examples/with_lightning.py").read_text()


@pytest.mark.filterwarnings("ignore:The `srun` command is available:UserWarning")
# of torch, in Lightning
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_lightning_trains_and_resumes_inside_an_epoch(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's epoch k is the loader's epoch k, although it looks at both loaders first. A
    checkpoint inside epoch 1; another process's worth of objects goes on, and every batch came
    once."""
    lightning = pytest.importorskip("lightning", reason="needs lightning")
    stand_in_for_torchvision(monkeypatch)
    import with_lightning

    seen: list[tuple[int, list[int]]] = []

    class Watched(with_lightning.Classifier):  # type: ignore[misc]
        def training_step(self, batch: Any, number: int) -> Any:
            seen.append((self.trainer.current_epoch, batch[1].tolist()))
            return super().training_step(batch, number)

    class Save(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 33:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def fit(steps: int, checkpoint: Path | None = None) -> None:
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            max_steps=steps,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[Save()],
        )
        train = ShardDataset(sample_shards, "train", LoaderConfig.imagenet(crop=32))
        val = ShardDataset(sample_shards, "val", LoaderConfig.evaluation(crop=32))
        data = with_lightning.Shards(train, val, 50)
        trainer.fit(Watched(resnet.resnet18(10, width=8)), data, ckpt_path=checkpoint)

    fit(36)  # three steps after the checkpoint
    assert len(seen) == 36
    del seen[33:]
    fit(40, tmp_path / "middle.ckpt")
    config = LoaderConfig.imagenet(crop=32, batch_size=50)
    with Loader(sample_shards, "train", config) as loader:
        every = [(epoch, batch.labels.tolist()) for epoch in range(2) for batch in loader]
    assert [every.index(one) for one in seen] == list(range(40))
