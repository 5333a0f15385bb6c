"""What the loader promises, on a GPU: the same ids, numbers and epochs as on the CPU, and nothing
left behind.

Each test has a form for the CPU, so that it is known to work before it meets a GPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from batches import epoch
from handmade import encode, picture, rotten

from gratis.errors import GratisError
from gratis.image import decode
from gratis.loader import Batch, Loader, LoaderConfig
from gratis.loader.decoding.bad_samples import device_error
from gratis.loader.decoding.gpu import stacked
from gratis.loader.inspect.preview import draw_preview
from gratis.train.network.memory import ran_out

CROP, COUNT, LEAK_EPOCHS = 48, 101, 20
LEVELS = 8.0  # between a GPU's decoder and the CPU's; test_loader_views.py has the sum
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


def make(root: Path, device: torch.device, **options: Any) -> Loader:
    config = LoaderConfig.alexnet(**({"batch_size": 12, "crop": CROP, "threads": 2} | options))
    return Loader(root, "train", config, device=device)


def assert_close(a: list[Batch], b: list[Batch], levels: float) -> None:
    """Ids and labels equal, pixels within so many grey levels."""
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.labels, two.labels)
        assert float((one.images.float() - two.images.float()).abs().max()) <= levels


@pytest.mark.parametrize("decoded", ["none", "auto"])
def test_every_sample_comes_once_with_the_cpu_s_augmentation(
    jpeg_dataset: Path, device: torch.device, decoded: str
) -> None:
    """Another crop, mirror or noise would be tens of levels away."""
    with (
        make(jpeg_dataset, device, decoded=decoded) as loader,
        make(jpeg_dataset, torch.device("cpu")) as cpu,
    ):
        for _ in range(2):
            mine = epoch(loader)
            assert_close(mine, epoch(cpu), 0.0 if device.type == "cpu" else LEVELS)
            ids = torch.cat([batch.ids for batch in mine]).numpy()
            assert loader.coverage(ids) == {
                "seen": COUNT,
                "missing": 0,
                "duplicates": 0,
                "dropped": 0,
            }


@pytest.mark.parametrize("decoded", ["none", "auto"])
def test_an_epoch_goes_on_from_its_middle(
    jpeg_dataset: Path, device: torch.device, decoded: str
) -> None:
    with make(jpeg_dataset, device, decoded=decoded) as whole:
        wanted = epoch(whole)
    with make(jpeg_dataset, device, decoded=decoded) as first:
        batches = iter(first)
        for _ in range(4):
            next(batches)
        state = first.state_dict()
    with make(jpeg_dataset, device, decoded=decoded) as second:
        second.load_state_dict(state)
        assert_close(epoch(second), wanted[4:], 0.0)


@pytest.mark.parametrize("decoded", ["none", "auto"])
def test_a_corrupt_sample_is_named_or_replaced(
    tmp_path: Path, device: torch.device, decoded: str
) -> None:
    root = rotten(tmp_path, 17)
    with (
        make(root, device, decoded=decoded) as loader,
        pytest.raises(GratisError, match=r"key s_17, .*cannot be decod"),
    ):
        epoch(loader)
    options = {"decoded": decoded, "bad_samples": "quarantine"}
    with make(root, device, **options) as loader, make(root, torch.device("cpu"), **options) as cpu:
        for _ in range(2):
            assert_close(epoch(loader), epoch(cpu), 0.0 if device.type == "cpu" else LEVELS)
        assert set(loader.quarantined) == {17}


@pytest.mark.parametrize("decoded", ["none", "auto"])
def test_memory_stands_still_over_many_epochs(
    jpeg_dataset: Path, device: torch.device, decoded: str
) -> None:
    """Of the device, by the driver, as DALI's share is not torch's; and of the process."""

    def used() -> tuple[int, int]:
        on_device = 0
        if device.type == "cuda":
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info(device)
            on_device = total - free
        return on_device, psutil.Process(os.getpid()).memory_info().rss

    with make(jpeg_dataset, device, decoded=decoded) as loader:
        for _ in range(4):
            epoch(loader)
        before = used()
        for _ in range(LEAK_EPOCHS):
            for _ in loader:
                pass
        after = used()
    print(
        f"{device}, {decoded}: device {after[0] - before[0]:+} bytes, host "
        f"{after[1] - before[1]:+} bytes"
    )
    assert after[0] - before[0] <= 32 << 20
    assert after[1] - before[1] <= 32 << 20


def test_every_argument_that_dali_gets_is_in_its_schema() -> None:
    """Graphs for a GPU can be built on one alone; their arguments' names can be looked up
    anywhere."""
    import ast

    from nvidia.dali.backend import GetSchema

    schemas = {
        "external_source": "ExternalSource",
        "decoders.image": "decoders__Image",
        "decoders.image_slice": "decoders__ImageSlice",
        "decoders.image_random_crop": "decoders__ImageRandomCrop",
        "readers.webdataset": "readers__Webdataset",
        "crop_mirror_normalize": "CropMirrorNormalize",
        "random.uniform": "random__Uniform",
        "random.coin_flip": "random__CoinFlip",
        "slice": "Slice",
        "resize": "Resize",
        "flip": "Flip",
        "transpose": "Transpose",
        "stack": "Stack",
        "cast": "Cast",
        "pad": "Pad",
    }
    everywhere = {"device", "name", "bytes_per_sample_hint", "preserve"}
    of_python = {"external_source": {"source", "num_outputs", "batch", "no_copy", "dtype", "ndim"}}
    root, seen = Path(__file__).resolve().parent.parent.parent, set()
    for path in (
        "gratis/loader/decoding/cpu.py",
        "gratis/loader/decoding/crop_graph.py",
        "gratis/loader/decoding/gpu.py",
        "benchmarks/report/stock.py",
        "benchmarks/report/correctness.py",
    ):
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("fn."):
                operator = ast.unparse(node.func).removeprefix("fn.")
                known = set(GetSchema(schemas[operator]).GetArgumentNames()) | everywhere
                known |= of_python.get(operator, set())
                given = {keyword.arg for keyword in node.keywords if keyword.arg}
                assert given <= known, (
                    f"{path}, line {node.lineno}: {operator} has no {given - known}"
                )
                seen.add(operator)
    assert set(schemas) == seen
    assert "hw_decoder_load" in GetSchema("decoders__Image").GetArgumentNames()


def test_a_decoder_s_own_output_is_one_tensor_wherever_its_images_lie() -> None:
    """By a graph that ends with the decoder, as that of the decoded cache."""
    from nvidia.dali import Pipeline, fn, types

    pictures = [picture(number) for number in range(3)]
    files = [np.frombuffer(encode(one, "jpeg"), np.uint8) for one in pictures]
    pipeline = Pipeline(3, 1, None, exec_pipelined=False, exec_async=False)
    with pipeline:
        data = fn.external_source(source=lambda: files, batch=True, dtype=types.UINT8, ndim=1)
        pipeline.set_outputs(fn.decoders.image(data, device="cpu"))
    pipeline.build()
    (images,) = pipeline.run()
    wanted = [decode(file.tobytes()) for file in files]
    assert np.array_equal(stacked(images).numpy(), np.stack(wanted))


def test_a_batch_that_the_device_lacks_memory_for_is_told_from_one_with_a_bad_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All files can be decoded, on the CPU; the message of nvJPEG names a sample all the same."""
    error, device = RuntimeError("Failed to decode sample #3"), torch.device("cuda", 0)
    assert device_error(error, torch.device("cpu")) is error
    for free, short in ((100 << 20, True), (20 << 30, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80 << 30))
        told = device_error(error, device)
        assert ran_out(told) == short
        assert "sample #3" in str(told)
        assert ("105 of 85899 MB are free" in str(told)) == short


def test_a_padded_last_batch_is_zeros_on_any_device(
    jpeg_dataset: Path, device: torch.device
) -> None:
    with make(jpeg_dataset, device, decoded="auto") as loader:
        last = epoch(loader)[-1]
    assert last.ids.tolist()[5:] == [-1] * 7
    assert np.count_nonzero(last.images[5:].numpy()) == 0


def test_a_preview_is_drawn_of_a_device_s_batches(
    jpeg_dataset: Path, tmp_path: Path, device: torch.device
) -> None:
    with make(jpeg_dataset, device) as loader:
        assert draw_preview(loader, tmp_path / "preview.png") == 12
