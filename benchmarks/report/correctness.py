"""Part 1: is what the device computes right? The tests marked gpu, and how far its decoder is from
the CPU's.

Without a GPU their twins for the CPU run instead, and the tests marked gpu are counted as skipped.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.report.results import Measurement, OutOfTime, Result, ResultFile
from benchmarks.report.setting import Setting
from gratis.image import decode as decode_by_pillow
from gratis.loader import GPU_DECODER

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = (
    "tests/loader/test_loader_gpu.py",
    "tests/loader/test_loader_views.py",
    "tests/loader/test_loader_decoded.py",
    "tests/benchmarks/test_report.py",
    "tests/benchmarks/test_bench_train.py",
    "tests/train/test_train_gpu.py",
)
TWINS = (
    ("tests/loader/test_loader_gpu.py", ""),
    ("tests/loader/test_loader_views.py", "not resized"),
    ("tests/loader/test_loader_decoded.py", ""),
    ("tests/benchmarks/test_report.py", "not measures and not mistakes"),
)
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}  # Pillow's numbers
ALL = "all tests marked gpu"
FILE_S = 400


def measurements(setting: Setting, results: ResultFile) -> Iterator[Measurement]:
    for name in (*SUBSAMPLINGS, "grey"):
        gpu = "DALI mixed against DALI on the CPU"
        against = gpu if setting.cuda else "DALI on the CPU against Pillow"
        make = partial(decoding, name, setting.device)
        yield Measurement(f"{against}, {name}", "benchmarks/report/correctness.py", make)
    runs: list[tuple[str, str, tuple[str, ...], str]] = []
    runs += [(f"pytest -m gpu {file}", "gpu", (file,), "") for file in FILES]
    if not setting.cuda:
        runs = [(ALL, "gpu", FILES, "")]  # they are only counted
        cpu = "not gpu and not slow"
        runs += [(f"{file} without a GPU", cpu, (file,), names) for file, names in TWINS]
    for title, marks, files, names in runs:
        command = f"pytest -m '{marks}' {' '.join(files)}" + (f" -k '{names}'" if names else "")
        make = partial(run_tests, files, marks, names, results)
        yield Measurement(title, command, make, needs=60, stops=True)


def run_tests(files: tuple[str, ...], marks: str, names: str, results: ResultFile) -> Result:
    """Outcomes of these files' tests, and what they printed."""
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed")
    if gone := [file for file in files if not (ROOT / file).exists()]:
        raise RuntimeError(f"{gone[0]} is not here: correctness is reported from a checkout")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, *"-m pytest -q -p no:cacheprovider".split(), *files, "-m", marks]
        command += ["-o", "junit_logging=system-out", f"--junit-xml={report}"]
        command += ["-k", names] if names else []
        over = OutOfTime() if results.left < FILE_S else None
        text = output(command, min(results.left, FILE_S), over).strip()
        if not report.exists():
            raise RuntimeError(text.splitlines()[-1] if text else "pytest ended without output")
        return count_outcomes(ET.parse(report).getroot())


def output(command: list[str], seconds: float, over: Exception | None) -> str:
    """What a command prints. If it takes longer, it ends with all that it has started; `over`, or a
    RuntimeError."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as child:
        try:
            printed: str = child.communicate(timeout=seconds)[0]
            return printed
        except subprocess.TimeoutExpired:
            raise (over or RuntimeError(f"not done in {seconds:.0f} s")) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


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


def decode(
    files: list[bytes], device: str, box: tuple[int, int, int] | None = None
) -> NDArray[np.uint8]:
    """By DALI ("cpu", "mixed"; with the loader's own settings), [n,S,S,3]: whole, or the square (y,
    x, side) alone."""
    from nvidia.dali import Pipeline, fn, types

    data = [np.frombuffer(file, np.uint8) for file in files]
    settings: dict[str, Any] = {"device": device, "output_type": types.RGB, **GPU_DECODER}
    settings["adjust_orientation"] = False
    gpu = 0 if device == "mixed" else None
    simple: dict[str, Any] = {"exec_pipelined": False, "exec_async": False}
    pipeline = Pipeline(len(files), 2, gpu, prefetch_queue_depth=1, **simple)
    with pipeline:
        source = fn.external_source(source=lambda: data, batch=True, dtype=types.UINT8, ndim=1)
        if box is None:
            images = fn.decoders.image(source, **settings)
        else:
            y, x, side = box
            region: dict[str, Any] = {"start": [y, x], "shape": [side, side], "axes": [0, 1]}
            images = fn.decoders.image_slice(source, **region, **settings)
        pipeline.set_outputs(images)
    pipeline.build()
    (done,) = pipeline.run()
    pixels: NDArray[np.uint8] = np.array(done.as_cpu().as_tensor())
    return pixels


def decoding(kind: str, device: torch.device) -> Result:
    """Grey levels between two decoders; and between a region decoded alone and cut out of the
    whole."""
    files = [encode(image, kind) for image in photographs()]
    host = decode(files, "cpu")
    y, x, side = box = (13, 7, 224)
    if device.type == "cuda":
        whole = other = decode(files, "mixed")
        region = decode(files, "mixed", box)
    else:
        whole, other = host, np.stack([decode_by_pillow(file) for file in files])
        region = decode(files, "cpu", box)
    apart = np.abs(host.astype(np.int16) - other)
    cut = np.abs(whole[:, y : y + side, x : x + side].astype(np.int16) - region)
    return {
        "largest difference, levels": float(apart.max()),
        "mean": float(apart.mean()),
        "region against whole, largest": float(cut.max()),
        "images": float(len(files)),
    }
