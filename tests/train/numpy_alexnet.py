"""AlexNet's training step in NumPy, float64, from the specification alone (docs/alexnet.md): what
whole runs are held against. Two towers, original dropout, the released order of layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Backward = Callable[[Floats], Floats]
Parameters = dict[str, Floats]
POOL, STRIDE = 3, 2


def convolution(
    x: Floats, weight: Floats, bias: Floats, stride: int, padding: tuple[int, int]
) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats, Floats]]]:
    """x [n,c,h,w], weight [o,c,k,k]; padding: zeros before and behind, along both axes."""
    kernel, before = weight.shape[-1], padding[0]
    padded = np.pad(x, ((0, 0), (0, 0), padding, padding))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    y = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)

    def backward(g: Floats) -> tuple[Floats, Floats, Floats]:
        of_weight = np.einsum("nchwij,nohw->ocij", windows, g, optimize=True)
        of_input = np.zeros_like(padded)
        height, width = g.shape[2:]
        for i in range(kernel):
            for j in range(kernel):
                rows = slice(i, i + stride * height, stride)
                columns = slice(j, j + stride * width, stride)
                of_input[:, :, rows, columns] += np.einsum("nohw,oc->nchw", g, weight[:, :, i, j])
        inside = slice(before, before + x.shape[2])
        return of_input[:, :, inside, inside], of_weight, g.sum((0, 2, 3))

    return y + bias[:, None, None], backward


def pool(x: Floats) -> tuple[Floats, Backward]:
    """Windows of 3 every 2 pixels; the last may hang over the edge."""
    side = x.shape[2]
    count = 1 + -(-(side - POOL) // STRIDE)
    y = np.empty((*x.shape[:2], count, count))
    where = np.zeros((*y.shape, 2), np.int64)
    for i in range(count):
        for j in range(count):
            window = x[:, :, i * STRIDE : i * STRIDE + POOL, j * STRIDE : j * STRIDE + POOL]
            flat = window.reshape(*x.shape[:2], -1)
            best = flat.argmax(-1)
            y[:, :, i, j] = flat.max(-1)
            where[:, :, i, j, 0] = i * STRIDE + best // window.shape[3]
            where[:, :, i, j, 1] = j * STRIDE + best % window.shape[3]

    def backward(g: Floats) -> Floats:
        of_input = np.zeros_like(x)
        n, c = np.ogrid[: x.shape[0], : x.shape[1]]
        for i in range(count):
            for j in range(count):
                np.add.at(of_input, (n, c, *np.moveaxis(where[:, :, i, j], -1, 0)), g[:, :, i, j])
        return of_input

    return y, backward


def normalise(x: Floats, k: float, scale: float, sums: Backward) -> tuple[Floats, Backward]:
    """x / (k + scale * sums(x^2))^0.75; sums: of a window that is symmetric."""
    base = k + scale * sums(x**2)

    def backward(g: Floats) -> Floats:
        return g * base**-0.75 - 1.5 * scale * x * sums(g * x * base**-1.75)

    return x * base**-0.75, backward


def channel_sums(x: Floats) -> Floats:
    padded = np.pad(x, ((0, 0), (2, 2), (0, 0), (0, 0)))
    return np.add.reduce([padded[:, i : i + x.shape[1]] for i in range(5)])


def pixel_sums(x: Floats) -> Floats:
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    shifts = [(i, j) for i in range(5) for j in range(5)]
    return np.add.reduce([padded[:, :, i : i + height, j : j + width] for i, j in shifts])


def relu(x: Floats) -> tuple[Floats, Backward]:
    return np.maximum(x, 0), lambda g: g * (x > 0)


def hashed(x: int) -> int:
    """SplitMix64's finaliser."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def dropout_mask(seed: int, step: int, layer: int, rows: int, units: int) -> Floats:
    """Bit u % 64 of a hash of (row, u // 64), for the batch's rows."""
    key = 0
    for part in (seed, step, layer):
        key = hashed((key + 0x9E3779B97F4A7C15 * (part + 1)) % 2**64)
    mask = np.empty((rows, units))
    for row in range(rows):
        for unit in range(units):
            place = (row << 32 | unit // 64) * 0x9E3779B97F4A7C15
            mask[row, unit] = hashed((place + key) % 2**64) >> unit % 64 & 1
    return mask


def softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


class Network:
    """Weights by the names of the product's checkpoints; `loss_and_gradients` of one batch."""

    def __init__(self, parameters: Parameters, input_scale: float, conv1_overhang: int) -> None:
        self.parameters, self.input_scale = parameters, input_scale
        self.overhang = conv1_overhang

    def loss_and_gradients(
        self, images: Floats, labels: NDArray[np.int64], masks: dict[str, Floats]
    ) -> tuple[float, Parameters]:
        """images [n,3,s,s]: the rows that are samples alone; the mean loss over them. masks: of
        fc6 and fc7."""
        self.gradients = {name: np.zeros_like(value) for name, value in self.parameters.items()}
        logits, back = self.forward(images, masks)
        chances = softmax(logits)
        rows = np.arange(len(labels))
        loss = -np.log(chances[rows, labels]).mean()
        g = chances.copy()
        g[rows, labels] -= 1
        back(g / len(labels))
        return float(loss), self.gradients

    def forward(
        self, images: Floats, masks: dict[str, Floats]
    ) -> tuple[Floats, Callable[[Floats], None]]:
        """The logits, and what adds to the gradients, given theirs."""
        towers: list[Floats] = []
        undo: list[Backward] = []
        for tower in (0, 1):
            x, back = self._first_two(images * self.input_scale, tower)
            towers.append(x)
            undo.append(back)
        whole, back3 = self._convolution("conv3", np.concatenate(towers, 1), None)
        deep = [self._last_two(half, tower) for tower, half in enumerate(np.split(whole, 2, 1))]
        features = np.concatenate([x.reshape(len(x), -1) for x, _ in deep], 1)
        fc6, back6 = self._dense("fc6", features, masks)
        fc7, back7 = self._dense("fc7", fc6, masks)
        logits, back8 = self._dense("fc8", fc7, None)

        def backward(g: Floats) -> None:
            g = back6(back7(back8(g)))
            halves = [
                back(part.reshape(x.shape))
                for (x, back), part in zip(deep, np.split(g, 2, 1), strict=True)
            ]
            of_towers = np.split(back3(np.concatenate(halves, 1)), 2, 1)
            for tower in (0, 1):
                undo[tower](of_towers[tower])

        return logits, backward

    def _first_two(self, x: Floats, tower: int) -> tuple[Floats, Backward]:
        chain = [
            lambda x: self._convolution("conv1", x, tower, active=False),
            lambda x: normalise(x, 2.0, 1e-4 / 5, channel_sums),
            pool,
            relu,
            lambda x: self._convolution("conv2", x, tower),
            lambda x: normalise(x, 2.0, 1e-4 / 5, channel_sums),
            lambda x: normalise(x, 1.0, 1e-3 / 25, pixel_sums),
            pool,
        ]
        return composed(chain, x)

    def _last_two(self, x: Floats, tower: int) -> tuple[Floats, Backward]:
        inner = [
            lambda x, name=name: self._convolution(name, x, tower) for name in ("conv4", "conv5")
        ]
        return composed([*inner, pool], x)

    def _convolution(
        self, name: str, x: Floats, tower: int | None, *, active: bool = True
    ) -> tuple[Floats, Backward]:
        """tower: whose half of the outputs; None: both, reading all of x."""
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        half = len(bias) // 2
        own = slice(None) if tower is None else slice(tower * half, tower * half + half)
        stride, padding = {"conv1": (4, (0, self.overhang)), "conv2": (1, (2, 2))}.get(
            name, (1, (1, 1))
        )
        y, back = convolution(x, weight[own], bias[own], stride, padding)
        out, inactive = relu(y) if active else (y, lambda g: g)

        def backward(g: Floats) -> Floats:
            of_input, of_weight, of_bias = back(inactive(g))
            self.gradients[f"{name}.weight"][own] += of_weight
            self.gradients[f"{name}.bias"][own] += of_bias
            return of_input

        return out, backward

    def _dense(
        self, name: str, x: Floats, masks: dict[str, Floats] | None
    ) -> tuple[Floats, Backward]:
        weight = self.parameters[f"{name}.weight"]
        y = x @ weight.T + self.parameters[f"{name}.bias"]
        out, inactive = relu(y) if masks else (y, lambda g: g)
        mask = masks[name] if masks else 1.0

        def backward(g: Floats) -> Floats:
            g = inactive(g * mask)
            self.gradients[f"{name}.weight"] += g.T @ x
            self.gradients[f"{name}.bias"] += g.sum(0)
            return g @ weight

        return out * mask, backward


def evaluation(network: Network, images: Floats, labels: NDArray[np.int64]) -> list[float]:
    """Top-1, top-5 and negative log-likelihood, with half of each unit."""
    logits, _ = network.forward(images, dict.fromkeys(("fc6", "fc7"), np.array(0.5)))
    own = logits[np.arange(len(labels)), labels, None]
    better, shares = (logits > own).sum(1), np.exp(logits - own).sum(1)  # one over its own chance
    return [(better < 1).mean(), (better < 5).mean(), np.log(shares).mean()]


def composed(
    chain: list[Callable[[Floats], tuple[Floats, Backward]]], x: Floats
) -> tuple[Floats, Backward]:
    undo = []
    for one in chain:
        x, back = one(x)
        undo.append(back)

    def backward(g: Floats) -> Floats:
        for back in reversed(undo):
            g = back(g)
        return g

    return x, backward


def update(
    parameters: Parameters, velocities: Parameters, gradients: Parameters, rates: dict[str, float]
) -> None:
    """v <- 0.9 v - rate (g + 0.0005 w), w <- w + v; biases do not decay. rates: by parameter."""
    for name, weight in parameters.items():
        decay = 5e-4 * weight if name.endswith("weight") else 0.0
        velocities[name] = 0.9 * velocities[name] - rates[name] * (gradients[name] + decay)
        parameters[name] = weight + velocities[name]
