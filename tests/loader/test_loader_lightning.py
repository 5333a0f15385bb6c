"""Lightning's epochs are the loader's, whatever Lightning looks at before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gratis.loader import Batch, Loader, LoaderConfig

pytestmark = [
    pytest.mark.prove,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]


def test_lightning_s_epoch_is_the_loader_s(jpeg_dataset: Path, tmp_path: Path) -> None:
    """Two epochs, then a checkpoint inside the third, from which another trainer goes on."""
    lightning = pytest.importorskip("lightning", reason="needs lightning")
    seen: list[tuple[int, list[int]]] = []

    class Model(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Batch, _: int) -> Any:
            seen.append((self.current_epoch, batch.ids.tolist()))
            return self.layer(batch.images.mean((2, 3))).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def loader() -> Loader:
        return Loader(jpeg_dataset, "train", LoaderConfig(batch_size=12, crop=48, threads=1))

    def trainer(steps: int, *callbacks: Any) -> Any:
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        where = {"accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path}
        return lightning.Trainer(
            max_epochs=4,
            max_steps=steps,
            callbacks=list(callbacks),
            enable_checkpointing=bool(callbacks),
            **quiet,
            **where,
        )

    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "saved", "middle", every_n_train_steps=22, save_top_k=-1
    )
    trainer(22, saver).fit(Model(), loader())
    trainer(36).fit(Model(), loader(), ckpt_path=tmp_path / "saved/middle.ckpt")
    assert [number for number, _ in seen] == [step // 9 for step in range(36)]
    with loader() as plain:
        for number in range(4):
            ids = [sample for epoch, some in seen for sample in some if epoch == number]
            assert ids == plain.epoch_plan(number).order().tolist()
