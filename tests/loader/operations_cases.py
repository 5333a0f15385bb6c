"""Calls of torchvision's functions (transforms.v2.functional), and the steps of a program that
equal them. Run by a Python that has torchvision, it prints as JSON how far apart they are, and how
far its transforms' draws are from ours: `python operations_cases.py`."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.loader.augmentations import (
    AugMix,
    ColorJitter,
    GaussianBlur,
    RandAugment,
    TrivialAugmentWide,
)
from gratis.loader.engine.library import VALUES, Op
from gratis.loader.views.draw_operations import Program, draw_program, named_step
from gratis.loader.views.operations_reference import apply_program

Pixels = NDArray[np.uint8]
DRAWN = 20_000


class Call(NamedTuple):
    """A function's name and arguments; and the same as a step."""

    function: str
    arguments: dict[str, Any]
    op: Op
    values: list[float]

    @property
    def kind(self) -> str:
        """One line of the table in docs/augmentations.md."""
        mode = self.arguments.get("interpolation")
        return f"{self.function}, {mode}" if mode else self.function


def colours() -> list[Call]:
    made: list[Call] = []
    for f in (0.01, 0.3, 0.5, 1.0, 1.234567, 1.9, 3.7):
        made += [
            Call("adjust_brightness", {"brightness_factor": f}, Op.BRIGHTNESS, [f]),
            Call("adjust_contrast", {"contrast_factor": f}, Op.CONTRAST, [f, 1 - f]),
            Call("adjust_saturation", {"saturation_factor": f}, Op.SATURATION, [f, 1 - f]),
            Call("adjust_sharpness", {"sharpness_factor": f}, Op.SHARPNESS, [1 - f]),
        ]
    for f in (-0.5, -0.3, -0.001, 0.0, 0.02, 0.1, 0.37, 0.5):
        made.append(Call("adjust_hue", {"hue_factor": f}, Op.HUE, [f]))
    made += [Call("posterize", {"bits": b}, Op.POSTERIZE, [float(b)]) for b in range(9)]
    for t in (0.0, 8.5, 128.0, 254.9, 255.0):
        made.append(Call("solarize", {"threshold": t}, Op.SOLARIZE, [t]))
    made.append(Call("rgb_to_grayscale", {"num_output_channels": 3}, Op.GREY, []))
    made.append(Call("invert", {}, Op.SOLARIZE, [0.0]))
    made.append(Call("autocontrast", {}, Op.AUTOCONTRAST, []))
    made.append(Call("equalize", {}, Op.EQUALIZE, []))
    for taps, sigma in ((3, 0.1), (3, 1.0), (9, 0.5), (9, 2.0), (9, 9.0)):
        given = {"kernel_size": [taps, taps], "sigma": [sigma, sigma]}
        made.append(Call("gaussian_blur", given, Op.BLUR, [sigma, sigma, taps, taps]))
    return made


MOVES = {
    "ShearX": (0.09, 0.264, -0.264, 0.99),
    "ShearY": (0.09, 0.264, -0.264, 0.99),
    "TranslateX": (3.0, -31.0, -1.0),
    "TranslateY": (3.0, -31.0, -1.0),
    "Rotate": (0.0, -4.5, 30.0, 90.0, -133.3),
}


def move(name: str, m: float) -> tuple[str, dict[str, Any]]:
    """As torchvision's _apply_image_or_video_transform calls them."""
    if name == "Rotate":
        return "rotate", {"angle": m}
    still: dict[str, Any] = {"angle": 0.0, "scale": 1.0, "translate": [0, 0], "shear": [0.0, 0.0]}
    if name.startswith("Translate"):
        return "affine", still | {"translate": [int(m), 0] if name[-1] == "X" else [0, int(m)]}
    tilt = math.degrees(math.atan(m))
    return "affine", still | {
        "shear": [tilt, 0.0] if name[-1] == "X" else [0.0, tilt],
        "center": [0, 0],
    }


def moves(size: tuple[int, int]) -> list[Call]:
    made: list[Call] = []
    for name, magnitudes in MOVES.items():
        for m in magnitudes:
            for mode in ("nearest", "bilinear"):
                for fill in (None, (10.0, 200.0, 30.0)):
                    function, arguments = move(name, m)
                    augment = RandAugment(interpolation=mode, fill=fill)  # type: ignore[arg-type]
                    step = named_step(name, np.array([m]), augment, size)
                    given = {"interpolation": mode, "fill": list(fill) if fill else None}
                    values = step.values[0].tolist()
                    made.append(Call(function, arguments | given, Op.AFFINE, values))
    return made


def calls(size: tuple[int, int]) -> list[Call]:
    return colours() + moves(size)


