"""What people look at: figures, predictions, features and exports of one small run that all tests
share."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors import safe_open

from gratis.errors import GratisError
from gratis.image import decode
from gratis.loader import Loader, read_pieces
from gratis.train.analysis import curves, features, figure4, kernels
from gratis.train.analysis.export import Export, compare
from gratis.train.analysis.export import main as export
from gratis.train.analysis.figures import NAMES, Figures, draw
from gratis.train.analysis.plots import save
from gratis.train.analysis.run_options import RunOptions
from gratis.train.analysis.trained_network import (
    TrainedNetwork,
    load,
    read_images,
    run_folder,
    ten_views,
)
from gratis.train.evaluate import evaluation_config
from gratis.train.metrics import average_views
from gratis.train.recipes import PAPER, RELEASED, SAMPLE, Recipe

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = (*"--recipe sample --width 0.0625 --epochs 2 --batch 100 --port 0".split(),)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def run(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of the sample recipe at a sixteenth of its width."""
    runs = tmp_path_factory.mktemp("runs")
    done = python(
        *"-m gratis train --runs".split(),
        str(runs),
        "--shards",
        str(sample_shards),
        "--run",
        "small",
        *QUICK,
    )
    assert done.returncode == 0, done.stderr
    return runs / "small"


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedNetwork:
    return load(RunOptions(run=str(run)))


def centres(trained: TrainedNetwork, split: str) -> torch.Tensor:
    """Every centre view of a split in the order of ids."""
    images = [images[ids >= 0].clone() for images, _, ids in trained.split(split)]
    return torch.cat(images)


# figures


