"""torchvision's AlexNet and ours: names, shapes, and the same logits on the same images, without
its published file."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gratis.errors import GratisError
from gratis.image import decode
from gratis.loader import Loader
from gratis.train.analysis.deployment import NAMES, from_torchvision, to_torchvision
from gratis.train.analysis.evaluate_published import (
    MEAN,
    RECIPE,
    STD,
    EvaluatePublished,
    evaluate,
    load,
    main,
    to_torchvision_scale,
)
from gratis.train.evaluate import evaluation_config
from gratis.train.network.alexnet import AlexNet, weight_shapes
from gratis.train.recipes import RELEASED, TORCHVISION

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = {  # of alexnet-owt-7be5be79.pth
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
    "classifier.1": (4096, 9216),
    "classifier.4": (4096, 4096),
    "classifier.6": (1000, 4096),
}
CLASSES, IMAGES = 3, 9


class TorchvisionAlexNet(nn.Module):
    """torchvision/models/alexnet.py, by its own modules and names."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


@pytest.fixture(scope="module")
def theirs() -> TorchvisionAlexNet:
    torch.manual_seed(0)
    return TorchvisionAlexNet(CLASSES).eval()


@pytest.fixture(scope="module")
def file(theirs: TorchvisionAlexNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zoo") / "alexnet.pth"
    torch.save(theirs.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine random pictures of three classes at 256 px, in both splits."""
    folder = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(IMAGES):
            path = folder / "source" / split / f"n0000000{number % CLASSES}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            small.resize((340, 300), Image.Resampling.BICUBIC).save(path)
    command = [sys.executable, "-m", "gratis", "shards", "--src", str(folder / "source"), "--out"]
    subprocess.run(
        [*command, str(folder / "shards")], cwd=ROOT, check=True, capture_output=True, timeout=300
    )
    return folder / "shards"


def by_hand(theirs: TorchvisionAlexNet, shards: Path) -> tuple[np.ndarray, list[int]]:
    """Logits of the validation images as torchvision's preset makes them of 256-pixel pictures, in
    the order of ids."""
    index = np.load(shards / "val.index.npz")
    data = (shards / "val-00000.tar").read_bytes()
    inputs = []
    for offset, size in zip(index["offset"].tolist(), index["size"].tolist(), strict=True):
        pixels = torch.from_numpy(decode(data[offset : offset + size])[16:240, 16:240].copy())
        scaled = pixels.permute(2, 0, 1).float() / 255
        inputs.append((scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    with torch.inference_mode():
        return theirs(torch.stack(inputs)).numpy(), index["label"].tolist()


def test_the_recipe_has_torchvisions_names_and_shapes() -> None:
    shapes = weight_shapes(TORCHVISION, 1000)
    assert {theirs: shapes[ours] for theirs, ours in NAMES.items()} == TABLE
    assert sum(int(np.prod(shape)) + shape[0] for shape in TABLE.values()) == 61_100_840
    named = {name: tuple(own.shape) for name, own in TorchvisionAlexNet(1000).state_dict().items()}
    assert named == {f"{name}.weight": shape for name, shape in TABLE.items()} | {
        f"{name}.bias": shape[:1] for name, shape in TABLE.items()
    }


@pytest.mark.slow
@pytest.mark.starts
def test_published_weights_see_our_shards_as_torchvision_would(
    theirs: TorchvisionAlexNet,
    file: Path,
    shards: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, labels = by_hand(theirs, shards)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch begins
    network, config = load(file, RECIPE), evaluation_config(RECIPE, 1, 1)
    with Loader(shards, "val", config) as loader, torch.inference_mode():
        own = [
            (network(images)[ids >= 0], ids[ids >= 0])
            for images, _, ids in to_torchvision_scale(loader, config, loader.stats)
        ]
    assert torch.cat([ids for _, ids in own]).tolist() == list(range(IMAGES))
    np.testing.assert_allclose(
        torch.cat([logits for logits, _ in own]).numpy(), expected, atol=1e-5, rtol=1e-4
    )
    main([str(file), "--shards", str(shards)])
    right = float((expected.argmax(1) == labels).mean())
    assert f"centre view: top-1 {right:.3%}, top-5 100.000%" in capsys.readouterr().out
    both = evaluate(network, EvaluatePublished(file=file, shards=str(shards), views=10))
    assert both[1].top1 == pytest.approx(right)
    assert both[1].images == both[10].images == IMAGES
    assert both[10].nll != both[1].nll
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.slow
def test_an_exported_state_dict_is_torchvisions(theirs: TorchvisionAlexNet) -> None:
    """Of whatever recipe has its layers: the input's scale and order and halved dropout go into the
    weights."""
    weights, images = from_torchvision(theirs.state_dict()), torch.randn(2, 3, 224, 224) * 60
    assert all(
        torch.equal(own, theirs.state_dict()[name])
        for name, own in to_torchvision(RECIPE, weights).items()
    )
    for recipe in (
        TORCHVISION,
        replace(TORCHVISION, channel_order="bgr", dropout="original", dropout_place="after"),
        replace(TORCHVISION, dropout="original", dropout_place="before"),
    ):
        network, exported = AlexNet(recipe, CLASSES), TorchvisionAlexNet(CLASSES).eval()
        network.load_state_dict(weights)
        exported.load_state_dict(to_torchvision(recipe, weights))
        with torch.inference_mode():
            np.testing.assert_allclose(
                exported(images).numpy(), network(images).numpy(), atol=1e-5, rtol=1e-4
            )


@pytest.mark.starts
def test_other_networks_and_files_are_one_line(file: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(GratisError, match="is not there"):
        load(tmp_path / "none.pth", RECIPE)
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(GratisError, match="no state dict that can be read without"):
        load(tmp_path / "text.pth", RECIPE)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")  # a pickle that would run code
    with pytest.raises(GratisError, match="no state dict that can be read without"):
        load(tmp_path / "module.pth", RECIPE)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(GratisError, match="not torchvision's AlexNet"):
        load(tmp_path / "other.pth", RECIPE)
    narrow = {name: torch.zeros(1) for name in torch.load(file, weights_only=True)}
    torch.save(narrow, tmp_path / "narrow.pth")
    with pytest.raises(GratisError, match=r"conv1.weight of shape \[1\], not \[64, 3, 11, 11\]"):
        load(tmp_path / "narrow.pth", RECIPE)
    whole = torch.load(file, weights_only=True)
    bias = whole["classifier.6.bias"]
    for wrong, words in (
        ({1: bias}, "odd.pth holds no state dict: names with tensors"),
        ({"classifier.6.bias": bias[0]}, r"fc8.bias of shape \[\]"),
        ({"classifier.6.bias": bias[:0]}, r"fc8.bias of shape \[0\]"),
        ({"classifier.6.bias": bias.long()}, "classifier.6.bias is torch.int64"),
        (
            {"classifier.6.bias": bias.to_sparse()},
            "classifier.6.bias is torch.float32, torch.sparse_coo",
        ),
        ({"classifier.6.bias": bias.to("meta")}, "on meta, not plain floats"),
        ({"classifier.6.bias": bias * math.nan}, "classifier.6.bias is not finite"),
        ({"classifier.6.bias": 3}, "classifier.6.bias is a int"),
    ):
        torch.save(whole | wrong, tmp_path / "odd.pth")
        with pytest.raises(GratisError, match=words):
            load(tmp_path / "odd.pth", RECIPE)
    (tmp_path / "bytes.pth").write_bytes(b"\x80\x02.")
    with pytest.raises(GratisError, match="no state dict that can be read without"):
        load(tmp_path / "bytes.pth", RECIPE)
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(GratisError, match="no regular file"):
        load(tmp_path / "pipe.pth", RECIPE)
    with pytest.raises(GratisError, match=r"tells 5 classes apart, .* has 3"):
        evaluate(AlexNet(RECIPE, 5), EvaluatePublished(file=file, shards=str(shards)))
    with pytest.raises(GratisError, match="has towers 1, this run 2"):
        to_torchvision(RELEASED, {})
