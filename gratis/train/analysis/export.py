"""A trained network for other programs: `gratis export --run R alexnet.onnx`.

The form is that of the file's ending (.onnx, .pt, .safetensors, .pth), unless --format names it:

- onnx, torchscript: take plain images, RGB, 0-255, float32 [n,3,crop,crop]: the subtraction of the
  mean image's centre is inside. They return logits [n, classes]. The names of the classes and how
  to feed it are in the file's metadata. ONNX is run by onnxruntime, where that is installed, and
  compared.
- safetensors: the weights by the names of this project, the mean image's centre as `mean`, the
  recipe as metadata
- torchvision: a state dict that `torchvision.models.alexnet(num_classes=...)` loads, of a run of
  recipe torchvision (or any of its layers); it takes images minus the mean in OUT.mean.npy"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from gratis.atomic import atomic_output
from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.extras import importable, require
from gratis.signals import terminate_exits
from gratis.train.analysis.run_options import RunOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gratis.train.analysis.deployment import DeploymentNetwork
    from gratis.train.analysis.trained_network import TrainedNetwork

TRACES = "traced and compared with the original, which takes minutes on a slow machine"
DOING = {"onnx": TRACES, "torchscript": TRACES, "torchvision": "renamed", "safetensors": "copied"}
Format = Literal["onnx", "torchscript", "torchvision", "safetensors"]
ENDINGS: dict[str, Format] = {
    ".onnx": "onnx",
    ".pt": "torchscript",
    ".pth": "torchvision",
    ".safetensors": "safetensors",
}
TOLERANCE = 1e-4  # of logits, as a share of the largest
TRIED = 3  # images; one more than the graph is traced with, so that it is seen to take any number
TRACED = 2
OPSET = 18


@dataclass(frozen=True, kw_only=True)
class Export(RunOptions):
    """Writes a trained network for other programs."""

    out: Annotated[Path, tyro.conf.Positional]
    """File to write."""
    format: Format | None = None
    """Default: as the file's name ends."""

    def __post_init__(self) -> None:
        if self.format is None and self.out.suffix not in ENDINGS:
            known = ", ".join(f"{ending} for {name}" for ending, name in ENDINGS.items())
            raise GratisError(
                f"{self.out} ends as no format does ({known}); give one with --format"
            )
        if not self.out.parent.is_dir() or self.out.is_dir():
            raise GratisError(
                f"{self.out} is a folder or in none; name a file in an existing folder"
            )


def main(arguments: list[str]) -> None:
    options = parse(Export, arguments, "gratis export")
    form = options.format or ENDINGS[options.out.suffix]
    if form == "onnx":
        require("onnx", "--format onnx")
    from gratis.train.analysis.trained_network import load

    terminate_exits()  # by way of what removes a half-written file
    trained = load(options)
    print(f"run {trained.folder}, step {trained.state.step}: {DOING[form]}", flush=True)
    # all write bytes, so that a full disk is an OSError: the libraries' own writers raise others
    with atomic_output(options.out, "choose another OUT") as draft:
        note = WRITE[form](trained, draft)
    print(f"{options.out}: {form}, {options.out.stat().st_size / 1e6:,.1f} MB, {note}")


def _onnx(trained: TrainedNetwork, path: Path) -> str:
    """Writes the graph for any number of images, and compares it where onnxruntime is."""
    import onnx
    import torch

    from gratis.train.analysis.deployment import DeploymentNetwork

    network, images = DeploymentNetwork(trained).eval(), examples(trained)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():  # the exporter's own, about its own parts
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.from_numpy(images[:TRACED]),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.avg_pool2d.default: _window_sums},
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata(trained))
    if not importable("onnxruntime"):
        onnx.save(model, path)
        return "not compared: onnxruntime is not installed (pip install onnxruntime)"
    import onnxruntime  # before there is a file: a signal in an import would leave it half done

    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return compare("onnxruntime", session.run(None, {"images": images})[0], network, images)


def _window_sums(  # noqa: PLR0917 - as the operator has them
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0, 0),
    ceil_mode: bool = False,
    include_pad: bool = True,
    divisor: int | None = None,
) -> Any:
    """The normalisation over a map's pixels adds up windows. torch 2.13's own translation forgets
    the divisor of 1."""
    from onnxscript import opset18

    assert divisor == 1
    assert include_pad
    assert not ceil_mode
    window: dict[str, Any] = {
        "kernel_shape": list(kernel),
        "strides": list(stride),
        "pads": [*padding, *padding],
    }
    mean = opset18.AveragePool(x, **window, count_include_pad=1)
    return opset18.Mul(mean, opset18.Constant(value_float=float(math.prod(kernel))))


