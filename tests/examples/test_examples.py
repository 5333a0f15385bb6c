"""What the README and this folder show other people to write, with their lines run as they
stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import resnet
import torch

from gratis.loader import Loader, LoaderConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small are quicker on one, and on a busy machine fifty times so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_plain_loop_trains_a_resnet(sample_shards: Path) -> None:
    """The README's example, with shards, size and number of epochs put in: the loss falls below
    chance's 2.3."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 14
    example = re.sub("from torchvision.models import resnet18.*\n", "", example)
    example = example.replace('"shards"', repr(str(sample_shards))).replace("range(90)", "range(4)")
    example = example.replace("batch_size=256", "batch_size=50, crop=96").replace(
        "lr=0.1", "lr=0.05"
    )
    losses: list[float] = []

    def noted(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(logits, labels)
        losses.append(loss.item())
        return loss

    example = example.replace("torch.nn.functional.cross_entropy", "noted")
    torch.manual_seed(0)
    exec(example, {"noted": noted, "resnet18": lambda: resnet.resnet18(10, width=8)})
    print(f"loss {sum(losses[:5]) / 5:.2f} at first, {sum(losses[-5:]) / 5:.2f} at last")
    assert len(losses) == 80
    assert sum(losses[-5:]) / 5 < 1.9


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
    assert 'remainder="drop"' in (ROOT / "examples/with_lightning.py").read_text()


@pytest.mark.filterwarnings("ignore:The `srun` command is available:UserWarning")
# of torch, in Lightning
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_lightning_trains_and_resumes_inside_an_epoch(
    sample_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint after 13 of 20 steps; another process's worth of objects goes on, and every
    sample came once."""
    lightning = pytest.importorskip("lightning", reason="needs lightning")
    monkeypatch.syspath_prepend(ROOT / "examples")
    import with_lightning

    assert len(Path(with_lightning.__file__).read_text().splitlines()) <= 31
    seen: list[list[int]] = []

    class Watched(with_lightning.Classifier):  # type: ignore[misc]
        def training_step(self, batch: Any, number: int) -> Any:
            seen.append(batch.ids.tolist())
            return super().training_step(batch, number)

    def trainer(steps: int) -> Any:
        return lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )

    config = LoaderConfig(batch_size=50, crop=64)
    first = trainer(13)
    with_lightning.train(sample_shards, first, config, Watched(10, width=8))
    first.save_checkpoint(tmp_path / "middle.ckpt")
    with_lightning.train(
        sample_shards, trainer(20), config, Watched(10, width=8), tmp_path / "middle.ckpt"
    )
    with Loader(sample_shards, "train", config) as loader:
        # Lightning begins to read twice
        assert seen in [[batch.ids.tolist() for batch in loader] for _ in range(2)]
