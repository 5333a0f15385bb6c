"""What is looked at of a trained network, by calls in the test's own process: responses,
probabilities, predictions, exports. `test_train_figures.py` has the same of a whole run."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handmade import as_validation, picture, write_dataset
from numpy.typing import NDArray
from one_rank import planned, run_alone
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.loader import Loader
from gratis.train.analysis import features, plots, summary
from gratis.train.analysis.deployment import (
    TENSORS,
    DeploymentNetwork,
    from_torchvision,
    to_torchvision,
)
from gratis.train.analysis.export import WRITE, Export, compare, examples, metadata
from gratis.train.analysis.export import main as export
from gratis.train.analysis.figure4 import choose, draw_guesses, draw_nearest, find
from gratis.train.analysis.figures import Figures, draw, figure_of, title
from gratis.train.analysis.plots import RED
from gratis.train.analysis.predict import main as predict
from gratis.train.analysis.run_options import RunOptions
from gratis.train.analysis.trained_network import (
    TrainedNetwork,
    last_launch,
    load,
    read_images,
    run_folder,
    ten_views,
)
from gratis.train.evaluate import evaluation_config
from gratis.train.metrics import average_views
from gratis.train.recipes import TORCHVISION

COUNT, CROP = 12, 56
OPTIONS = (
    *"--recipe released --image-size 64 --crop 56 --width 0.0625 --init he --batch 4".split(),
    *"--input-scale 0.015625 --classes 9 --epochs 1".split(),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("looking") / "shards"
    pictures = [picture(number) for number in range(COUNT)]
    return as_validation(write_dataset(root, pictures, codec="raw"))


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps."""
    runs = tmp_path_factory.mktemp("looked")
    assert run_alone(planned(runs, shards, *OPTIONS, "--run", "one")) == 0
    return runs / "one"


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedNetwork:
    return load(RunOptions(run=str(run)))


def centre(number: int) -> NDArray[np.float32]:
    """[3,crop,crop] of a picture, of which the mean of all is not yet taken."""
    return picture(number)[4:60, 4:60].astype(np.float32).transpose(2, 0, 1)


def mean() -> NDArray[np.float32]:
    return np.mean([centre(number) for number in range(COUNT)], axis=0).astype(np.float32)


def logits(trained: TrainedNetwork, *numbers: int) -> torch.Tensor:
    views = torch.from_numpy(np.stack([centre(number) - mean() for number in numbers]))
    with torch.inference_mode():
        return trained.network(views)


def test_a_run_is_loaded_as_it_was_saved(trained: TrainedNetwork, run: Path, shards: Path) -> None:
    saved = load_file(run / "checkpoints/step-00000003/network.safetensors")
    assert trained.weights.keys() == saved.keys()
    assert all(torch.equal(trained.weights[name], own) for name, own in saved.items())
    assert (trained.state.step, trained.state.epoch, trained.folder) == (3, 1, run)
    assert (trained.recipe.width, trained.shards) == (0.0625, str(shards))
    # two classes more than the dataset has
    assert [trained.name(label) for label in (0, 6, 7)] == ["class 0", "class 6", "class 7"]
    assert title(trained) == "one, step 3 (epoch 1 of 1), trained on 12 images of 7 classes"
    elsewhere = load(RunOptions(run="one", runs=run.parent, shards=f"{shards}/../shards"))
    assert elsewhere.shards == f"{shards}/../shards"


def test_the_run_that_was_saved_last_is_the_default(run: Path, tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "older", "oldest")):
        mark = tmp_path / name / "checkpoints" / "latest"
        mark.parent.mkdir(parents=True)
        mark.touch()
        os.utime(mark, (1000 - age, 1000 - age))
    assert run_folder(RunOptions(runs=tmp_path)) == tmp_path / "newest"
    assert run_folder(RunOptions(runs=run.parent, run="one")) == run
    with pytest.raises(GratisError, match="there is no run newest in"):
        run_folder(RunOptions(runs=tmp_path, run="newest"))  # it has no records
    with pytest.raises(GratisError, match="newest has not begun yet"):
        last_launch(tmp_path / "newest")
    (tmp_path / "newest" / "rank-0.jsonl").touch()
    (tmp_path / "newest" / "checkpoints" / "latest").unlink()
    with pytest.raises(GratisError, match="newest has no checkpoint yet"):
        load(RunOptions(runs=tmp_path, run="newest"))


