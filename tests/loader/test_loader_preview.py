"""`gratis preview`, and the mistakes of looking at what the loader yields."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import FEW, picture
from PIL import Image

from gratis.cli import run
from gratis.dataset import ImageClass
from gratis.errors import guard
from gratis.loader import Loader, LoaderConfig
from gratis.loader.config import IMAGENET
from gratis.loader.inspect.preview import _words, draw_preview

ROOT = Path(__file__).resolve().parents[2]


def loader(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gratis", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


Answered = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def answered(capsys: pytest.CaptureFixture[str]) -> Answered:
    """What a command answers, asked in this process: another would take seconds to say the same."""

    def ask(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        code = guard(lambda: run([*map(str, arguments)]))
        return subprocess.CompletedProcess([], code, *capsys.readouterr())

    return ask


def test_a_preview_is_drawn(sample_shards: Path, tmp_path: Path) -> None:
    done = loader("preview", sample_shards, "--out", tmp_path / "preview.png")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'preview.png'}: 24 images\n")
    with Image.open(tmp_path / "preview.png") as image:
        assert image.width > 100


def test_a_preview_of_resized_parts(
    sample_shards: Path, tmp_path: Path, answered: Answered
) -> None:
    done = answered("preview", sample_shards, "--config", "imagenet", "--out", tmp_path / "p.png")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'p.png'}: 24 images\n")


def test_a_preview_is_of_a_file_s_configuration(
    sample_shards: Path, tmp_path: Path, answered: Answered
) -> None:
    """Each tile is the loader's own image, normalisation taken back; that of a recipe's part."""
    fields = {
        "crop": 64,
        "area": [0.2, 1.0],
        "operations": [{"type": "RandomInvert", "p": 0.5}, {"type": "RandomGrayscale", "p": 0.5}],
        "erasing": {"type": "RandomErasing", "p": 0.5},
        "mix": [{"type": "MixUp", "alpha": 1.0}],
        "views": 2,
        "schedule": [[2, {"crop": 48}]],
        "layout": "channels_last",
    }
    file, out = tmp_path / "recipe.json", tmp_path / "p.png"
    file.write_text(json.dumps({"epochs": 3, "train": fields, "validation": {"augment": False}}))
    for epoch, crop in ((0, 64), (2, 48)):
        asked = ("preview", sample_shards, "--config", file, "--epoch", epoch, "--seed", 3)
        done = answered(*asked, "--out", out)
        assert (done.returncode, done.stdout) == (0, f"{out}: 48 images\n")
        config = LoaderConfig.from_dict(fields | {"seed": 3, "batch_size": 24})
        with Loader(sample_shards, "train", config) as one:
            one.set_epoch(epoch)
            images = next(iter(one)).images
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
        wanted = ((images[1, 0] * deviation + mean) * 255).clamp(0, 255).movedim(0, -1)
        with Image.open(out) as sheet:
            assert sheet.size == (6 * crop, 8 * (crop + 14))
            seen = np.asarray(sheet.crop((2 * crop, 0, 3 * crop, crop)))
        np.testing.assert_allclose(seen, wanted.numpy(), atol=0.6)


def test_the_words_of_mixed_labels() -> None:
    names = (("n1", "cat, tom"), ("n2", "dog"))
    classes = tuple(ImageClass(wnid=wnid, words=words, ilsvrc_id=None) for wnid, words in names)
    assert _words(classes, torch.tensor([0.37, 0.63])) == "63% dog, 37% cat"
    assert _words(classes, torch.tensor([1.0, 0.0])) == "cat"
    assert _words(classes, torch.tensor(1)) == "dog"


@pytest.mark.parametrize(
    "config",
    [
        LoaderConfig.evaluation(),
        LoaderConfig.evaluation(layout="nhwc"),
        LoaderConfig.evaluation(normalize=None, dtype=torch.uint8, layout="channels_last"),
        LoaderConfig.evaluation(normalize=((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))),
        LoaderConfig.alexnet(augment=False),
        LoaderConfig.alexnet(noise="off", mean="offset", flip=0),
    ],
)
def test_a_preview_takes_any_normalisation_back(
    few_raw: Path, tmp_path: Path, config: LoaderConfig
) -> None:
    """The stored pixels are seen, to rounding."""
    with Loader(few_raw, "train", replace(config, batch_size=FEW, crop=64)) as loader:
        draw_preview(loader, tmp_path / "preview.png")
        sample = int(loader.epoch_plan(0).order()[0])
    with Image.open(tmp_path / "preview.png") as sheet:
        seen = np.asarray(sheet.crop((0, 0, 64, 64))).astype(int)
    assert np.abs(seen - picture(sample)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("preview", "{shards}", "--out", "p"),
            "p has no ending that says its format; name a .png file",
        ),
        (
            ("preview", "{shards}", "--threads", "100000"),
            "threads is 100000; it may be at most 1,024",
        ),
        (("preview", "{shards}", "--crop", "0"), "crop is 0; it must be at least 1"),
        (
            ("preview", "{shards}", "--config", "resnet"),
            "--config resnet; take alexnet, imagenet or a .json file",
        ),
        (
            ("preview", "{shards}", "--config", "no.json"),
            "--config no.json: No such file or directory; give a JSON file of LoaderConfig's",
        ),
        (("preview", "{shards}", "--config", "{bad}"), "bad.json is no JSON (Expecting value"),
        (("preview", "{shards}", "--config", "{odd}"), "odd.json: LoaderConfig has no 'mixed'"),
        (("preview", "{shards}", "--config", "{list}"), "list.json: a configuration is [1]"),
        (("preview", "{shards}", "--epoch", "-1"), "--epoch -1; the first is 0"),
        (
            ("preview", "http://127.0.0.1:1/shards"),
            "http://127.0.0.1:1/shards: this reads local folders",
        ),
    ],
)
def test_mistakes_are_one_line(
    sample_shards: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    answered: Answered,
) -> None:
    files = {"bad": "", "odd": '{"mixed": 1}', "list": "[1]"}
    paths = {name: tmp_path / f"{name}.json" for name in files}
    for name, text in files.items():
        paths[name].write_text(text)
    done = answered(*(argument.format(shards=sample_shards, **paths) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "command", [("preview", "{shards}", "--out"), ("explain", "{shards}", "--sample", "0", "--out")]
)
def test_a_full_disk_is_one_line_and_the_old_picture_stays(
    sample_shards: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    command: tuple[str, ...],
    answered: Answered,
) -> None:
    """RLIMIT_FSIZE stands for the disk: writes fail in the same place, Numba's of what it compiled
    too. The first run has room, for matplotlib's list of fonts as well, about which it would say a
    line of its own."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))

    picture, filled = (
        tmp_path / "picture.png",
        [argument.format(shards=sample_shards) for argument in command],
    )
    assert answered(*filled, picture).returncode == 0
    before = picture.read_bytes()
    caches = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("numba")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "gratis", *filled, picture],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=small_files,
        check=False,
        env=os.environ | caches,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"error: {picture} cannot be written (" in done.stderr
    assert (picture.read_bytes(), list(tmp_path.iterdir())) == (before, [picture])


def test_a_device_may_be_named_by_a_word(sample_shards: Path) -> None:
    with Loader(
        sample_shards, "val", LoaderConfig.alexnet(crop=32, augment=False), device="cpu"
    ) as batches:
        assert batches.device == torch.device("cpu")
        assert next(iter(batches)).images.device.type == "cpu"
