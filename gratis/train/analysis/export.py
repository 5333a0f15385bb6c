"""A trained network for other programs: `gratis export --run R alexnet.onnx`.

The form is that of the file's ending (.onnx, .pt, .safetensors, .pth), unless --format names it:

onnx, torchscript  take plain images, RGB, 0-255, float32 [n,3,crop,crop]: the subtraction of the
mean image's centre is
                   inside. They return logits [n, classes]. The names of the classes and how to feed
                   it are in the file's metadata. ONNX is run by onnxruntime, where that is
                   installed, and compared.
safetensors        the weights by the names of this project, the mean image's centre as `mean`, the
recipe as metadata torchvision        a state dict that
`torchvision.models.alexnet(num_classes=...)` loads, of a run of recipe
                   torchvision (or any of its layers); it takes images minus the mean in
                   OUT.mean.npy
"""

from __future__ import annotations

import dataclasses
import importlib.util
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

from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.signals import terminate_exits
from gratis.train.analysis.saved import Saved
from gratis.written import written

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gratis.train.analysis.deployed import Deployed
    from gratis.train.analysis.trained import Trained

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
class Export(Saved):
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
    missing = [name for name in NEEDS.get(form, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise GratisError(
            f"--format {form} needs {' and '.join(missing)}: make install ARGS=--extra"
        )
    from gratis.train.analysis.trained import load

    terminate_exits()  # by way of what removes a half-written file
    trained = load(options)
    print(f"run {trained.folder}, step {trained.state.step}: {DOING[form]}", flush=True)
    # all write bytes, so that a full disk is an OSError: the libraries' own writers have other
    # words for it
    with written(options.out, "choose another OUT") as draft:
        said = WRITE[form](trained, draft)
    print(f"{options.out}: {form}, {options.out.stat().st_size / 1e6:,.1f} MB, {said}")


def _onnx(trained: Trained, path: Path) -> str:
    """Writes the graph for any number of images, and compares it where onnxruntime is."""
    import onnx
    import torch

    from gratis.train.analysis.deployed import Deployed

    network, images = Deployed(trained).eval(), examples(trained)
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
    onnx.save(model, path)
    if importlib.util.find_spec("onnxruntime") is None:
        return "not compared: onnxruntime is not installed (make install ARGS=--extra)"
    return compared("onnxruntime", _onnxruntime(path, images), network, images)


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
    mean = opset18.AveragePool(
        x,
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, *padding],
        count_include_pad=1,
    )
    return opset18.Mul(mean, opset18.Constant(value_float=float(math.prod(kernel))))


def _onnxruntime(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(None, {"images": images})[0]
    return logits


def _torchscript(trained: Trained, path: Path) -> str:
    import torch

    from gratis.train.analysis.deployed import Deployed

    network, images = Deployed(trained).eval(), examples(trained)
    # torch would rather be asked for torch.export, which is not what was asked for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the exported program holds plain operators alone: our normalisation's own backward cannot
        # be scripted
        given = torch.from_numpy(images[:TRACED])
        program = torch.export.export(
            network, (given,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        script = torch.jit.trace(program.module(), (given,), check_trace=False)  # type: ignore[no-untyped-call]
        extra = {name: text.encode() for name, text in metadata(trained).items()}
        path.write_bytes(script.save_to_buffer(_extra_files=extra))
        logits = torch.jit.load(str(path))(torch.from_numpy(images)).numpy()  # type: ignore[no-untyped-call]
    return compared("torch.jit", logits, network, images)


def _torchvision(trained: Trained, path: Path) -> str:
    import torch

    from gratis.train.analysis.deployed import central_mean, to_torchvision

    state = {name: own.cpu() for name, own in trained.network.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(to_torchvision(trained.recipe, state), buffer)
    path.write_bytes(buffer.getvalue())
    # a draft's name has two endings more
    beside = path.with_suffix("").with_suffix("").with_suffix(".mean.npy")
    np.save(beside, central_mean(trained).numpy())
    return (
        f"feed it RGB 0-255 float32 [n,3,{trained.recipe.crop},{trained.recipe.crop}] minus "
        f"{beside}"
    )


def _safetensors(trained: Trained, path: Path) -> str:
    from safetensors.torch import save

    from gratis.train.analysis.deployed import central_mean

    state = {name: own.cpu().contiguous() for name, own in trained.network.state_dict().items()}
    path.write_bytes(save(state | {"mean": central_mean(trained)}, metadata=metadata(trained)))
    return f"{len(state)} tensors by this project's names, and the mean"


WRITE: dict[Format, Callable[[Trained, Path], str]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "torchvision": _torchvision,
    "safetensors": _safetensors,
}
NEEDS: dict[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript")}


def examples(trained: Trained) -> NDArray[np.float32]:
    """Training images' centre views as a user would feed them: RGB, 0-255, [TRIED,3,crop,crop]."""
    from gratis.train.analysis.trained import stored

    crop = trained.recipe.crop
    margin = (trained.manifest.image_size - crop) // 2
    count = min(TRIED, trained.manifest.splits["train"].samples)
    pixels, _ = stored(trained, "train", range(count))
    cut = np.stack([one[margin : margin + crop, margin : margin + crop] for one in pixels])
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 2)).astype(np.float32)


def metadata(trained: Trained) -> dict[str, str]:
    """What a reader of the file must know, as text."""
    crop, size = trained.recipe.crop, trained.manifest.image_size
    return {
        "input": f"images: RGB, 0-255, float32 [n,3,{crop},{crop}]: the shorter side resized to "
        f"{size}, of which the "
        f"centre {crop}x{crop}; the mean is subtracted inside (safetensors: subtract `mean`)",
        "output": f"logits [n,{trained.state.classes}]; for ten views average their softmax",
        "classes": json.dumps(
            [trained.name(label) for label in range(trained.state.classes)], ensure_ascii=False
        ),
        "wnids": json.dumps([entry.wnid for entry in trained.manifest.classes]),
        "recipe": json.dumps(dataclasses.asdict(trained.recipe)),
        "dataset": trained.manifest.hash,
        "step": str(trained.state.step),
    }


def compared(
    by: str, logits: NDArray[np.float32], network: Deployed, images: NDArray[np.float32]
) -> str:
    """Says how far the file's logits are from the network's; RuntimeError, a defect of ours, if it
    is too far."""
    import torch

    with torch.inference_mode():
        own = network(torch.from_numpy(images)).numpy()
    off = float(np.abs(logits - own).max() / max(1.0, float(np.abs(own).max())))
    if not off <= TOLERANCE:
        raise RuntimeError(
            f"{by} says something else than the network: logits off by {off:.3g} of the largest"
        )
    return f"{by} agrees on {len(images)} images to {off:.1e} of the largest logit"
