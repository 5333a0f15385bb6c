"""The examples for other libraries, and timm's and torchvision's own training programs with their
five lines, run by the real ones in an environment of their own.

The programs are no packages: they are fetched from where their authors keep them, or lie in the
folder that GRATIS_PROGRAMS names (timm/train.py, torchvision/train.py and so on). GRATIS_VENV names
an environment to use instead of one that is made here."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from once import once

ROOT = Path(__file__).resolve().parents[2]
PINS = (
    "torch==2.14.1 torchvision==0.29.1 timm==1.0.28 accelerate==1.15.0 keras==3.15.1 jax==0.10.2"
    " torchmetrics==1.9.0 torchdata==0.11.0 numpy==2.4.6"
).split()
FILES = "https://raw.githubusercontent.com"
PROGRAMS = {  # folder there, files, the first one's sha256
    "timm": (
        f"{FILES}/huggingface/pytorch-image-models/v1.0.28",
        ["train.py"],
        "1fb02d26fe16536bc7de2c987980644353117c2b2b8046532261464093cd1ac6",
    ),
    "torchvision": (
        f"{FILES}/pytorch/vision/v0.21.0/references/classification",
        ["train.py", "presets.py", "sampler.py", "transforms.py", "utils.py"],
        "50e351e18f825fe8c87ba1cf0182c93b66f7351dab4588d20acdd5962a1076b9",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_at_most_five_lines_are_changed(name: str) -> None:
    lines = (ROOT / f"examples/{name}_train.diff").read_text().splitlines()
    for sign in "+-":
        changed = [line for line in lines if line[:1] == sign and line[:3] != 3 * sign]
        assert 1 <= len(changed) <= 5, changed


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the libraries above, and for the rest what this one has."""
    if given := os.environ.get("GRATIS_VENV"):
        return Path(given) / "bin/python"
    return once(tmp_path_factory, "outside", make_environment) / "bin/python"


def make_environment(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin/python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS], check=True)
    tested = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    # after its own packages: what both have is its own
    lines = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(tested)]
    (Path(packages.stdout.strip()) / "zz_tested.pth").write_text("\n".join(lines) + "\n")


