"""Does what the device computes run at all, and is it right? Its decoder beside the CPU's, the
loader's graph beside the CPU's passes, which decoder takes which files, and the tests marked gpu.

On a CPU the graph for GPUs is run there, and the tests marked gpu are counted as skipped."""

from __future__ import annotations

import importlib.util
import io
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.report import decoders
from benchmarks.report.plan import Measurement
from benchmarks.report.results import Result
from benchmarks.report.setting import Setting, prepare
from gratis.image import decode as decode_by_pillow
from gratis.loader import GPU_DECODER, Batch, Loader, LoaderConfig
from gratis.loader.decoding import gpu
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.reading.batch_reader import BatchReader
from gratis.loader.reading.quarantine import Quarantine

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = {
    "loader": (
        "tests/loader/test_loader_gpu.py",
        "tests/loader/test_loader_native_gpu.py",
        "tests/loader/test_loader_views.py",
        "tests/loader/test_loader_decoded.py",
        "tests/loader/test_operations_torch.py",
    ),
    "training": (
        "tests/benchmarks/test_report.py",
        "tests/benchmarks/test_bench_train.py",
        "tests/train/test_train_gpu.py",
    ),
}
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}  # Pillow's numbers
PYTEST_S = {True: 40.0, False: 200.0}
SAVE_S = 15.0  # for pytest to write down what it has, once it is asked to end
BATCH, BATCHES = 16, 2
# Of a GPU's decoder from the CPU's, in grey levels: test_loader_views.py has the sum
LEVELS = {"mean": 1.0, "largest": 8.0}
ALEXNET = LoaderConfig.alexnet
# name -> configuration and, where it is not JPEGs that are decoded anew, which shards
GRAPHS: dict[str, tuple[LoaderConfig, bool]] = {
    "plain crop": (LoaderConfig(), False),
    "resized crop": (LoaderConfig.imagenet(), False),
    "AlexNet's, with noise": (ALEXNET(), False),
    "mean at the same offset": (ALEXNET(mean="offset"), False),
    "channels last, bfloat16": (ALEXNET(layout="channels_last", dtype=torch.bfloat16), False),
    "nhwc, bytes": (LoaderConfig(normalize=None, dtype=torch.uint8, layout="nhwc"), False),
    "central crop": (LoaderConfig.evaluation(), False),
    "ten views": (LoaderConfig.evaluation(views=10), False),
    "raw pixels": (ALEXNET(), True),
    "raw pixels, resized crop": (LoaderConfig.imagenet(), True),
}
# fields of LoaderConfig with which a GPU has other ways to the same batches
WAYS: dict[str, dict[str, Any]] = {
    "decoded by the engine": {"engine": "native"},
    "kept on the device": {"decoded": "device"},
    "kept in the machine's memory": {"decoded": "host"},
}


def measurements(*, cuda: bool) -> list[Measurement]:
    rows = [Measurement("a", "datasets are made", datasets, 30 if cuda else 15)]
    for name in (*SUBSAMPLINGS, "grey"):
        others = "DALI on the device against the CPU" if cuda else "DALI against Pillow"
        make = partial(decoding, kind=name)
        rows.append(Measurement("a", f"decoder, {name}: {others}", make, 2 if cuda else 1))
    for load, words in {0.0: "", **({1.0: ", if offered to the hardware"} if cuda else {})}.items():
        make = partial(decoders.taken, hardware_load=load)
        rows.append(Measurement("a", f"which decoder takes the files{words}", make, 6))
    for name in GRAPHS:
        make = partial(levels, name=name, fields={})
        rows.append(Measurement("a", f"graph, {name}", make, 2 if cuda else 1))
    for way, fields in WAYS.items() if cuda else ():
        for name in ("AlexNet's, with noise", "resized crop"):
            if (way, name) != ("kept on the device", "resized crop"):
                make = partial(levels, name=name, fields=fields)
                rows.append(Measurement("a", f"graph, {name}, {way}", make, 2))
    for what, files in FILES.items():
        make = partial(run_tests, files=files)
        name = f"quick tests marked gpu, {what}"
        rows.append(Measurement("a", name, make, 18 if cuda else 6, "pytest"))
    return rows