def _torchscript(trained: TrainedNetwork, path: Path) -> str:
    import torch

    from gratis.train.analysis.deployment import DeploymentNetwork

    network, images = DeploymentNetwork(trained).eval(), examples(trained)
    # torch would rather be asked for torch.export, which is not what was asked for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the exported program holds plain operators alone: our normalisation's own backward cannot
        # be scripted
        inputs = (torch.from_numpy(images[:TRACED]),)
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(network, inputs, dynamic_shapes=shapes)
        script = torch.jit.trace(program.module(), inputs, check_trace=False)  # type: ignore[no-untyped-call]
        extra = {name: text.encode() for name, text in metadata(trained).items()}
        path.write_bytes(script.save_to_buffer(_extra_files=extra))
        logits = torch.jit.load(str(path))(torch.from_numpy(images)).numpy()  # type: ignore[no-untyped-call]
    return compare("torch.jit", logits, network, images)


def _torchvision(trained: TrainedNetwork, path: Path) -> str:
    import torch

    from gratis.train.analysis.deployment import centre_view, to_torchvision

    buffer = io.BytesIO()
    torch.save(to_torchvision(trained.recipe, trained.weights), buffer)
    path.write_bytes(buffer.getvalue())
    # a draft's name has two endings more
    beside = path.with_suffix("").with_suffix("").with_suffix(".mean.npy")
    crop = trained.recipe.crop
    np.save(beside, centre_view(trained.stats.mean, crop).numpy())
    return f"feed it RGB 0-255 float32 [n,3,{crop},{crop}] minus {beside}"


def _safetensors(trained: TrainedNetwork, path: Path) -> str:
    from safetensors.torch import save

    from gratis.train.analysis.deployment import centre_view

    weights, mean = trained.weights, centre_view(trained.stats.mean, trained.recipe.crop)
    path.write_bytes(save(weights | {"mean": mean}, metadata=metadata(trained)))
    return f"{len(weights)} tensors by this project's names, and the mean"


WRITE: dict[Format, Callable[[TrainedNetwork, Path], str]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "torchvision": _torchvision,
    "safetensors": _safetensors,
}


def examples(trained: TrainedNetwork) -> NDArray[np.float32]:
    """Training images' centre views as a user would feed them: RGB, 0-255, [TRIED,3,crop,crop]."""
    from gratis.train.analysis.deployment import centre_view
    from gratis.train.analysis.trained_network import read_images

    count = min(TRIED, trained.manifest.splits["train"].samples)
    pixels, _ = read_images(trained, "train", range(count))
    return np.stack([centre_view(one, trained.recipe.crop).numpy() for one in pixels])


def metadata(trained: TrainedNetwork) -> dict[str, str]:
    """What a reader of the file must know, as text."""
    crop, size = trained.recipe.crop, trained.manifest.image_size
    names = [trained.name(label) for label in range(trained.state.classes)]
    return {
        "input": f"images: RGB, 0-255, float32 [n,3,{crop},{crop}]: the shorter side resized to "
        f"{size}, of which the centre {crop}x{crop}; the mean is subtracted inside (safetensors: "
        "subtract `mean`)",
        "output": f"logits [n,{trained.state.classes}]; for ten views average their softmax",
        "classes": json.dumps(names, ensure_ascii=False),
        "wnids": json.dumps([entry.wnid for entry in trained.manifest.classes]),
        "recipe": json.dumps(dataclasses.asdict(trained.recipe)),
        "dataset": trained.manifest.hash,
        "step": str(trained.state.step),
    }


def compare(
    by: str, logits: NDArray[np.float32], network: DeploymentNetwork, images: NDArray[np.float32]
) -> str:
    """How far the file's logits are from the network's, as text; RuntimeError, a defect of ours, if
    it is too far."""
    import torch

    with torch.inference_mode():
        own = network(torch.from_numpy(images)).numpy()
    off = float(np.abs(logits - own).max() / max(1.0, float(np.abs(own).max())))
    if not off <= TOLERANCE:
        raise RuntimeError(f"{by} and the network differ: logits off by {off:.3g} of the largest")
    return f"{by} agrees on {len(images)} images to {off:.1e} of the largest logit"