def test_images_are_the_stored_ones_and_probabilities_those_of_evaluation(
    trained: TrainedNetwork, shards: Path
) -> None:
    pixels, labels = read_images(trained, "val", [11, 3])
    assert labels == [4, 3]
    for one, number in zip(pixels, (11, 3), strict=True):
        np.testing.assert_array_equal(one, picture(number))
    theirs: dict[int, NDArray[np.float64]] = {}
    with Loader(shards, "val", evaluation_config(trained.recipe, 10, 1)) as loader:
        for images, _, ids in loader:
            for row, sample in enumerate(ids.tolist()):
                views = trained.network(images[row].float())
                theirs[sample] = average_views(views, 10)[0].detach().numpy()
    assert ten_views(pixels[0], trained.recipe, trained.stats).dtype == np.float32
    found = trained.probabilities(pixels)
    np.testing.assert_allclose(found, [theirs[11], theirs[3]], atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1)


def test_images_come_in_order_and_no_more_than_are_asked_for(trained: TrainedNetwork) -> None:
    batches = [ids.tolist() for _, ids in trained.images("val", "")]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    few = [ids.tolist() for _, ids in trained.images("val", "", 5)]
    assert few == batches[:2]  # in whole batches


def test_responses_are_what_the_next_layer_reads(trained: TrainedNetwork) -> None:
    view = torch.from_numpy(centre(5) - mean())[None]
    weights = trained.weights
    with torch.inference_mode():
        conv1 = F.conv2d(
            F.pad(view, (0, 3, 0, 3)), weights["conv1.weight"] / 64, weights["conv1.bias"], 4
        )
        found = trained.network.responses("conv1", view)
        torch.testing.assert_close(found, conv1.relu().flatten(1), rtol=1e-4, atol=1e-5)
        fc7 = trained.network.responses("fc7", view)
        # halved by the dropout between
        fc8 = F.linear(fc7 / 2, weights["fc8.weight"], weights["fc8.bias"])
        torch.testing.assert_close(trained.network.responses("fc8", view), fc8)
    torch.testing.assert_close(fc8, logits(trained, 5), rtol=1e-4, atol=1e-5)


def test_features_are_written_by_sample(trained: TrainedNetwork, tmp_path: Path) -> None:
    assert features.write(trained, "fc8", "val", tmp_path / "a.npy") == (COUNT, 9)
    written = np.load(tmp_path / "a.npy")
    np.testing.assert_allclose(written, logits(trained, *range(COUNT)).numpy(), atol=1e-4)
    with np.load(tmp_path / "a.ids.npz") as beside:
        assert beside["ids"].tolist() == list(range(COUNT))
        assert beside["labels"].tolist() == [number % 7 for number in range(COUNT)]
    own = trained.network.plan["conv5"]
    assert features.write(trained, "conv5", "val", tmp_path / "b.npy") == (
        COUNT,
        own.outputs * own.side**2,
    )
    with pytest.raises(GratisError, match=r"--layer conv6: this network has conv1, .*fc8$"):
        features.write(trained, "conv6", "val", tmp_path / "c.npy")