def datasets(setting: Setting) -> Result:
    prepare(setting)
    train = setting.manifest.splits["train"]
    return {
        "images": float(train.samples),
        "bytes an image": sum(shard.bytes for shard in train.shards) / train.samples,
    }


def levels(setting: Setting, *, name: str, fields: dict[str, Any]) -> Result:
    """Grey levels between the device's batches and those of the CPU. RuntimeError where ids or
    labels differ, or pixels by more than decoders do."""
    config, raw = GRAPHS[name]
    config = replace(config, batch_size=BATCH, crop=setting.recipe.crop, threads=2)
    root = setting.raw if raw else setting.jpeg
    with ExitStack() as stack:
        cpu = stack.enter_context(Loader(root, "train", config))
        if setting.cuda:
            own = replace(config, **fields)
            loader = stack.enter_context(Loader(root, "train", own, device=setting.device))
            mine: Iterator[Batch] = iter(loader)
        else:
            mine = graph_on_cpu(cpu)
        pairs = islice(zip(mine, cpu, strict=False), BATCHES)
        return compared(pairs, config, exact=raw and config.area is None)


def compared(pairs: Iterator[tuple[Batch, Batch]], config: LoaderConfig, *, exact: bool) -> Result:
    largest, means, per_level = 0.0, list[float](), LEVEL_OF[config.normalize == "imagenet"]
    for a, b in pairs:
        if not torch.equal(a.ids, b.ids) or not torch.equal(a.labels.cpu(), b.labels):
            raise RuntimeError("ids or labels are not those of the CPU")
        if a.images.stride() != b.images.stride() or a.images.dtype != b.images.dtype:
            raise RuntimeError(f"images are {a.images.dtype} {a.images.stride()}, not the CPU's")
        apart = (a.images.cpu().double() - b.images.double()).abs() * per_level
        largest, means = max(largest, float(apart.max())), [*means, float(apart.mean())]
    narrow = config.dtype == torch.bfloat16  # beyond 128 levels neighbours are 1 apart
    most = 1e-2 + narrow if exact else LEVELS["largest"]
    if largest > most or np.mean(means) > LEVELS["mean"]:
        raise RuntimeError(f"{largest:.3g} levels apart, {np.mean(means):.3g} in the mean")
    return {"largest difference, levels": largest, "mean": float(np.mean(means))}


LEVEL_OF = {
    True: 255 * 0.229,
    False: 1.0,
}  # levels to a unit, by whether ImageNet's deviation divides


def graph_on_cpu(loader: Loader) -> Iterator[Batch]:
    """Batches by the graph for GPUs, run on the CPU."""
    plan, shards, timer = loader.epoch_plan(0), loader.shard_reader(), StageTimer()
    try:
        reader = BatchReader(shards, timer, Quarantine(0, loader.num_samples, allowed=False))
        runner = DaliRunner(timer, reader)
        for batch, tensor in gpu.decode_views(reader.batches(plan), plan, runner, 2):
            labels = torch.from_numpy(plan.index.label[batch.ids]).long()
            yield Batch(gpu.to_torch(tensor, plan, batch), labels, torch.from_numpy(batch.ids))
            del tensor
    finally:
        shards.close()


def run_tests(setting: Setting, *, files: tuple[str, ...]) -> Result:
    """Outcomes of these files' quick tests marked gpu, and what they printed."""
    if importlib.util.find_spec("pytest") is None:
        raise ImportError("pytest is not installed")
    if gone := [file for file in files if not (ROOT / file).exists()]:
        raise RuntimeError(f"{gone[0]} is not here: correctness is reported from a checkout")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, *"-m pytest -q -p no:cacheprovider".split(), *files]
        # other versions than the locked ones warn of other things
        command += ["-m", "gpu and not slow", "-o", "filterwarnings=default"]
        command += ["-o", "junit_logging=system-out", f"--junit-xml={report}"]
        text = output(command, PYTEST_S[setting.cuda]).strip()
        if not report.exists():
            raise RuntimeError(text.splitlines()[-1] if text else "pytest ended without output")
        return count_outcomes(ET.parse(report).getroot())