def one(call: Call) -> Program:
    """Its program, of one sample."""
    values = np.zeros((1, 1, VALUES), np.float32)
    values[0, 0, : len(call.values)] = call.values
    return Program(np.array([[call.op]], np.int32), values)


def image(height: int, width: int, levels: int = 256) -> Pixels:
    """uint8 [3,h,w]: waves and edges, by whole numbers alone; the same everywhere."""
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    planes = [(x * x * 3 + y * 7), (x * 5 + y * y * 2 + x * y), (x // 4 * 61 + y // 3 * 37)]
    return np.stack([(plane * 256 // 97) % levels for plane in planes]).astype(np.uint8)


def digest(pixels: Pixels) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:12]


# ---- what follows needs torchvision ----


def by_torchvision(call: Call, pixels: Pixels) -> Pixels:
    import torch
    from torchvision.transforms.v2 import functional

    function: Callable[..., Any] = getattr(functional, call.function)
    made: Pixels = function(torch.from_numpy(pixels.copy()), **call.arguments).numpy()
    return made


def pictures() -> list[Pixels]:
    """Of several sizes; noisy, grey, and of few levels."""
    rng, made = np.random.default_rng(0), []
    for height, width in ((224, 224), (160, 176), (17, 33)):
        coarse = rng.integers(0, 256, (3, -(-height // 9), -(-width // 9)))
        large = coarse.repeat(9, axis=1).repeat(9, axis=2)[:, :height, :width]
        noisy = (large + rng.normal(0, 20, large.shape)).clip(0, 255).astype(np.uint8)
        made += [noisy, noisy[:1].repeat(3, axis=0), noisy // 16 + 100]
    return made


def levels() -> dict[str, dict[str, int]]:
    """Of each kind the largest difference of the reference, how many values differ, of how many."""
    found: dict[str, dict[str, int]] = {}
    for pixels in pictures():
        for call in calls((pixels.shape[1], pixels.shape[2])):
            made = apply_program(pixels, *(part[0] for part in one(call))).astype(int)
            apart = np.abs(made - by_torchvision(call, pixels))
            line = found.setdefault(call.kind, {"most": 0, "differ": 0, "of": 0})
            line["most"] = max(line["most"], int(apart.max()))
            line["differ"] += int((apart > 0).sum())
            line["of"] += apart.size
    return found


Recorded = list[list[tuple[str, float]]]


def record(transform: Any, count: int) -> Recorded:
    """What torchvision's transform does to each of count images: names and magnitudes."""
    import torch

    done: list[tuple[str, float]] = []

    def apply(picture: Any, name: str, magnitude: float, *_: Any, **__: Any) -> Any:
        done.append((name, magnitude))
        return picture

    transform._apply_image_or_video_transform = apply
    all_done: Recorded = []
    blank = torch.zeros((3, 1, 1), dtype=torch.uint8).expand(3, 224, 224)
    for _ in range(count):
        transform(blank)
        all_done.append(list(done))
        done.clear()
    return all_done


Key = tuple[float, ...]


def keys(program: Program, columns: slice) -> Counter[Key]:
    """How often each step comes, with its numbers to four digits."""
    ops, values = program.ops[:, columns].ravel(), program.values[:, columns].reshape(-1, VALUES)
    rows = np.column_stack([ops, np.where(ops[:, None] == Op.AFFINE, values, values * USED[ops])])
    return Counter(map(tuple, np.round(rows.astype(float), 4).tolist()))


USED = np.zeros((len(Op), VALUES))  # which numbers a step reads
for _op, _count in ((1, 1), (2, 2), (3, 2), (4, 1), (6, 1), (7, 1), (8, 1), (11, 1), (12, 4)):
    USED[_op, :_count] = 1


def their_keys(recorded: Recorded, augment: Any) -> Counter[Key]:
    total: Counter[Key] = Counter()
    for name, magnitude in (each for sample in recorded for each in sample):
        if name == "Identity":
            total[(0.0,) * (1 + VALUES)] += 1
            continue
        step = named_step(name, np.array([magnitude]), augment, (224, 224))
        total += keys(Program(step.ops[None], step.values[None]), slice(None))
    return total


def chi_square(one: Counter[Any], other: Counter[Any]) -> float:
    """Of two samples of the same distribution, in standard deviations from its mean."""
    every = sorted(set(one) | set(other))
    a, b = (np.array([counts[key] for key in every], float) for counts in (one, other))
    ratio = math.sqrt(a.sum() / b.sum())
    total = ((a / ratio - b * ratio) ** 2 / (a + b)).sum()
    free = len(every) - 1
    return float((total - free) / math.sqrt(2 * free))


def apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Kolmogorov and Smirnov's distance of two samples, in units of its usual size."""
    both = np.sort(np.concatenate([one, other]))
    a, b = (np.searchsorted(np.sort(x), both, "right") / len(x) for x in (one, other))
    size = math.sqrt(len(one) * len(other) / (len(one) + len(other)))
    return float(np.abs(a - b).max() * size)


def draws() -> dict[str, float]:
    """How far torchvision's draws are from ours: chi-squares in standard deviations ("odds"), and
    distances ("apart")."""
    import torch
    from torchvision.transforms import v2

    torch.manual_seed(0)
    ids, found = np.arange(DRAWN), {}
    drawn = draw_program((TrivialAugmentWide(),), 1, 0, ids, 224, 224)
    theirs = their_keys(record(v2.TrivialAugmentWide(), DRAWN), TrivialAugmentWide())
    found["TrivialAugmentWide odds"] = chi_square(keys(drawn, slice(None)), theirs)
    drawn = draw_program((RandAugment(),), 1, 0, ids, 224, 224)
    theirs = their_keys(record(v2.RandAugment(), DRAWN), RandAugment())
    found["RandAugment odds"] = chi_square(keys(drawn, slice(None)), theirs)
    found |= augmix_draws(ids[: DRAWN // 4])
    found |= jitter_draws(ids)
    sigmas = draw_program((GaussianBlur(9, (0.3, 4.0)),), 1, 0, ids, 224, 224).values[:, 0, 0]
    blur = v2.GaussianBlur(9, (0.3, 4.0))
    theirs_ = np.array([blur.make_params([])["sigma"][0] for _ in ids])
    return found | {"GaussianBlur sigma apart": apart(sigmas, theirs_)}


def augmix_draws(ids: NDArray[np.int64]) -> dict[str, float]:
    from torchvision.transforms import v2

    found: dict[str, float] = {}
    for alpha in (1.0, 0.3, 4.0):
        transform, sampled = v2.AugMix(alpha=alpha), []
        sample = transform._sample_dirichlet

        def keep(of: Any, sample: Any = sample, sampled: list[Any] = sampled) -> Any:
            sampled.append(sample(of))
            return sampled[-1]

        transform._sample_dirichlet = keep
        recorded = record(transform, len(ids))
        image_weight = np.array([float(each[0, 0]) for each in sampled[::2]])
        both = zip(sampled[::2], sampled[1::2], strict=True)
        variant = np.array([float(w[0, 1] * m[0, 1]) for m, w in both])
        drawn = draw_program((AugMix(alpha=alpha),), 1, 0, ids, 224, 224)
        found[f"AugMix {alpha} image's weight apart"] = apart(drawn.values[:, -1, 0], image_weight)
        found[f"AugMix {alpha} second's weight apart"] = apart(drawn.values[:, -1, 2], variant)
        ours = keys(drawn, slice(None))
        for op in (Op.NOTHING, Op.KEEP, Op.MIX):  # no operations
            ours = Counter({key: n for key, n in ours.items() if key[0] != op})
        found[f"AugMix {alpha} odds"] = chi_square(ours, their_keys(recorded, AugMix()))
        done = (~np.isin(drawn.ops, (Op.NOTHING, Op.KEEP, Op.MIX))).sum(axis=1)
        lengths = Counter(done.tolist()), Counter(map(len, recorded))
        found[f"AugMix {alpha} lengths odds"] = chi_square(*lengths)
    return found


def jitter_draws(ids: NDArray[np.int64]) -> dict[str, float]:
    from torchvision.transforms import v2

    given = {"brightness": 0.4, "contrast": (0.2, 1.1), "saturation": 0.3, "hue": 0.1}
    drawn = draw_program((ColorJitter(**given),), 1, 0, ids, 224, 224)  # type: ignore[arg-type]
    jitter = v2.ColorJitter(**given)
    theirs = [jitter.make_params([]) for _ in ids]
    found: dict[str, float] = {}
    for op, name in enumerate(given, 1):
        factors = np.array([each[f"{name}_factor"] for each in theirs])
        found[f"ColorJitter {name} apart"] = apart(drawn.values[drawn.ops == op][:, 0], factors)
    orders = (drawn.ops - 1).tolist(), [each["fn_idx"].tolist() for each in theirs]
    found["ColorJitter order odds"] = chi_square(*(Counter(map(tuple, o)) for o in orders))
    return found


def goldens() -> dict[str, str]:
    """Of each kind one hash, over all of its calls in turn."""
    pixels, found = image(24, 40), dict[str, list[Pixels]]()
    for call in calls((24, 40)):
        found.setdefault(call.kind, []).append(by_torchvision(call, pixels))
    return {kind: digest(np.stack(made)) for kind, made in found.items()}


if __name__ == "__main__":
    parts = {"levels": levels, "draws": draws, "goldens": goldens}
    json.dump({name: parts[name]() for name in sys.argv[1:] or parts}, sys.stdout, indent=1)
