"""One image's way through the loader: what is drawn is what the loader does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from handmade import SIZE, picture, write_dataset
from PIL import Image

from gratis.errors import GratisError
from gratis.image import decode
from gratis.loader import Loader, LoaderConfig, plan
from gratis.loader.inspect import explain, explain_figure, explain_whole_figure

ROOT = Path(__file__).resolve().parent.parent.parent
CROP = 48


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("explain") / "set", [picture(i) for i in range(25)]
    )


@pytest.mark.parametrize("mean", ["central", "offset"])
def test_an_applied_view_is_the_loaders(dataset: Path, mean: str) -> None:
    config = LoaderConfig.alexnet(batch_size=25, seed=3, crop=CROP, mean=mean)  # type: ignore[arg-type]
    with Loader(dataset, "train", config) as loader:
        images, _, ids = next(iter(loader))
        for row in range(5):
            sample = int(ids[row])
            draws = plan.draws(3, 0, np.array([sample]), SIZE - CROP + 1)
            shown = explain_figure.apply_row(
                loader, explain.read(loader, sample), draws, 0, colour=True
            )
            np.testing.assert_allclose(shown.input, images[row].numpy(), atol=1e-3)
            # of the crop itself, mean subtracted
            back = shown.input * 1.1 - shown.shift[:, None, None]
            assert abs(back).max() < 256


def test_a_sample_is_found_by_key_and_by_id(dataset: Path) -> None:
    for shard in sorted(dataset.glob("*.tar")):  # as preprocess writes them beside each shard
        names = ["7.jpg" if i == 3 else f"s_{i}.jpg" for i in range(25)][
            int(shard.stem[-5:]) * 10 :
        ][:10]
        lines = [f"jpg 0 1 {name} cls 0 1 {Path(name).stem}.cls" for name in names]
        shard.with_suffix(".idx").write_text("\n".join([f"v1.2 {len(lines)}", *lines]) + "\n")
    with Loader(dataset, "train", LoaderConfig.alexnet(batch_size=1, crop=CROP)) as loader:
        # a key first
        assert [explain.find(loader, key) for key in ("s_0", "s_13", "24", "7")] == [0, 13, 24, 3]
        for wrong in ("25", "s_25", "-1"):
            with pytest.raises(GratisError, match=f"--sample {wrong}: split train has no such key"):
                explain.find(loader, wrong)


def test_an_address_is_an_error() -> None:
    with pytest.raises(
        GratisError, match=r"s3://bucket/shards: this reads local folders; copy the dataset first"
    ):
        explain.main(["s3://bucket/shards", "--sample", "0"])


def test_offsets_are_flat_and_colours_as_the_formula_says(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "DRAWS", 50_000)
    with Loader(dataset, "train", LoaderConfig.alexnet(batch_size=1, crop=CROP)) as loader:
        offsets, normals = explain.many_draws(loader)
        positions = SIZE - CROP + 1
        counts = explain_figure.histogram(offsets, positions)
        assert counts.shape == (positions, positions)
        assert counts.sum() == len(offsets) >= explain.DRAWS
        assert counts[3, 11] == ((offsets[:, 0] == 3) & (offsets[:, 1] == 11)).sum()
        mean = len(offsets) / positions**2
        assert abs(counts - mean).max() < 6 * np.sqrt(mean)
        for noise in ("sqrt", "printed"):
            measured, theory = explain.covariance(loader.stats, noise, normals)
            np.testing.assert_allclose(measured, theory, atol=0.04 * abs(theory).max())
        values, vectors = loader.stats.eigenvalues, loader.stats.eigenvectors
        _, theory = explain.covariance(loader.stats, "sqrt", normals)
        np.testing.assert_allclose(theory, 0.01 * vectors @ np.diag(values) @ vectors.T, rtol=1e-9)


def test_the_central_crop_alone_is_no_failed_distribution(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "DRAWS", 1000)
    config = LoaderConfig.alexnet(batch_size=1, crop=CROP, crop_positions="centre")
    with Loader(dataset, "train", config) as loader:
        explain.report_offsets(loader, explain.many_draws(loader)[0])
    middle = (SIZE - CROP) // 2
    assert capsys.readouterr().out.endswith(
        f" crops of split train: all at offset [{middle} {middle}]\n"
    )


def test_the_page_is_drawn_from_the_shards_that_preprocess_writes(
    sample_shards: Path, tmp_path: Path
) -> None:
    index = np.load(sample_shards / "train.index.npz")
    key = (
        (sample_shards / "train-00001.idx")
        .read_text()
        .splitlines()[5]
        .split()[3]
        .removesuffix(".jpg")
    )
    command = [sys.executable, "-m", "gratis", "explain", str(sample_shards), "--sample", key]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "a.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "289 of 289 offsets drawn" in done.stdout
    assert done.stdout.count("measured") == 3
    with Image.open(tmp_path / "a.png") as page:
        assert min(page.size) > 1000
        assert np.asarray(page.convert("L")).std() > 10
    with Loader(sample_shards, "train", LoaderConfig.alexnet(batch_size=1, crop=112)) as loader:
        sample = explain.find(loader, key)
        assert int(index["shard"][sample]) == 1
        start, size = int(index["offset"][sample]), int(index["size"][sample])
        stored = decode((sample_shards / "train-00001.tar").read_bytes()[start : start + size])
        np.testing.assert_array_equal(explain.read(loader, sample), stored)
    advice = (
        "a.png cannot be written (No such file or directory); name a .png file in an "
        "existing folder with room"
    )
    with pytest.raises(GratisError) as caught:
        explain.main([*command[4:], "--out", str(tmp_path / "none" / "a.png")])
    assert str(caught.value).endswith(advice)
    assert "\n" not in str(caught.value)


def garbled(listed: Path) -> None:
    listed.write_bytes(listed.read_bytes()[:100] + b"\xff\xfe")


def cut(listed: Path) -> None:
    listed.write_text("v1.2 1\njpg 0 1\n")


def folder(listed: Path) -> None:
    listed.unlink()
    listed.mkdir()


@pytest.mark.parametrize("damage", [garbled, cut, folder])
def test_a_damaged_list_is_an_error(
    sample_shards: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    root = shutil.copytree(sample_shards, tmp_path / "copy")
    damage(root / "train-00001.idx")
    with pytest.raises(
        GratisError, match=r"train-00001\.idx cannot be read \(.*\); verify the copy of the dataset"
    ):
        explain.main([str(root), "--sample", "no such key"])


@pytest.mark.parametrize("damaged", [b"\0" * 64, b"\xff\xd8\xff\xd9"])
def test_a_damaged_image_is_an_error_before_anything_is_drawn(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: bytes
) -> None:
    root = shutil.copytree(sample_shards, tmp_path / "copy")
    with (root / "train-00000.tar").open("r+b") as file:
        file.seek(int(np.load(root / "train.index.npz")["offset"][0]))
        file.write(damaged)
    with pytest.raises(
        GratisError, match=r"train-00000\.tar, key .* does not decode \(.*\); verify the copy"
    ):
        explain.main([str(root), "--sample", "0", "--out", str(tmp_path / "a.png")])
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "wrong"), [("--crop", "0"), ("--crop", "-1"), ("--crop-chunk", str(10**30))]
)
def test_numbers_out_of_range_are_errors(sample_shards: Path, option: str, wrong: str) -> None:
    with pytest.raises(GratisError, match=f"is {wrong}; it m(ust|ay) be at (least|most)"):
        explain.main([str(sample_shards), "--sample", "0", option, wrong])


def test_views_of_a_file_are_the_loader_s(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its operations; what is drawn is the engine's image to a level."""
    fields = {
        "crop": 64,
        "area": [0.3, 1.0],
        "operations": [{"type": "RandomSolarize", "threshold": 90, "p": 1.0}],
        "normalize": None,
    }
    file, out = tmp_path / "config.json", tmp_path / "a.png"
    file.write_text(json.dumps({"train": fields | {"mix": [{"type": "MixUp"}]}}))
    explain.main([str(sample_shards), "--sample", "5", "--config", str(file), "--out", str(out)])
    assert "200,000 parts of an image" in capsys.readouterr().out
    with Image.open(out) as page:
        assert min(page.size) > 800
    config = LoaderConfig.from_dict(fields)
    with Loader(sample_shards, "train", config) as loader:
        batch = next(iter(loader))
        for image, sample in zip(batch.images[:4], batch.ids[:4].tolist(), strict=True):
            stored = explain.read(loader, sample)
            seen = explain_whole_figure.apply_views(loader.epoch_plan(0), sample, stored)[0]
            np.testing.assert_allclose(image.movedim(0, -1).numpy(), seen, atol=1)
            assert seen.max() <= 165  # what is brighter than 90 is inverted


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("{}", [], "has no area, and what is drawn are resized crops"),
        ('{"area": [0.1, 1]}', ["--mean", "offset"], "--mean is of AlexNet's crops, and --config"),
        ('{"area": [0.1, 2]}', [], "c.json: area is "),
    ],
)
def test_files_that_cannot_be_drawn(
    sample_shards: Path, tmp_path: Path, text: str, more: list[str], message: str
) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(GratisError, match=message):
        explain.main(
            [str(sample_shards), "--sample", "0", "--config", str(tmp_path / "c.json"), *more]
        )
