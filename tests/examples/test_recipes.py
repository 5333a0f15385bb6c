"""The recipes of real networks: what their files say, and that a training by each starts, resumes
and ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gratis import CutMix, LoaderConfig, MixUp, RandomErasing, TimmRandAugment, TrivialAugmentWide

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {path.stem: path for path in (ROOT / "examples/recipes").iterdir()}


def recipe(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(RECIPES[name].read_text())
    return fields


def configs(name: str) -> tuple[LoaderConfig, LoaderConfig]:
    train, validation = (recipe(name)[part] for part in ("train", "validation"))
    return LoaderConfig.from_dict(train), LoaderConfig.from_dict(validation)


def test_resnet50_grows_its_crop_as_ffcvs() -> None:
    """Published: 160 px for three quarters of the training, then 192; 224 of 256 in validation."""
    train, validation = configs("resnet50_16_epochs")
    crops = [train.at_epoch(epoch).crop for epoch in range(recipe("resnet50_16_epochs")["epochs"])]
    assert crops == [160] * 12 + [192] * 4
    assert (validation.resize, validation.crop) == (256, 224)
    assert not train.operations
    assert not train.mix


def test_resnet50_of_torchvisions_v2_weights() -> None:
    """Published: --auto-augment ta_wide --random-erase 0.1 --mixup-alpha 0.2 --cutmix-alpha 1.0
    --train-crop-size 176 --val-resize-size 232 --ra-sampler --ra-reps 4, 600 epochs of a fourth of
    ours each."""
    train, validation = configs("resnet50_v2")
    assert train.operations == (TrivialAugmentWide(interpolation="bilinear"),)
    assert train.mix == (MixUp(0.2), CutMix(1.0))
    assert train.erasing == RandomErasing(0.1, 0.02, 0.33, 0.3, 3.3)
    assert (train.crop, train.repeats * recipe("resnet50_v2")["epochs"]) == (176, 600)
    assert (validation.resize, validation.crop) == (232, 224)


def test_vit_of_deits_recipe() -> None:
    """Published: rand-m9-mstd0.5-inc1, reprob 0.25 of pixels, mixup 0.8, cutmix 1.0, bicubic,
    repeated augmentation of 3, 300 epochs of a third of ours each."""
    train, validation = configs("vit_s16")
    assert train.operations == (TimmRandAugment(9, 0.5),)
    assert train.mix == (MixUp(0.8), CutMix(1.0))
    assert train.erasing == RandomErasing(0.25, mode="pixel")
    assert train.repeats * recipe("vit_s16")["epochs"] == 300
    assert train.interpolation == validation.interpolation == "bicubic"


@pytest.fixture(scope="session")
def whole_shards(tiny100: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images of four classes for each split."""
    out = tmp_path_factory.mktemp("recipes") / "shards"
    limits = "--shape whole --size 64 --limit-classes 4 --limit-per-class 8".split()
    command = [sys.executable, "-m", "gratis", "shards", "--src", str(tiny100), "--out", str(out)]
    subprocess.run([*command, *limits], cwd=ROOT, check=True, capture_output=True, timeout=300)
    return out


def train(folder: Path, shards: Path, fields: dict[str, Any], name: str, *arguments: str) -> str:
    """A small network by the recipe, batches of 8, on two ranks; its output. The checkpoint is
    folder/name."""
    (folder / "recipe.json").write_text(json.dumps(fields))
    here = Path(__file__).resolve().parent
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    program = [str(ROOT / "examples/recipe_ddp.py"), "recipe.json", "--shards", str(shards)]
    done = subprocess.run(
        [sys.executable, *torchrun, *program, "--batch", "8", "--checkpoint", name, *arguments],
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


@pytest.mark.starts
@pytest.mark.slow
def test_progressive_resizing_trains(whole_shards: Path, tmp_path: Path) -> None:
    fields = recipe("resnet50_16_epochs") | {"epochs": 2, "warmup_epochs": 1}
    fields["train"]["schedule"] = [[0, {"crop": 160}], [1, {"crop": 192}]]
    output = train(tmp_path, whole_shards, fields, "one.pt")
    assert re.findall(r"epoch (\d): (\d+) px, .* of (\d+) images", output) == [
        ("0", "160", "32"),
        ("1", "192", "32"),
    ]


@pytest.mark.starts
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50_v2", "vit_s16"])
def test_mixed_training_resumes_inside_an_epoch(
    name: str, whole_shards: Path, tmp_path: Path
) -> None:
    """Stopped after 5 steps and started again, network and average of weights are those of a
    training that was not stopped."""
    fields = recipe(name) | {"epochs": 1, "warmup_epochs": 0.25}
    fields["ema"]["every"] = 2
    fields["train"]["crop"] = 96  # less work
    whole = train(tmp_path, whole_shards, fields, "whole.pt")
    assert re.search(r"epoch 0: 96 px, loss [\d.]+, top-1 [\d.]+% of 32 images", whole)
    assert train(tmp_path, whole_shards, fields, "parts.pt", "--max-steps", "5") == ""
    assert torch.load(tmp_path / "parts.pt", weights_only=True)["loader"]["step"] == 5
    train(tmp_path, whole_shards, fields, "parts.pt")
    first, second = (
        torch.load(tmp_path / path, weights_only=True) for path in ("whole.pt", "parts.pt")
    )
    assert first["loader"] == second["loader"]
    for part in ("network", "ema"):
        assert first[part].keys() == second[part].keys()
        for key, value in first[part].items():
            torch.testing.assert_close(second[part][key], value, rtol=0, atol=1e-6)