def test_every_figure_is_drawn(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = draw(Figures(run="small", runs=run.parent, out=tmp_path / "figures", search=300))
    assert [path.name for path in written] == [f"{name}.png" for name in NAMES]
    for path in written:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 10
    assert (
        "colour-specialisation score (0 grey, 1 colour, 0.67 noise): tower 0 0."
        in capsys.readouterr().out
    )


def test_the_default_run_is_the_one_saved_last(run: Path, tmp_path: Path) -> None:
    assert run_folder(RunOptions(runs=run.parent)) == run
    with pytest.raises(GratisError, match="holds no run with a checkpoint"):
        run_folder(RunOptions(runs=tmp_path))
    with pytest.raises(GratisError, match="no run other"):
        run_folder(RunOptions(run="other", runs=run.parent))


def test_a_run_whose_dataset_is_gone_or_another_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(GratisError, match="name it with --shards"):
        load(RunOptions(run=str(run), shards=str(tmp_path / "gone")))
    (tmp_path / "other").mkdir()
    with pytest.raises(GratisError, match="is no dataset"):
        load(RunOptions(run=str(run), shards=str(tmp_path / "other")))


def test_what_is_looked_at_is_computed_in_full_float32(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch begins
    load(RunOptions(run=str(run)))
    assert not torch.backends.cudnn.allow_tf32


def kernel(*colours: float) -> np.ndarray:
    """[3,11,11]: a pattern, in these amounts of R, G and B."""
    pattern = np.random.default_rng(0).normal(size=(11, 11))
    return np.stack([amount * pattern for amount in colours]).astype(np.float32)


def test_colour_shares_of_known_kernels() -> None:
    shares = kernels.colour_shares(
        np.stack([kernel(1, 1, 1), kernel(1, -1, 0), kernel(0, 1, 0), kernel(0, 0, 0)])
    )
    np.testing.assert_allclose(shares, [0, 1, 2 / 3, 0], atol=1e-6)
    noise = np.random.default_rng(1).normal(size=(500, 3, 11, 11)).astype(np.float32)
    assert kernels.colour_shares(noise).mean() == pytest.approx(kernels.RANDOM, abs=0.005)
    towers = np.stack([kernel(1, 1, 1)] * 48 + [kernel(1, 0, -1)] * 48)
    assert kernels.scores(towers, 2) == pytest.approx([0, 1], abs=1e-6)


def test_the_mosaic_is_the_papers() -> None:
    """Six rows of sixteen, the first tower's 48 above the other's; the smallest weight of all is 0,
    the largest 1."""
    weight = np.linspace(-2, 6, 96)[:, None, None, None] * np.ones((96, 3, 11, 11))
    picture = kernels.mosaic(weight.astype(np.float32), 2)
    plate = 3 * 12 + 1
    assert picture.shape == (2 * plate + kernels.PLATE, 16 * 12 + 1, 3)
    assert (picture[plate : plate + kernels.PLATE] == 1).all()
    for number in (0, 15, 16, 47, 48, 95):
        tower, place = divmod(number, 48)
        top, left = tower * (plate + kernels.PLATE) + place // 16 * 12 + 1, place % 16 * 12 + 1
        np.testing.assert_allclose(
            picture[top : top + 11, left : left + 11], number / 95, atol=1e-6
        )
    assert [kernels.columns_for(count) for count in (96, 48, 24, 64, 3, 17)] == [
        16,
        16,
        12,
        16,
        3,
        16,
    ]


def step(attempt: int, at: int, steps: int, loss: float, lr: float = 0.1) -> dict[str, Any]:
    return {
        "kind": "step",
        "attempt": attempt,
        "step": at,
        "steps": steps,
        "images": steps,
        "loss": loss,
        "top1": 0.5,
        "lr": lr,
    }


HISTORY: list[dict[str, Any]] = [
    {"kind": "start", "attempt": 1},
    step(1, 2, 2, 4.0),
    step(1, 4, 2, 3.0),
    {"kind": "eval", "attempt": 1, "step": 4, "views": 1, "top1": 0.2, "top5": 0.4, "nll": 3.0},
    {"kind": "checkpoint", "attempt": 1, "step": 4},
    step(1, 7, 3, 9.0),
    {"kind": "start", "attempt": 2},
    step(2, 6, 2, 2.0),
    step(2, 8, 2, 1.0, 0.01),
    {"kind": "eval", "attempt": 2, "step": 8, "views": 1, "top1": 0.3, "top5": 0.5, "nll": 2.0},
    {"kind": "checkpoint", "attempt": 2, "step": 8},
    {"kind": "end", "attempt": 2, "step": 8},
]


def test_curves_leave_out_what_was_trained_again() -> None:
    kept = [record for record in curves.surviving(HISTORY) if record["kind"] == "step"]
    assert [(record["attempt"], record["step"]) for record in kept] == [
        (1, 2),
        (1, 4),
        (2, 6),
        (2, 8),
    ]
    assert curves.by_epoch(kept, 4, "loss", "steps") == ([1.0, 2.0], [3.5, 1.5])
    # the second has only begun
    assert curves.by_epoch(kept[:3], 4, "loss", "steps") == ([1.0, 1.5], [3.5, 2.0])


def test_marks_of_a_resumed_run() -> None:
    recipe = replace(RELEASED, epochs=2, noise_until=0.5, conv1_slow=0.75, conv1_frozen=1.0)
    assert sorted(curves.marks(HISTORY, recipe, 4)) == sorted(
        [
            ("noise off", 1.0),
            ("conv1 slow", 1.5),
            ("rate dropped", 1.5),
            ("checkpoint", 1.0),
            ("checkpoint", 2.0),
            ("resume", 1.0),
        ]
    )
    assert curves.marks(HISTORY[:1], PAPER, 100) == []  # it has only begun


def drawn(axes: Any) -> dict[str, list[list[float]]]:
    """By label, where each line goes."""
    return {line.get_label(): np.array(line.get_data()).tolist() for line in axes.lines}


def test_curves_are_drawn_where_the_records_are() -> None:
    ten = {"kind": "eval", "attempt": 2, "step": 8, "views": 10, "top1": 0.5, "top5": 0.75}
    lost = [*HISTORY, ten, step(2, 9, 1, 0.0) | {"loss": None, "top1": 0.75}]
    figure = curves.draw_curves(lost, replace(RELEASED, epochs=3), 4, "a run")
    loss, error = (drawn(axes) for axes in figure.axes)
    assert loss["training"] == [[1.0, 2.0], [3.5, 1.5]]
    assert loss["validation, centre"] == [[1.0, 2.0], [3.0, 2.0]]
    (raw,) = (own for name, own in loss.items() if name.startswith("_"))
    assert raw[0] == [0.5, 1.0, 1.5, 2.0, 2.25]
    assert raw[1][:4] == [4.0, 3.0, 2.0, 1.0]
    assert np.isnan(raw[1][4])
    assert error["training top-1"] == [[1.0, 2.0, 2.25], [0.5, 0.5, 0.25]]
    assert error["validation top-1"] == [[1.0, 2.0], pytest.approx([0.8, 0.7])]
    assert error["validation top-5"] == [[1.0, 2.0], pytest.approx([0.6, 0.5])]
    assert (error["ten views, top-1"], error["and top-5"]) == ([[2.0], [0.5]], [[2.0], [0.25]])
    assert figure.axes[0].get_title("left") == "a run"
    assert figure.axes[1].get_xlim() == (0, 3)


def test_rates_are_drawn_as_recorded_and_by_the_recipe() -> None:
    """conv1 slow from the fifth step on, and frozen from the seventh on: a thousandth, and no
    place. What happened is below, in rows."""
    late = {"noise_until": 0.5, "conv1_slow": 0.5, "conv1_frozen": 0.75}
    recipe = replace(RELEASED, epochs=2, drops=(), **late)
    figure = curves.draw_rates(HISTORY, recipe, 4, "a run")
    above, below = figure.axes
    rates = drawn(above)
    assert rates["weights, as recorded"] == [[0.5, 1.0, 1.5, 2.0], [0.1, 0.1, 0.1, 0.01]]
    assert rates["biases"] == [[number / 4 for number in range(8)], [0.02] * 8]
    at, conv1 = rates["conv1's weights"]
    assert at == [number / 4 for number in range(8)]
    assert conv1[:4] == [0.01] * 4
    assert conv1[4:6] == pytest.approx([1e-5, 1e-5])
    assert np.isnan(conv1[6:]).all()
    names = [label.get_text() for label in below.get_yticklabels()]
    expected = {
        "rate dropped": [1.5],
        "noise off": [1.0],
        "conv1 slow": [1.0],
        "conv1 frozen": [1.5],
        "resume": [1.0],
        "checkpoint": [1.0, 2.0],
    }
    assert names == [*expected]
    found = [line.get_data() for line in below.lines]
    for place, ((epochs, rows), own) in enumerate(zip(found, expected.values(), strict=True)):
        assert (list(epochs), list(rows)) == (own, [place] * len(own))
    plateau = replace(PAPER, epochs=2, patience=1, warmup_steps=0)
    planned = drawn(curves.draw_rates(HISTORY, plateau, 4, "").axes[0])["biases"][1]
    assert planned == pytest.approx([0.01] * 8)


# images by the network's eyes


@pytest.mark.parametrize("recipe", [SAMPLE, replace(SAMPLE, mean="offset", crop=101)])
def test_ten_views_are_the_loaders(sample_shards: Path, recipe: Recipe) -> None:
    with Loader(sample_shards, "val", evaluation_config(recipe, 10, 1)) as loader:
        images, _, ids = next(iter(loader))
        for row in range(2):
            shard, member = loader.manifest.splits["val"].shards[0], int(ids[row])
            index = np.load(sample_shards / "val.index.npz")
            start, size = int(index["offset"][member]), int(index["size"][member])
            pixels = decode((sample_shards / shard.name).read_bytes()[start : start + size])
            own = ten_views(pixels, recipe, loader.stats)
            np.testing.assert_allclose(own, images[row].numpy(), atol=1e-3)


def test_probabilities_are_those_of_evaluation(trained: TrainedNetwork) -> None:
    asked, by_id, theirs = [0, 57, 199], {}, {}
    with torch.inference_mode():
        for images, labels, ids in trained.split("val", 10):
            for row in [row for row, sample in enumerate(ids.tolist()) if sample in asked]:
                by_id[int(ids[row])] = average_views(trained.network(images[row]), 10)[0].numpy()
                theirs[int(ids[row])] = int(labels[row])
    pixels, own = read_images(trained, "val", asked)
    np.testing.assert_allclose(
        trained.probabilities(pixels), [by_id[sample] for sample in asked], atol=1e-5
    )
    assert own == [theirs[sample] for sample in asked]


def test_predict_names_what_it_cannot_read_and_goes_on(
    run: Path, trained: TrainedNetwork, tmp_path: Path
) -> None:
    pixels, _ = read_images(trained, "val", [3])
    good, odd, torn = tmp_path / "good.png", tmp_path / "odd.jpg", tmp_path / "torn.jpg"
    Image.fromarray(pixels[0]).save(good)
    odd.write_text("no picture")
    Image.fromarray(pixels[0]).save(torn)
    torn.write_bytes(torn.read_bytes()[:300])
    missing = tmp_path / "missing.jpg"
    done = python(
        "-m",
        "gratis",
        "predict",
        *map(str, (odd, torn, missing, tmp_path, good)),
        "--run",
        str(run),
    )
    assert done.returncode == 2
    messages = done.stderr.splitlines()
    assert [line.split(":")[0] for line in messages[:-1]] == [
        str(path) for path in (missing, tmp_path, odd, torn)
    ]
    assert messages[-1] == "error: 4 of 5 images could not be read"
    lines = done.stdout.splitlines()
    assert lines[1] == str(good)
    probabilities = trained.probabilities(pixels)[0]
    best = np.argsort(-probabilities)[:5].tolist()
    words = [trained.manifest.classes[label].words.split(",")[0] for label in best]
    assert lines[2:] == [
        f"  {probabilities[label]:6.1%}  {word}" for label, word in zip(best, words, strict=True)
    ]


def test_predict_sees_what_a_viewer_shows(
    run: Path, trained: TrainedNetwork, tmp_path: Path
) -> None:
    """The same picture upright, on its side with the EXIF that says so, and of ink: the same
    guesses, and what was done to it behind its name."""
    pixels, _ = read_images(trained, "val", [3])
    upright = Image.fromarray(pixels[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    clear = Image.new("RGBA", upright.size, (255, 0, 0, 0))
    clear.save(tmp_path / "c.png")
    Image.new("RGB", upright.size, "white").save(tmp_path / "d.png")
    Image.new("L", upright.size, 255).save(tmp_path / "e.png")
    paths = [str(tmp_path / f"{name}.png") for name in "abcde"]
    done = python("-m", "gratis", "predict", *paths, "--run", str(run))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()[1:]
    assert lines[::6] == [
        paths[0],
        f"{paths[1]} (turned upright)",
        f"{paths[2]} (transparency on white)",
        paths[3],
        f"{paths[4]} (grey)",
    ]
    guesses = [lines[k + 1 : k + 6] for k in range(0, 30, 6)]
    assert guesses[0] == guesses[1] != guesses[2] == guesses[3] == guesses[4]


@pytest.mark.starts
def test_pictures_that_are_not_there_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    """Before it is noticed that there is no run either."""
    done = python(
        "-m", "gratis", "predict", str(tmp_path / "none.jpg"), "--runs", str(tmp_path / "nowhere")
    )
    assert (done.returncode, done.stdout) == (2, "")
    message = (
        f"{tmp_path}/none.jpg: No such file or directory\nerror: 1 of 1 images could not be read\n"
    )
    assert done.stderr == message


@pytest.mark.starts
def test_what_is_no_file_or_too_large_is_told_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "large.jpg").touch()
    os.truncate(tmp_path / "large.jpg", 200 << 30)  # of holes
    done = python(
        "-m", "gratis", "predict", str(tmp_path / "pipe.jpg"), str(tmp_path / "large.jpg")
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{tmp_path}/pipe.jpg: not a regular file\n"
        f"{tmp_path}/large.jpg: 214,748,364,800 bytes; the limit is 67,108,864\n"
        "error: 2 of 2 images could not be read\n"
    )


@pytest.mark.starts
def test_predict_without_images_is_one_line() -> None:
    done = python("-m", "gratis", "predict")
    assert done.returncode == 2
    assert done.stderr == "error: predict needs at least one image file: gratis predict cat.jpg\n"


def test_nearest_is_brute_force() -> None:
    draw = np.random.default_rng(0)
    queries, rows = (
        draw.normal(size=(3, 8)).astype(np.float32),
        draw.normal(size=(50, 8)).astype(np.float32),
    )
    rows[20] = rows[7]  # equal distances: the first seen stays before the other
    nearest = figure4.Nearest.to(torch.from_numpy(queries))
    for first in range(0, 50, 16):
        nearest.see(
            torch.from_numpy(rows[first : first + 16]), torch.arange(first, min(first + 16, 50))
        )
    distances = ((queries[:, None] - rows) ** 2).sum(2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, : figure4.NEAREST]
    np.testing.assert_array_equal(nearest.ids.numpy(), expected)
    np.testing.assert_allclose(
        nearest.distances.numpy(), np.take_along_axis(distances, expected, 1), rtol=1e-4
    )


def test_a_training_image_is_nearest_to_itself(trained: TrainedNetwork) -> None:
    pixels, _ = read_images(trained, "train", [5, 321])
    by_layer, by_pixels, seen = figure4.find(trained, pixels, "fc7", 10_000)
    assert seen == 1000
    assert by_layer.ids[:, 0].tolist() == by_pixels.ids[:, 0].tolist() == [5, 321]
    assert figure4.find(trained, pixels, "conv3", 100)[2] == 100


# datasets at an address


@pytest.fixture(params=["file", "http"])
def address(
    request: pytest.FixtureRequest,
    sample_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[str]:
    """Of the dataset; the second server knows no ranges."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "file":
        yield f"file://{sample_shards}"
        return
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(sample_shards))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_dataset_at_an_address_is_looked_at_the_same(
    run: Path, trained: TrainedNetwork, address: str, tmp_path: Path
) -> None:
    far = load(RunOptions(run=str(run), shards=address))
    assert far.name(3) == trained.name(3)
    with pytest.raises(GratisError, match=f"{address} has no split 'test'"):
        far.index("test")
    asked = [0, 57, 199]
    for one, other in zip(
        read_images(far, "val", asked), read_images(trained, "val", asked), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    for name, looked in (("far", far), ("near", trained)):
        features.write(looked, "fc8", "val", tmp_path / f"{name}.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "far.npy"), np.load(tmp_path / "near.npy"))
    drawn = [
        draw(Figures(run=str(run), shards=shards, out=tmp_path / name, only=("top5",)))[
            0
        ].read_bytes()
        for name, shards in (("a", address), ("b", None))
    ]
    assert drawn[0] == drawn[1]


class Hiccups(Quiet):
    """A server that has no time for every other request."""

    asked = 0

    def do_GET(self) -> None:
        Hiccups.asked += 1
        if Hiccups.asked % 2:
            self.send_error(503)
        else:
            super().do_GET()


def test_images_come_from_a_server_that_is_busy_now_and_then(
    trained: TrainedNetwork, sample_shards: Path
) -> None:
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Hiccups, directory=str(sample_shards))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        split = trained.manifest.splits["val"]
        index = trained.index("val")
        places = [
            (split.shards[int(index.shard[n])].name, int(index.offset[n]), int(index.size[n]))
            for n in (0, 57)
        ]
        far = list(read_pieces(f"http://127.0.0.1:{server.server_address[1]}", places))
        server.shutdown()
        thread.join()
    assert Hiccups.asked == 4
    assert far == list(read_pieces(sample_shards, places))
    for one, other in zip(map(decode, far), read_images(trained, "val", [0, 57])[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_that_are_gone_from_an_address_are_one_line(
    run: Path, sample_shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(sample_shards, tmp_path / "shards")
    far = load(RunOptions(run=str(run), shards=f"file://{tmp_path}/shards"))
    (tmp_path / "shards" / "val-00000.tar").unlink()
    with pytest.raises(GratisError, match=r"file://.*/shards/val-00000\.tar cannot be read: "):
        read_images(far, "val", [0])


# features


def test_features_are_the_networks_own(trained: TrainedNetwork, tmp_path: Path) -> None:
    """fc8's row times what fc7's file holds gives fc8's file: what was written is what the next
    layer reads."""
    images = centres(trained, "val")
    with torch.inference_mode():
        logits = trained.network(images).numpy()
    assert features.write(trained, "fc8", "val", tmp_path / "fc8.npy") == (200, 10)
    np.testing.assert_allclose(np.load(tmp_path / "fc8.npy"), logits, atol=1e-4)
    assert features.write(trained, "fc7", "val", tmp_path / "fc7.npy") == (200, 256)
    fc7 = np.load(tmp_path / "fc7.npy")
    assert fc7.dtype == np.float32
    assert fc7.min() == 0  # after ReLU
    weight, bias = (
        trained.network.get_parameter(f"fc8.{kind}").detach().numpy() for kind in ("weight", "bias")
    )
    np.testing.assert_allclose(fc7 @ weight.T + bias, logits, atol=1e-4)
    with np.load(tmp_path / "fc7.ids.npz") as beside:
        assert beside["ids"].tolist() == list(range(200))
        assert np.bincount(beside["labels"]).tolist() == [20] * 10
    assert not list(tmp_path.glob("*.tmp"))


def test_features_of_a_convolution_and_of_none(trained: TrainedNetwork, tmp_path: Path) -> None:
    samples, units = features.write(trained, "conv5", "val", tmp_path / "conv5.npy")
    own = trained.network.plan["conv5"]
    assert (samples, units) == (200, own.outputs * own.side**2)
    assert np.load(tmp_path / "conv5.npy", mmap_mode="r").shape == (200, units)
    with pytest.raises(GratisError, match=r"--layer conv6: this network has conv1, .*fc8"):
        features.write(trained, "conv6", "val", tmp_path / "none.npy")


def test_features_of_another_dataset_without_labels(
    run: Path, trained: TrainedNetwork, tmp_path: Path
) -> None:
    """The same stored images in a dataset of another mean have the same features."""
    asked = [3, 77, 150]
    index, split = trained.index("val"), trained.manifest.splits["val"]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for row in asked:
            place = (
                split.shards[index.shard[row]].name,
                int(index.offset[row]),
                int(index.size[row]),
            )
            (data,) = read_pieces(trained.shards, [place])
            info = tarfile.TarInfo(f"{row:03d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert python(*"-m gratis index --unlabelled".split(), str(tmp_path)).returncode == 0
    out = tmp_path / "other.npy"
    where = ["--run", str(run), "--images", str(tmp_path), "--split", "train", "--layer", "fc8"]
    done = python("-m", "gratis", "features", *where, str(out))
    assert done.returncode == 0, done.stderr
    features.write(trained, "fc8", "val", tmp_path / "own.npy")
    np.testing.assert_allclose(np.load(out), np.load(tmp_path / "own.npy")[asked], atol=1e-4)
    with np.load(tmp_path / "other.ids.npz") as beside:
        assert beside["labels"].tolist() == [-1] * 3


# exports


def plain(trained: TrainedNetwork, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images as users feed them, RGB 0-255, and the logits that the run's network gives
    their centre views."""
    views = centres(trained, "train")[:count]
    crop, margin = trained.recipe.crop, (trained.manifest.image_size - trained.recipe.crop) // 2
    mean = torch.from_numpy(trained.stats.mean)[
        margin : margin + crop, margin : margin + crop
    ].permute(2, 0, 1)
    with torch.inference_mode():
        logits = trained.network(views).numpy()
    return np.ascontiguousarray((views + mean).numpy()), logits


@pytest.mark.slow
def test_onnx_says_what_the_network_says(
    run: Path, trained: TrainedNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="needs onnxscript (make install ARGS=--extra)")
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="needs onnxruntime (make install ARGS=--extra)"
    )
    export(["--run", str(run), "--format", "onnx", str(tmp_path / "a.onnx")])
    assert "onnxruntime agrees on 3 images" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(
        str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"]
    )
    images, logits = plain(trained, 7)  # another number than it was traced with
    (output,) = session.run(["logits"], {"images": images})
    np.testing.assert_allclose(output, logits, atol=1e-4)
    properties = session.get_modelmeta().custom_metadata_map
    assert "RGB, 0-255, float32 [n,3,112,112]" in properties["input"]
    assert json.loads(properties["classes"])[:2] == [trained.name(0), trained.name(1)]
    assert json.loads(properties["recipe"])["width"] == 0.0625


def test_torchscript_says_what_the_network_says(
    run: Path, trained: TrainedNetwork, tmp_path: Path
) -> None:
    export(["--run", str(run), str(tmp_path / "a.pt")])
    code = """import sys, warnings; warnings.simplefilter("ignore")
import numpy as np, torch
extra = {"classes": ""}
network = torch.jit.load(sys.argv[1], _extra_files=extra)
np.save(sys.argv[3], network(torch.from_numpy(np.load(sys.argv[2]))).numpy())
print(extra["classes"].decode())"""
    images, logits = plain(trained, 7)
    np.save(tmp_path / "in.npy", images)
    done = subprocess.run(  # where nothing of this project can be imported
        [
            sys.executable,
            "-I",
            "-c",
            code,
            *(str(tmp_path / name) for name in ("a.pt", "in.npy", "out.npy")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), logits, atol=1e-4)
    assert json.loads(done.stdout)[0] == trained.name(0)


def test_safetensors_hold_all(run: Path, trained: TrainedNetwork, tmp_path: Path) -> None:
    export(["--run", str(run), str(tmp_path / "a.safetensors")])
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert set(file.keys()) == {"mean", *trained.network.state_dict()}
        np.testing.assert_array_equal(
            file.get_tensor("fc8.weight"), trained.network.state_dict()["fc8.weight"].numpy()
        )
        assert file.get_tensor("mean").shape == (3, 112, 112)
        assert json.loads(file.metadata()["recipe"])["towers"] == 2


def test_an_export_that_differs_is_not_kept_quiet(trained: TrainedNetwork) -> None:
    from gratis.train.analysis.deployment import DeploymentNetwork

    images, logits = plain(trained, 3)
    assert "agrees on 3 images" in compare(
        "itself", logits, DeploymentNetwork(trained).eval(), images
    )
    with pytest.raises(RuntimeError, match="itself and the network differ"):
        compare("itself", logits + 0.01, DeploymentNetwork(trained).eval(), images)


def test_exports_that_cannot_be_are_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(GratisError, match=r"has towers 1, this run 2: train --recipe torchvision"):
        export(["--run", str(run), str(tmp_path / "a.pth")])
    with pytest.raises(
        GratisError,
        match=r"a\.foo ends as no format does \(\.onnx for onnx, .*give one with --format",
    ):
        export(["--run", str(run), str(tmp_path / "a.foo")])
    assert not list(tmp_path.iterdir())
    with pytest.raises(GratisError, match="name a file in an existing folder"):
        Export(out=tmp_path / "none" / "a.onnx")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file grows over 20 kB: the error of writing is another one than a full disk's, and goes
    the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("form", ["safetensors", "torchscript"])
def test_an_export_without_room_is_one_line(run: Path, tmp_path: Path, form: str) -> None:
    with pytest.raises(GratisError, match=r"a\.out cannot be written"):
        export(["--run", str(run), "--format", form, str(tmp_path / "a.out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_disk")
def test_a_figure_without_room_leaves_the_one_of_before(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"before")
    figure = Figure()
    figure.figimage(np.random.default_rng(0).random((400, 400)))
    with pytest.raises(GratisError, match=r"a\.png cannot be written"):
        save(figure, tmp_path / "a.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


# the library that draws


@pytest.mark.starts
def test_drawing_leaves_pillow_simd_in_place(tmp_path: Path) -> None:
    """matplotlib asks for a package named Pillow, which would lie over pillow-simd: it is installed
    without asking."""
    simd = [name for name in ("pillow-simd", "pillow") if has(name)]
    assert len(simd) == 1, f"both lay the same files: {simd}"
    if simd == ["pillow"]:
        pytest.skip("needs pillow-simd, which could not be compiled here")
    code = f"""import PIL, PIL.Image, matplotlib.image
from matplotlib.figure import Figure
from gratis.train.analysis.plots import save, style
with style():
    save(Figure(), __import__("pathlib").Path({str(tmp_path)!r}) / "a.png")
print(PIL.__version__, "matplotlib.pyplot" in __import__("sys").modules)"""
    done = python("-W", "error", "-c", code)
    assert done.stdout.split() == [metadata.version("pillow-simd"), "False"], done.stderr
    assert ".post" in metadata.version("pillow-simd")


def has(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