def run(python: Path, folder: Path, *arguments: str, errors: bool = True) -> str:
    """What the program prints, its log too if asked for; on one thread, on the CPU."""
    paths = [str(path) for path in (ROOT, ROOT / "examples", Path(__file__).parent)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + (done.stderr if errors else "")


def patched(name: str, folder: Path) -> None:
    """The program in the folder, with the lines of examples/."""
    address, files, sha256 = PROGRAMS[name]
    for file in files:
        if given := os.environ.get("GRATIS_PROGRAMS"):
            data = Path(given, name, file).read_bytes()
        else:
            try:
                with urllib.request.urlopen(f"{address}/{file}", timeout=30) as answer:
                    data = answer.read()
            except urllib.error.URLError as error:
                pytest.skip(f"needs {address}/{file}: {error.reason}")
        (folder / file).write_bytes(data)
    assert hashlib.sha256((folder / "train.py").read_bytes()).hexdigest() == sha256
    diff = str(ROOT / f"examples/{name}_train.diff")
    subprocess.run(["git", "apply", diff], cwd=folder, check=True)


@pytest.mark.prove
@pytest.mark.parametrize("mixed", [False, True])
def test_timm_trains(outside: Path, sample_shards: Path, tmp_path: Path, mixed: bool) -> None:
    """It learns the ten drawn classes, chance being 10 %; mixed labels are taken too. --resume goes
    on with the next epoch."""
    patched("timm", tmp_path)
    program = f"""train.py --data-dir {sample_shards} --train-split train --val-split val
        --model test_resnet --num-classes 10 --img-size 64 --scale 0.5 1 --batch-size 50
        --device cpu --opt adamw --lr 0.003 --warmup-epochs 0 --seed 1 --epochs 3""".split()
    if mixed:
        program += "--mixup 0.2 --cutmix 1.0 --smoothing 0.1".split()
    output = run(outside, tmp_path, *program, "--output", "out", "--experiment", "one")
    rows = (tmp_path / "out/one/summary.csv").read_text().splitlines()
    top1 = [float(row.split(",")[rows[0].split(",").index("eval_top1")]) for row in rows[1:]]
    print(top1)
    assert len(top1) == 3
    assert max(top1) > 20
    # 20 batches of training, 4 of validation, counted from 0
    assert re.search(r"Train: 2 .*\b19/20\b", output)
    assert re.search(r"Test: .*\b3/3\b", output)
    if not mixed:
        again = [*program[:-1], "4", "--resume", "out/one/last.pth.tar", "--output", "out"]
        again = run(outside, tmp_path, *again, "--experiment", "two")
        assert re.search(r"Train: 3 .*\b19/20\b", again)
        assert "Train: 2 " not in again


@pytest.mark.prove
@pytest.mark.parametrize("mixed", [False, True])
def test_torchvisions_reference_trains(
    outside: Path, sample_shards: Path, tmp_path: Path, mixed: bool
) -> None:
    """It learns the ten drawn classes, chance being 10 %; mixed labels are taken too. Its own check
    of the number of validation images is silent."""
    patched("torchvision", tmp_path)
    program = f"""train.py --data-path {sample_shards} --model resnet18 --device cpu
        --train-crop-size 64 --val-crop-size 64 --batch-size 50 --opt adamw --lr 0.001 --workers 2
        --epochs {1 if mixed else 5}""".split()
    if mixed:
        program += "--mixup-alpha 0.2 --cutmix-alpha 1.0 --label-smoothing 0.1".split()
    output = run(outside, tmp_path, *program)
    top1 = [float(value) for value in re.findall(r"Test: +Acc@1 ([\d.]+)", output)]
    print(top1)
    assert "It looks like the dataset has" not in output
    assert len(re.findall(r"Epoch: \[\d\] +\[10/20\]", output)) == len(top1) == (1 if mixed else 5)
    assert mixed or max(top1) > 20


def script(python: Path, folder: Path, text: str) -> dict[str, object]:
    """What a program prints last, as JSON."""
    (folder / "program.py").write_text(textwrap.dedent(text))
    output = run(python, folder, "program.py", errors=False)
    last: dict[str, object] = json.loads(output.splitlines()[-1])
    return last


@pytest.mark.prove
def test_accelerate_trains_and_resumes_inside_an_epoch(
    outside: Path, sample_shards: Path, tmp_path: Path
) -> None:
    """The weights after 26 steps are the same with and without an interruption after the last
    checkpoint; what `prepare` and `skip_first_batches` make of the loader in torch's DataLoader are
    its batches."""
    result = script(
        outside,
        tmp_path,
        f"""
        import json, shutil, torch, with_accelerate
        from accelerate import Accelerator, skip_first_batches
        from gratis.torch import DataLoader, LoaderConfig, ShardDataset
        from resnet import resnet18

        def dataset():
            return ShardDataset({str(sample_shards)!r}, "train", LoaderConfig.imagenet(crop=32))

        def train(folder, epochs):
            torch.manual_seed(1)
            network = resnet18(10, width=8)
            with_accelerate.train(
                network, dataset(), 50, epochs=epochs, folder=folder, save_every=13)
            return network.state_dict()

        class Interrupted(Exception):
            pass

        def interrupted(*_, **__):
            interrupted.calls += 1
            if interrupted.calls == 16:  # three steps after the checkpoint
                raise Interrupted
            return cross_entropy(*_, **__)

        whole = train("whole", 2)
        cross_entropy, with_accelerate.cross_entropy = with_accelerate.cross_entropy, interrupted
        interrupted.calls = 0
        try:
            train("parts", 2)
        except Interrupted:
            pass
        with_accelerate.cross_entropy = cross_entropy
        parts = train("parts", 2)
        same = all(torch.equal(value, parts[name]) for name, value in whole.items())

        accelerator = Accelerator()
        loader = DataLoader(dataset(), 50)
        prepared = accelerator.prepare(torch.utils.data.DataLoader(loader, batch_size=None))
        expected = [list(DataLoader(dataset(), 50)) for _ in range(1)][0]
        first = [labels.tolist() for _, labels in prepared]
        loader.set_epoch(0)
        prepared.set_epoch(0)
        rest = [labels.tolist() for _, labels in skip_first_batches(prepared, 13)]
        expected = [labels.tolist() for _, labels in expected]
        print(json.dumps({{"same": same, "interrupted": interrupted.calls, "all": first == expected,
            "rest": rest == expected[13:], "steps": len(expected),
            "itself": accelerator.prepare(loader) is loader}}))
        """,
    )
    expected = {"same": True, "all": True, "rest": True, "itself": True}
    assert result == expected | {"interrupted": 16, "steps": 20}


@pytest.mark.prove
def test_keras_on_torch_trains(outside: Path, sample_shards: Path, tmp_path: Path) -> None:
    """It learns the ten drawn classes, chance being 10 %, and counts 200 validation images."""
    result = script(
        outside,
        tmp_path,
        f"""
        import json, with_keras, keras
        keras.utils.set_random_seed(1)
        layers = keras.layers
        model = keras.Sequential([
            keras.Input((64, 64, 3)),
            layers.Conv2D(16, 5, 2, activation="relu"), layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(2),
            layers.Flatten(), layers.Dense(10),
        ])
        history = with_keras.train(model, {str(sample_shards)!r}, 50, epochs=3, crop=64).history
        _, validation = with_keras.loaders({str(sample_shards)!r}, 64, 64)
        perfect = [(len(labels), tuple(images.shape[1:])) for images, labels in validation]
        print(json.dumps({{"val": history["val_accuracy"], "rows": perfect,
            "steps": len(with_keras.loaders({str(sample_shards)!r}, 50, 64)[0]),
            "backend": keras.backend.backend()}}))
        """,
    )
    print(result)
    assert result["backend"] == "torch"
    assert result["rows"] == [[64, [64, 64, 3]]] * 3 + [[8, [64, 64, 3]]]
    assert result["steps"] == 20
    assert max(result["val"]) > 0.2  # type: ignore[call-overload]


@pytest.mark.prove
def test_jax_trains_and_its_arrays_stay(outside: Path, sample_shards: Path, tmp_path: Path) -> None:
    """Arrays that `device_put` makes of 16 batches, some of them without a copy, hold at the end
    what they held when they came; the losses are those of the same training in NumPy."""
    result = script(
        outside,
        tmp_path,
        f"""
        import json, itertools, numpy as np, with_jax
        from gratis.torch import DataLoader, LoaderConfig, ShardDataset
        shards = {str(sample_shards)!r}
        held, copies = [], []
        for images, labels in itertools.islice(with_jax.batches(shards, 50, 64), 16):
            held.append((images, labels))
            copies.append((np.array(images, copy=True), np.array(labels, copy=True)))
        changed = sum(not all(map(np.array_equal, *pair)) for pair in zip(held, copies))
        config = LoaderConfig.imagenet(crop=64, layout="nhwc")
        loader = DataLoader(ShardDataset(shards, "train", config), 50)
        fresh = [(images.numpy().copy(), labels.numpy()) for images, labels in loader]
        right = sum(all(map(np.array_equal, *pair)) for pair in zip(held, fresh))
        losses = with_jax.train(shards, 10, 20, 50, 64)
        weights, expected = np.zeros((64 * 64 * 3, 10)), []
        for images, labels in fresh:
            rows = images.reshape(50, -1).astype(np.float64)
            odds = np.exp(rows @ weights)
            chances = odds / odds.sum(1, keepdims=True)
            expected.append(-np.log(chances[np.arange(50), labels]).mean())
            weights -= 1e-4 / 50 * rows.T @ (chances - np.eye(10)[labels])
        error = np.abs(np.subtract(losses, expected)).max()
        print(json.dumps({{"changed": changed, "right": right, "steps": len(losses),
            "error": float(error), "range": float(np.ptp(losses))}}))
        """,
    )
    error, values = result.pop("error"), result.pop("range")
    assert result == {"changed": 0, "right": 16, "steps": 20}
    assert isinstance(error, float)
    assert error < 1e-4
    assert isinstance(values, float)
    assert values > 1e-2


@pytest.mark.prove
def test_stateful_dataloader_and_timms_accuracy(
    outside: Path, sample_shards: Path, tmp_path: Path
) -> None:
    """torchdata's StatefulDataLoader resumes after 7 of 20 batches; a perfect model is always right
    by timm's accuracy, over 200 images in batches of 64."""
    result = script(
        outside,
        tmp_path,
        f"""
        import json, torch
        from timm.utils import AverageMeter, accuracy
        from torchdata.stateful_dataloader import StatefulDataLoader
        from gratis.torch import DataLoader, LoaderConfig, ShardDataset

        def stateful():
            dataset = ShardDataset({str(sample_shards)!r}, "train", LoaderConfig.imagenet(crop=32))
            return StatefulDataLoader(DataLoader(dataset, 50), batch_size=None)

        expected = [labels.tolist() for _, labels in stateful()]
        loader, taken = stateful(), []
        for _, labels in loader:
            taken.append(labels.tolist())
            if len(taken) == 7:
                state = loader.state_dict()
                break
        other = stateful()
        other.load_state_dict(state)
        rest = [labels.tolist() for _, labels in other]
        dataset = ShardDataset({str(sample_shards)!r}, "val", LoaderConfig.evaluation(crop=32))
        meter = AverageMeter()
        for _, labels in DataLoader(dataset, 64):
            logits = torch.nn.functional.one_hot(labels, 10).float()
            meter.update(accuracy(logits, labels)[0].item(), len(labels))
        print(json.dumps({{"resumed": taken + rest == expected, "steps": len(expected),
            "top1": meter.avg, "images": meter.count}}))
        """,
    )
    assert result == {"resumed": True, "steps": 20, "top1": 100, "images": 200}