def output(command: list[str], seconds: float) -> str:
    """What a command prints. If it takes longer it is interrupted, and then ended."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as child:
        for patience in (seconds, SAVE_S):
            with suppress(subprocess.TimeoutExpired):
                return str(child.communicate(timeout=patience)[0])
            child.send_signal(signal.SIGINT)
        child.kill()
        return str(child.communicate()[0])


def count_outcomes(root: Any) -> Result:
    """From pytest's XML: how many passed; which failed or were skipped, and why; and what the tests
    measured."""
    cases = list(root.iter("testcase"))
    if not cases:
        raise RuntimeError("no test was found")
    failed, skipped, printed = dict[str, str](), dict[str, list[str]](), list[str]()
    count = 0
    for case in cases:
        name = case.get("name")
        for fault in (*case.iter("failure"), *case.iter("error")):
            failed[name] = reason(fault)
        for skip in case.iter("skipped"):
            skipped.setdefault(skip.get("message", ""), []).append(name.partition("[")[0])
            count += 1
        for output in case.iter("system-out"):
            printed += [line for line in (output.text or "").splitlines() if line.strip()]
    result: Result = {"passed": float(len(cases) - len(failed) - count), "skipped": float(count)}
    result["failed"] = ", ".join(failed) if failed else 0.0
    if failed:
        result["why"] = " | ".join(dict.fromkeys(failed.values()))
    if skipped:
        listed = (f"{', '.join(dict.fromkeys(names))} ({why})" for why, names in skipped.items())
        result["not run"] = ", ".join(listed)
    lines = [line for line in printed if not re.match(r"-+ Captured|-{5,}", line.strip())]
    return result | {"printed": " | ".join(lines)} if lines else result


def reason(fault: Any) -> str:
    """pytest's last line on an error, or its message."""
    errors = re.findall(r"^E (.*)", fault.text or "", re.MULTILINE)
    return errors[-1].strip() if errors else str(fault.get("message", "no message"))


def photographs(count: int = 16, size: int = 256) -> list[NDArray[np.uint8]]:
    """Pictures with edges, gradients and grain, drawn from a seed: chroma that subsampling has to
    work on."""
    images = []
    for number in range(count):
        rng = np.random.default_rng(number)
        small = rng.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
        large = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
        smooth = np.asarray(large).astype(np.int16)
        smooth[size // 3 : size // 2, size // 4 : size // 2] = rng.integers(0, 256, 3)
        grain = rng.integers(-12, 13, (size, size, 1))
        images.append(np.clip(smooth + grain, 0, 255).astype(np.uint8))
    return images


def encode(image: NDArray[np.uint8], kind: str) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(image)
    picture = picture.convert("L") if kind == "grey" else picture
    # Pillow's own number for grey, which has no chroma
    picture.save(buffer, "JPEG", quality=95, subsampling=SUBSAMPLINGS.get(kind, -1))
    return buffer.getvalue()


def decode(files: list[bytes], device: str) -> NDArray[np.uint8]:
    """By DALI ("cpu", "mixed"; with the loader's own settings), [n,S,S,3]."""
    from nvidia.dali import Pipeline, fn, types

    data = [np.frombuffer(file, np.uint8) for file in files]
    settings: dict[str, Any] = {"device": device, "output_type": types.RGB, **GPU_DECODER}
    settings["adjust_orientation"] = False
    gpu = 0 if device == "mixed" else None
    simple: dict[str, Any] = {"exec_pipelined": False, "exec_async": False}
    pipeline = Pipeline(len(files), 2, gpu, prefetch_queue_depth=1, **simple)
    with pipeline:
        source = fn.external_source(source=lambda: data, batch=True, dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(source, **settings)
        pipeline.set_outputs(images)
    pipeline.build()
    (done,) = pipeline.run()
    host = done.as_cpu()
    return np.stack([np.asarray(host.at(row)) for row in range(len(files))])


def decoding(setting: Setting, *, kind: str) -> Result:
    """Grey levels between two decoders."""
    return apart(kind, setting.device)


def apart(kind: str, device: torch.device) -> Result:
    """The device's and the CPU's; on a CPU DALI's and Pillow's."""
    files = [encode(image, kind) for image in photographs()]
    host = decode(files, "cpu")
    cuda = device.type == "cuda"
    other = decode(files, "mixed") if cuda else np.stack([decode_by_pillow(f) for f in files])
    levels = np.abs(host.astype(np.int16) - other)
    return {
        "largest difference, levels": float(levels.max()),
        "mean": float(levels.mean()),
        "images": float(len(files)),
    }