def test_features_are_written_by_command(
    run: Path, trained: TrainedNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_dataset(tmp_path / "other", [picture(n) for n in (3, 7)], codec="raw")
    out = tmp_path / "a.npy"
    where = ["--run", str(run), "--images", str(other), "--split", "train", "--layer", "fc8"]
    features.main([*where, str(out)])
    np.testing.assert_allclose(np.load(out), logits(trained, 3, 7).numpy(), atol=1e-4)
    told = f"{out}: fc8 of 2 train images, float32 [2, 9]; ids and labels in {tmp_path}/a.ids.npz"
    assert capsys.readouterr().out == f"{told}\n"
    features.main(["--run", str(run), str(out)])
    assert np.load(out).shape == (COUNT, 256)  # fc7 of validation
    with pytest.raises(GratisError, match=r"a\.txt must end in \.npy"):
        features.Features(out=tmp_path / "a.txt")
    with pytest.raises(GratisError, match="none is no folder; make it, or choose another OUT"):
        features.Features(out=tmp_path / "none" / "a.npy")


def test_figures_are_of_the_network_and_its_records(
    run: Path, trained: TrainedNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    below, options = title(trained), Figures(run="one", search=COUNT)
    conv1 = figure_of("conv1", trained, options)
    assert conv1.axes[0].get_title("left") == below
    weight = trained.weights["conv1.weight"].double().numpy()
    colour = weight - weight.mean(1, keepdims=True)
    energies = [(own**2).sum((1, 2, 3)) for own in (colour, weight)]
    shares = np.split(energies[0] / energies[1], 2)
    told = ", ".join(f"tower {tower} {own.mean():.3f}" for tower, own in enumerate(shares))
    assert capsys.readouterr().out == (
        f"colour-specialisation score (0 grey, 1 colour, 0.67 noise): {told}\n"
    )
    for name in ("curves", "rates"):
        figure = figure_of(name, trained, options)
        (line,) = [one for one in figure.axes[0].lines if "recorded" in str(one.get_label())] or [
            one for one in figure.axes[0].lines if one.get_label() == "training"
        ]
        assert line.get_xdata()[-1] == 1.0  # the end of the only epoch
        assert figure.axes[0].get_title("left") == below


def test_guesses_are_drawn_below_their_images(trained: TrainedNetwork) -> None:
    """Of eight, of which seven are of a class each, five guesses in the order of probability."""
    samples = choose(trained, 8, 0)
    labels = [sample % 7 for sample in samples]
    assert len(samples) == len({*samples}) == 8
    assert {*labels[:7]} == {*range(7)}
    assert choose(trained, 8, 1) != samples
    axes = draw_guesses(trained, samples, "a run").axes
    # two rows of four images, each above its bars
    for place, (sample, label) in enumerate(zip(samples, labels, strict=True)):
        image = axes[place + 4 * (place // 4)]
        bars = axes[place + 4 * (place // 4) + 4]
        assert image.get_title() == f"class {label}"
        np.testing.assert_array_equal(image.images[0].get_array(), picture(sample))
        own = trained.probabilities([picture(sample)])[0]
        best = sorted(range(9), key=lambda guess: -own[guess])[:5]
        texts = [text.get_text() for text in bars.texts]
        assert texts[::2] == [f"class {guess}" for guess in best]
        assert texts[1::2] == [f"{own[guess]:.0%}" for guess in best]
        widths = [bar.get_width() for bar in bars.patches]
        np.testing.assert_allclose(widths, [own[guess] for guess in best])


def test_the_nearest_training_image_is_the_same_picture(trained: TrainedNetwork) -> None:
    """Validation has the same pictures; by the layer's responses and by pixels."""
    by_layer, by_pixels, searched = find(trained, [picture(5), picture(9)], "fc7", 100)
    assert searched == COUNT
    assert by_layer.ids[:, 0].tolist() == by_pixels.ids[:, 0].tolist() == [5, 9]
    centres = np.stack([centre(number) for number in range(COUNT)]).reshape(COUNT, -1)
    order = ((centres - centres[5]) ** 2).sum(1).argsort()[:6]
    assert by_pixels.ids[0].tolist() == order.tolist()
    figure = draw_nearest(trained, [5, 9], "fc7", 8, "a run")
    assert figure.get_suptitle() == "a run; 8 of them searched; red: another class\n"
    first = figure.axes[:16]  # the query, a gap, six by the layer, a gap, six by pixels
    nearest = find(trained, [picture(5)], "fc7", 8)
    for begin, own in ((2, nearest[0]), (9, nearest[1])):
        titles = [axes.get_title() for axes in first[begin : begin + 6]]
        assert titles == [f"class {sample % 7}" for sample in own.ids[0].tolist()]
        colours = [axes.title.get_color() for axes in first[begin : begin + 6]]
        same = ["black" if name == "class 5" else RED for name in titles]
        assert colours == same


def test_only_what_is_asked_for_is_drawn(
    run: Path, trained: TrainedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "DPI", 20)
    assert draw(Figures(run=str(run), only=("rates",))) == [run / "figures" / "rates.png"]
    assert draw(Figures(run=str(run), only=("curves",), out=tmp_path)) == [tmp_path / "curves.png"]
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.format == "PNG"
    for wrong, message in (
        ({"only": ()}, "--only needs at least one of conv1, top5"),
        ({"search": 0}, "--search 0 must be at least 1"),
    ):
        with pytest.raises(GratisError, match=message):
            Figures(**wrong)  # type: ignore[arg-type]


def test_another_dataset_s_images_are_seen_less_the_trained_mean(
    trained: TrainedNetwork, tmp_path: Path
) -> None:
    """The same pictures where the mean is another have the same features."""
    other = write_dataset(tmp_path / "other", [picture(n) for n in (3, 7)], codec="raw")
    theirs = trained.with_images_of(str(other))
    features.write(theirs, "fc8", "train", tmp_path / "a.npy")
    expected = logits(trained, 3, 7).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, atol=1e-4)
    large = write_dataset(tmp_path / "large", [picture(n, 128) for n in (3, 7)])
    with pytest.raises(GratisError, match="128-pixel images, the run was trained on 64: make"):
        trained.with_images_of(str(large))


def test_guesses_are_printed_by_their_probability(
    run: Path, trained: TrainedNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five of nine; a file that is no image costs its message, and exit code 2 at the end."""
    Image.fromarray(picture(3)).save(tmp_path / "a.png")
    Image.fromarray(picture(3)).convert("L").save(tmp_path / "grey.png")
    (tmp_path / "odd.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").touch()
    os.truncate(tmp_path / "large.png", (64 << 20) + 1)  # of holes
    files = ("a.png", "odd.png", "none.png", "grey.png", "pipe.png", "large.png")
    names = [str(tmp_path / name) for name in files]
    with pytest.raises(GratisError, match="4 of 6 images could not be read"):
        predict([*names, "--run", str(run)])
    out, err = capsys.readouterr()
    assert err.splitlines()[:3] == [
        f"{names[2]}: No such file or directory",
        f"{names[4]}: not a regular file",
        f"{names[5]}: 67,108,865 bytes; the limit is 67,108,864",
    ]
    assert [line.split(":")[0] for line in err.splitlines()[3:]] == [names[1]]
    probabilities = trained.probabilities([picture(3)])[0]
    best = sorted(range(9), key=lambda label: -probabilities[label])[:5]
    lines = out.splitlines()
    assert lines[0] == f"run {run}, step 3: 9 classes, ten views"
    assert lines[1:7] == [
        names[0],
        *(f"  {probabilities[label]:6.1%}  class {label}" for label in best),
    ]
    assert lines[7] == f"{names[3]} (grey)"
    assert len(lines) == 13


def test_what_is_exported_takes_plain_images(
    run: Path, trained: TrainedNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = DeploymentNetwork(trained).eval()
    plain = np.stack([centre(number) for number in range(3)])
    np.testing.assert_array_equal(examples(trained), plain)
    found = network(torch.from_numpy(plain)).numpy()
    np.testing.assert_allclose(found, logits(trained, 0, 1, 2).numpy(), atol=1e-5)
    assert compare("itself", found, network, plain).startswith("itself agrees on 3 images to ")
    large = max(1.0, float(np.abs(found).max()))
    assert "agrees" in compare("itself", found + 0.9e-4 * large, network, plain)
    with pytest.raises(RuntimeError, match="itself and the network differ: logits off by"):
        compare("itself", found + 1.2e-4 * large, network, plain)
    out = tmp_path / "a.safetensors"
    export(["--run", str(run), str(out)])
    assert "16 tensors by this project's names, and the mean" in capsys.readouterr().out
    with safe_open(out, framework="pt") as file:
        assert {*file.keys()} == {"mean", *trained.weights}
        np.testing.assert_allclose(file.get_tensor("mean").numpy(), mean(), atol=1e-3)
        told = file.metadata()
    assert told == metadata(trained)
    assert "float32 [n,3,56,56]: the shorter side resized to 64, of which" in told["input"]
    assert json.loads(told["classes"]) == [f"class {label}" for label in range(9)]
    assert json.loads(told["wnids"]) == [f"n{label:08d}" for label in range(7)]
    assert (told["dataset"], told["step"]) == (trained.manifest.hash, "3")
    with pytest.raises(GratisError, match=r"a\.foo ends as no format does"):
        Export(out=tmp_path / "a.foo")
    assert Export(out=tmp_path / "a.foo", format="onnx").format == "onnx"
    for wrong in (tmp_path, tmp_path / "none" / "a.pt"):
        with pytest.raises(GratisError, match="is a folder or in none"):
            Export(out=wrong, format="onnx")


def test_what_is_exported_computes_in_float32(trained: TrainedNetwork) -> None:
    half = replace(trained.launch, recipe=replace(trained.recipe, compute="bfloat16"))
    plain = torch.from_numpy(np.stack([centre(number) for number in range(2)]))
    found = DeploymentNetwork(replace(trained, launch=half)).eval()(plain)
    torch.testing.assert_close(found, logits(trained, 0, 1), rtol=1e-4, atol=1e-5)


def test_a_torchvision_file_has_its_mean_beside_it(tmp_path: Path) -> None:
    mean = np.arange(8 * 8 * 3, dtype=np.float32).reshape(8, 8, 3)
    recipe = SimpleNamespace(**vars(TORCHVISION) | {"crop": 4, "input_scale": 0.5})
    weights = {name: torch.full((2, 3, 1, 1), 8.0) for name in TENSORS.values()}
    own: Any = SimpleNamespace(recipe=recipe, weights=weights, stats=SimpleNamespace(mean=mean))
    told = WRITE["torchvision"](own, tmp_path / "a.pth.1234.tmp")
    assert told == f"feed it RGB 0-255 float32 [n,3,4,4] minus {tmp_path}/a.mean.npy"
    beside = np.load(tmp_path / "a.mean.npy")
    np.testing.assert_array_equal(beside, mean[2:6, 2:6].transpose(2, 0, 1))
    state = torch.load(tmp_path / "a.pth.1234.tmp")
    assert {*state} == {*TENSORS}
    assert (state["features.0.weight"] == 4).all()


def test_a_state_dict_is_torchvision_s() -> None:
    """Scale and order of colours go into the first weight; where test halves what dropout leaves,
    the weights that read it are halved."""
    weights = {name: torch.full((2, 3, 1, 1), 8.0) for name in TENSORS.values()}
    weights["conv1.weight"] = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    recipe = replace(TORCHVISION, input_scale=0.5)
    state = to_torchvision(recipe, weights)
    assert {*state} == {*TENSORS}
    assert state["features.0.weight"].flatten().tolist() == [0.5, 1.0, 2.0]
    assert all((value == 8).all() for name, value in state.items() if name != "features.0.weight")
    back = from_torchvision(state)
    assert back.keys() == weights.keys()
    assert back["fc7.bias"] is state["classifier.4.bias"]
    bgr = to_torchvision(replace(recipe, channel_order="bgr"), weights)
    assert bgr["features.0.weight"].flatten().tolist() == [2.0, 1.0, 0.5]
    for place, halved in (("before", {1, 4}), ("after", {4, 6})):
        own = replace(recipe, dropout="original", dropout_place=place)  # type: ignore[arg-type]
        found = to_torchvision(own, weights)
        names = {f"classifier.{number}.weight" for number in halved}
        assert {name for name, value in found.items() if (value == 4).all()} == names
    assert (weights["fc7.weight"] == 8).all()  # the run's own are not touched
    with pytest.raises(GratisError, match="torchvision's AlexNet has lrn False, this run True"):
        to_torchvision(replace(recipe, lrn=True), weights)
    for change, why in (({"x": weights["fc7.bias"]}, "x is not of it"), (None, "is missing")):
        wrong = state | change if change else {k: v for k, v in state.items() if "6.b" not in k}
        with pytest.raises(GratisError, match=why):
            from_torchvision(wrong)


def test_a_summary_has_the_specification_s_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    summary.main([])
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    heads = [[cell.strip() for cell in line.split("┃")[1:-1]] for line in text.splitlines()]
    assert [head for head in heads if head] == [
        ["layer", "weight", "output", "passes on", "parameters", "multiplications", "reads"],
        ["from", "to", "elements an image", "forward", "backward", "2012, forward"],
    ]
    layers = {row[0]: row[1:] for row in rows if len(row) == 7}
    assert layers["conv1"] == [
        *("96x3x11x11", "96x55x55", "96x27x27", "34,944", "105,415,200", "image")
    ]
    assert layers["conv2"][-1] == "own tower"
    assert layers["fc6"] == ["4096x9216", "4096", "4096", "37,752,832", "37,748,736", "all"]
    sent = {row[1]: row for row in rows if len(row) == 6}
    # 43,264 elements of 4 bytes for each of 128 images
    assert sent["conv3"] == ["pool2", "conv3", "43,264", "22.15 MB", "22.15 MB", "22.15 MB"]
    assert sent["fc8"] == ["fc7", "fc8", "4,096", "2.10 MB", "2.10 MB", "1.05 MB"]
    assert sent["images"][3:] == ["77.07 MB", "-", "-"]
    assert "60,965,224 parameters; 724,406,816 multiplications per image forward" in text
    assert "4.136 GFLOP to train it" in text
    assert "of 2012's rows: both ways 468,992 bytes an image, 60.03 MB a batch" in text
    summary.main(["--recipe", "owt", "--classes", "10"])
    text = capsys.readouterr().out
    assert "between the towers" not in text
    assert "57,044,810 parameters" in text  # 61,100,840 less 990 rows of 4,097


def test_the_dataset_of_a_run_is_the_one_it_was_trained_on(
    run: Path, shards: Path, jpeg_dataset: Path
) -> None:
    assert read_manifest(jpeg_dataset).hash != read_manifest(shards).hash
    with pytest.raises(GratisError, match="dataset"):
        load(RunOptions(run=str(run), shards=str(jpeg_dataset)))
    with pytest.raises(GratisError, match=r"which is not there; name it with --shards"):
        load(RunOptions(run=str(run), shards=f"{shards}/none"))
