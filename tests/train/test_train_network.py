"""The network against the specification's numbers (its section 7, by trap) and against torch's own
operators."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gratis.errors import GratisError
from gratis.loader import Loader
from gratis.train.mesh.mesh import Axis
from gratis.train.metrics import share_of_loss
from gratis.train.network.alexnet import AlexNet, weight_shapes
from gratis.train.network.dropout import DropoutKey, keep_mask
from gratis.train.network.layers import ceil_windows, plan
from gratis.train.network.normalisation import cross_map_norm, within_map_norm
from gratis.train.rank import training_config
from gratis.train.recipes import (
    CAFFE,
    OWT,
    RECIPES,
    RELEASED,
    TORCHVISION,
    Layer,
    Recipe,
    RecipeName,
)

SMALL = replace(RELEASED, image_size=73, crop=64, width=1 / 16, batch=8)


def parameters(recipe: Recipe, classes: int = 1000) -> int:
    return sum(math.prod(shape) + shape[0] for shape in weight_shapes(recipe, classes).values())


def column(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def lrn(
    values: list[float], *, alpha: float = 1e-4, k: float = 2.0, groups: int = 1
) -> list[float]:
    return cross_map_norm(column(values), alpha=alpha, k=k, groups=groups).flatten().tolist()


def test_lrn_divides_alpha_by_its_window() -> None:  # trap 1
    assert lrn([100.0] * 5) == pytest.approx(
        [48.83936, 46.19888, 43.86913, 46.19888, 48.83936], abs=1e-4
    )
    assert lrn([100.0] * 5, alpha=5e-4)[:3] == pytest.approx(
        [29.90698, 26.08474, 23.23681], abs=1e-4
    )
    ramp = [5.884357, 11.631335, 17.136, 22.295521, 27.946353, 33.745586]
    assert lrn([10.0, 20, 30, 40, 50, 60]) == pytest.approx(ramp, abs=1e-4)


def test_lrn_base_is_two() -> None:  # trap 2
    assert lrn([100.0] * 5, k=1.0)[:3] == pytest.approx([70.29267, 64.34957, 59.46036], abs=1e-4)
    assert lrn([1e-3])[0] / 1e-3 == pytest.approx(0.5946036, abs=1e-6)


def test_lrn_window_stays_in_its_tower() -> None:  # trap 3
    values = [0.0] * 96
    values[47], values[48] = 10.0, 100.0
    assert lrn(values, groups=2)[47] == pytest.approx(5.941580, abs=1e-5)
    assert lrn(values, groups=1)[47] == pytest.approx(5.532062, abs=1e-5)


def test_conv1_overhangs_right_and_below() -> None:  # trap 4
    """Ones convolved with ones by the network's own conv1: how many inputs each window covers."""
    for recipe, covered in (
        (RELEASED, (363, 264, 192)),
        (TORCHVISION, (243, 270, 300)),
        (CAFFE, (363, 363, 363)),
    ):
        network = AlexNet(replace(recipe, width=1 / 16, input_scale=1.0), 10)
        with torch.no_grad():
            network.get_parameter("conv1.weight").fill_(1)
            network.get_parameter("conv1.bias").zero_()
            out = network._conv("conv1", torch.ones(1, 3, recipe.crop, recipe.crop))[0, 0]
        assert out.shape == (55, 55)
        assert (out[0, 0], out[0, 54], out[54, 54]) == covered


@pytest.mark.parametrize(("order", "expected"), [("before", 51.86108), ("after", 55.35833)])
def test_layer_one_normalises_signed_responses(order: str, expected: float) -> None:  # trap 5
    """conv1 of the network itself, silenced to its biases: all of its maps are constant, so pooling
    changes nothing."""
    network = AlexNet(replace(SMALL, width=1 / 8, lrn_order=order), 10)  # six channels a tower
    first: list[Tensor] = []

    def kept(layer: Layer, x: Tensor) -> Tensor:
        first.append(x)
        raise StopIteration

    with torch.no_grad():
        network.get_parameter("conv1.weight").zero_()
        network.get_parameter("conv1.bias").copy_(torch.tensor([-100.0, 100, 0, 0, 0, 0] * 2))
    original = network._conv
    network._conv = lambda layer, x: original(layer, x) if layer == "conv1" else kept(layer, x)  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        network(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(
        first[0][0, 1], torch.full_like(first[0][0, 1], expected), atol=1e-4, rtol=0
    )


def test_no_two_seeds_share_a_layer_s_draws() -> None:
    """Nine layers with conv6: the ninth of one seed must not begin where the first of the next
    does."""
    recipe = replace(SMALL, width=1 / 4, conv6=True)
    networks = [AlexNet(recipe, 64, seed=seed) for seed in range(3)]
    heads = [
        p.flatten()[:64]
        for network in networks
        for name, p in network.named_parameters()
        if "weight" in name
    ]
    apart = [head / head.std() for head in heads]
    assert len(apart) == 3 * 9
    for n, one in enumerate(apart):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in apart[n + 1 :])


def test_the_largest_seeds_are_seeds() -> None:
    for seed in (2**61, 2**63 - 1):
        assert AlexNet(SMALL, 10, seed=seed).get_parameter("fc8.weight").std() > 0


@pytest.fixture(scope="module")
def released() -> AlexNet:
    """Untrained. Of 61 million parameters, which take a while to draw."""
    return AlexNet(RELEASED, 1000)


def test_first_responses_and_first_loss_are_of_the_expected_size(
    released: AlexNet,
) -> None:  # trap 10, trap 23
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(4, 3, 224, 224).normal_(0, 74.4, generator=generator)
    network = released
    with torch.no_grad():
        responses = F.conv2d(images, network.get_parameter("conv1.weight"), stride=4)
        logits = network(images, DropoutKey(seed=0, step=0, rows=range(4)))
    assert responses.std().item() == pytest.approx(0.01 * 74.4 * math.sqrt(363), rel=0.05)
    # the mean over all labels: four images have few
    assert 6.85 < -logits.log_softmax(1).mean().item() < 7.3


def test_a_real_batch_begins_at_chance(sample_shards: Path) -> None:  # trap 10, trap 23
    """The released data path and initialisation, on images of half the size."""
    recipe = replace(RELEASED, image_size=128, crop=112)
    network = AlexNet(recipe, 1000)
    with Loader(
        sample_shards, "train", training_config(recipe), device=torch.device("cpu")
    ) as loader:
        images, labels, _ = next(iter(loader))
        with torch.no_grad():
            responses = network._conv("conv1", images)
            logits = network(images, DropoutKey(seed=0, step=0, rows=range(recipe.batch)))
        assert 8 < responses.std().item() < 20
        assert 6.85 < share_of_loss(logits, labels, recipe.batch).item() < 7.3


def test_parameters_and_initial_values(released: AlexNet) -> None:  # trap 11, trap 17
    network = released
    assert sum(p.numel() for p in network.parameters()) == 60_965_224
    named = dict(network.named_parameters())
    assert sum(p.sum().item() for name, p in named.items() if name.endswith("bias")) == 9088
    for name in ("conv1", "conv3", "fc8"):
        assert not named[f"{name}.bias"].any()
    for layer in ("conv3", "conv4", "conv5"):
        assert named[f"{layer}.weight"].std().item() == pytest.approx(0.03, rel=0.01)
    for layer in ("conv1", "conv2", "fc6", "fc7", "fc8"):
        assert named[f"{layer}.weight"].std().item() == pytest.approx(0.01, rel=0.01)


def test_parameter_counts_of_the_variants() -> None:
    half = replace(RELEASED, towers=1, channels=(48, 128, 192, 192, 256))
    assert parameters(half) == 59_798_312
    assert parameters(replace(RELEASED, towers=1)) == 62_378_344  # what forgetting the groups gives
    assert parameters(TORCHVISION) == 61_100_840
    assert parameters(OWT) == 61_100_840
    assert parameters(RELEASED, 10_184) == 98_592_072
    assert parameters(RELEASED, 21_841) == 146_350_801


def test_towers_meet_at_conv3_and_not_before() -> None:  # trap 17
    network = AlexNet(replace(SMALL, init="he"), 10)
    generator = torch.Generator().manual_seed(1)
    layers: list[tuple[Layer, int, bool]] = [
        ("conv2", 6, False),
        ("conv3", 16, True),
        ("conv4", 24, False),
        ("conv5", 24, False),
    ]
    for layer, channels, meets in layers:
        x = torch.empty(2, channels, 5, 5).normal_(generator=generator)
        silent = x.clone()
        silent[:, channels // 2 :] = 0
        outputs = [network._conv(layer, y) for y in (x, silent)]
        tower_a = [out[:, : out.shape[1] // 2] for out in outputs]
        assert torch.equal(*tower_a) is not meets


def test_pools_cover_every_pixel() -> None:  # trap 21
    def sizes(size: int, kernel: int) -> list[int]:
        return [size := ceil_windows(size, kernel, 2) for _ in range(3)]

    assert sizes(55, 3) == [27, 13, 6]
    assert sizes(ceil_windows(112, 11, 4), 3) == [13, 6, 3]
    assert ceil_windows(55, 2, 2) == 28
    assert [
        plan(r, 10)["conv5"].pooled for r in (RELEASED, replace(RELEASED, crop=112), CAFFE)
    ] == [6, 3, 6]


def test_within_map_norm() -> None:  # trap 22
    out = within_map_norm(torch.full((1, 1, 7, 7), 100.0))[0, 0]
    assert out[3, 3].item() == pytest.approx(16.556004, abs=1e-4)
    assert out[0, 0].item() == pytest.approx(31.836964, abs=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norms_equal_torch_and_their_gradients_finite_differences(
    layout: torch.memory_format,
) -> None:
    x = (
        torch.randn(2, 8, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        * 30
    )
    x = x.contiguous(memory_format=layout).requires_grad_()
    ours = cross_map_norm(x, alpha=1e-4, k=2.0, groups=1)
    torch.testing.assert_close(ours, F.local_response_norm(x, 5, 1e-4, 0.75, 2.0))
    two = x[..., :2].detach().requires_grad_()  # columns: each number is moved by itself
    assert torch.autograd.gradcheck(lambda y: cross_map_norm(y, alpha=0.5, k=2.0, groups=2), two)
    assert torch.autograd.gradcheck(within_map_norm, two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_compute_in_float32(dtype: torch.dtype) -> None:
    """Of 16-bit responses only the results are rounded."""
    x = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(2)).to(dtype) * 100
    for norm in (lambda y: cross_map_norm(y, alpha=1e-4, k=2.0, groups=2), within_map_norm):
        assert norm(x).dtype == dtype
        assert torch.equal(norm(x), norm(x.float()).to(dtype))


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_whole_forward_equals_torch_operators(order: str) -> None:
    """An independent writing of section 3, for a network of two towers in eval form."""
    # responses of a hundred, where normalisation does something
    recipe = replace(SMALL, init="he", input_scale=1.0, lrn_order=order)
    network = AlexNet(recipe, 7).double()
    p = dict(network.named_parameters())

    def norm(x: Tensor) -> Tensor:
        return torch.cat([F.local_response_norm(t, 5, 1e-4, 0.75, 2.0) for t in x.chunk(2, 1)], 1)

    def conv(layer: str, x: Tensor, groups: int, padding: int, stride: int = 1) -> Tensor:
        return F.conv2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], stride, padding, groups=groups)

    images = (
        torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        * 70
    )
    x = conv("conv1", F.pad(images, (0, 3, 0, 3)), 1, 0, 4)
    x = norm(x) if order == "before" else norm(x.relu())
    x = F.max_pool2d(x, 3, 2, ceil_mode=True).relu()
    x = norm(conv("conv2", x, 2, 2).relu())
    squares = F.conv2d(
        x.square(), torch.ones(x.shape[1], 1, 5, 5, dtype=x.dtype), padding=2, groups=x.shape[1]
    )
    x = F.max_pool2d(x / (1 + 0.001 / 25 * squares) ** 0.75, 3, 2, ceil_mode=True)
    x = conv("conv4", conv("conv3", x, 1, 1).relu(), 2, 1).relu()
    x = F.max_pool2d(conv("conv5", x, 2, 1).relu(), 3, 2, ceil_mode=True).flatten(1)
    x = 0.5 * F.linear(x, p["fc6.weight"], p["fc6.bias"]).relu()
    x = 0.5 * F.linear(x, p["fc7.weight"], p["fc7.bias"]).relu()
    torch.testing.assert_close(
        network(images), F.linear(x, p["fc8.weight"], p["fc8.bias"]), rtol=1e-10, atol=1e-12
    )


def test_every_layer_s_gradient_equals_finite_differences() -> None:
    """As the original's check-grads: each parameter moved along a random direction, masks and
    normalisations on."""
    network = AlexNet(replace(SMALL, init="he", input_scale=1 / 64), 7).double()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=generator) * 70
    draw, labels, step = DropoutKey(seed=0, step=0, rows=range(4)), torch.arange(4), 1e-6

    def loss() -> Tensor:
        return F.cross_entropy(network(images, draw), labels)

    loss().backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            ahead = (parameter.add_(direction, alpha=step), loss())[1]
            behind = (parameter.sub_(direction, alpha=2 * step), loss())[1]
            parameter.add_(direction, alpha=step)
        slope = ((ahead - behind) / (2 * step)).item()
        assert slope == pytest.approx(
            (parameter.grad * direction).sum().item(), rel=1e-5, abs=1e-9
        ), name


def test_dropout_halves_at_test_and_never_doubles() -> None:  # trap 14
    network = AlexNet(SMALL, 10)
    x, draw = torch.ones(1000, 1000), DropoutKey(seed=0, step=0, rows=range(1000))
    trained = network._drop(x, 6, draw)
    assert trained.max() == 1
    assert trained.mean().item() == pytest.approx(0.5, abs=0.003)
    assert (network._drop(x, 6, None) == 0.5).all()
    inverted = AlexNet(replace(SMALL, dropout="inverted"), 10)
    assert inverted._drop(x, 6, draw).max() == 2
    assert (inverted._drop(x, 6, None) == 1).all()


def test_dropout_acts_on_the_inputs_of_fc7_and_fc8_alone() -> None:  # trap 14
    network = AlexNet(replace(SMALL, init="he", input_scale=1 / 64), 10)
    images = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 70
    inputs: dict[bool, dict[str, Tensor]] = {}
    original = AlexNet._dense
    for training in (False, True):
        kept = inputs[training] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                AlexNet,
                "_dense",
                lambda self, layer, x, kept=kept: (
                    kept.__setitem__(layer, x),
                    original(self, layer, x),
                )[1],
            )
            network(images, DropoutKey(seed=0, step=0, rows=range(64)) if training else None)
    assert torch.equal(inputs[True]["fc6"], inputs[False]["fc6"])
    before = {"fc7": inputs[False]["fc7"], "fc8": network._dense("fc7", inputs[True]["fc7"]).relu()}
    for layer, kept in before.items():
        zeros = (kept == 0).double().mean().item()
        assert 0.05 < zeros < 0.95
        dropped = (inputs[True][layer] == 0).double().mean().item()
        assert dropped == pytest.approx(zeros + (1 - zeros) / 2, abs=0.02)
        alive = inputs[True][layer] != 0
        if layer == "fc8":  # kept as they are: neither halved nor doubled
            assert torch.equal(inputs[True][layer][alive], kept[alive])


def test_masks_are_a_function_of_position_and_unit() -> None:
    def mask(rows: range, units: range, **other: int) -> Tensor:
        given = {"seed": 3, "step": 17, "layer": 6} | other
        key = DropoutKey(seed=given["seed"], step=given["step"], rows=rows)
        return keep_mask(key, layer=given["layer"], units=units, device=torch.device("cpu"))

    whole = mask(range(128), range(4096))
    for row, bits in zip(
        whole,
        ("01011101111110001110011111010100", "11000110100000000001111000111010"),
        strict=False,
    ):
        # runs that go on depend on them
        assert "".join(str(bit) for bit in row[:32].int().tolist()) == bits
    assert torch.equal(mask(range(64, 96), range(4096)), whole[64:96])
    assert torch.equal(mask(range(128), range(2048, 4096)), whole[:, 2048:])
    assert torch.equal(mask(range(5, 9), range(33, 101)), whole[5:9, 33:101])
    for other in ({"seed": 4}, {"step": 18}, {"layer": 7}):
        agreement = (mask(range(128), range(4096), **other) == whole).double().mean().item()
        assert agreement == pytest.approx(0.5, abs=0.005)
    for dim in (0, 1):  # neither rows nor units resemble one another
        means = whole.double().mean(dim)
        assert means.mean().item() == pytest.approx(0.5, abs=0.003)
        assert means.std().item() == pytest.approx(0.5 / math.sqrt(whole.shape[dim]), rel=0.15)
    assert (whole[:-1] == whole[1:]).double().mean().item() == pytest.approx(0.5, abs=0.005)
    assert (whole[:, :-64] == whole[:, 64:]).double().mean().item() == pytest.approx(0.5, abs=0.005)


def test_every_recipe_may_be_asked_for() -> None:
    assert get_args(RecipeName) == tuple(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs(name: str) -> None:
    recipe = replace(RECIPES[name], width=1 / 16)
    network = AlexNet(recipe, 5)
    images = torch.randn(2, 3, recipe.crop, recipe.crop)
    loss = network(images, DropoutKey(seed=0, step=0, rows=range(2))).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"crop": 300}, "larger"),
        ({"crop": 20}, "at least"),
        ({"width": 0.01}, "width"),
        ({"rate": -1.0}, "rate"),
        ({"warmup_steps": -5}, "warmup-steps -5"),
        ({"weight_decay": -1.0}, "weight-decay -1"),
        ({"bias_rate": -1.0}, "bias-rate -1"),
        ({"bias_rate": math.nan}, "bias-rate nan"),
        ({"lrn_k": -1.0}, "lrn-k -1"),
        ({"lrn_alpha": -1.0}, "lrn-alpha -1"),
        ({"drops": (2.0, -1.0)}, "drops 2"),
        ({"drops": (0.5, -1.0)}, "drops -1"),
        ({"noise_until": -1.0}, "noise-until -1"),
        ({"conv1_slow": math.nan}, "conv1-slow nan"),
        ({"crop_area": (0.5, 1.5)}, "crop-area 0.5 1.5"),
        ({"crop_area": (0.0, 1.0)}, "crop-area 0.0 1.0"),
        ({"crop_area": (0.1, 1.0), "mean": "offset"}, "want --crop-chunk 1 and --mean central"),
    ],
)
def test_recipes_refuse_what_cannot_be(fields: dict[str, float], word: str) -> None:
    with pytest.raises(GratisError, match=word):
        replace(RELEASED, **fields)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.slow
def test_a_tower_s_rank_is_compiled_around_its_exchanges(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two towers, whose peer has the same features. The compiler sees no collective, and
    changes nothing."""
    from torch._dynamo.testing import CompileCounter  # two seconds, which the other tests need not

    traced: list[bool] = []

    def doubled(x: Tensor, dim: int, *_: object) -> Tensor:
        traced.append(torch.compiler.is_compiling())
        return torch.cat([x, x], dim)

    counter, compiler = CompileCounter(), torch.compile
    monkeypatch.setattr("gratis.train.network.alexnet.gather", doubled)
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend=counter))
    network = AlexNet(replace(SMALL, init="he", input_scale=1 / 64), 5, tower=Axis(size=2, index=0))
    images, draw = torch.randn(2, 3, 64, 64) * 70, DropoutKey(seed=0, step=0, rows=range(2))
    with torch.no_grad():
        expected = network(images, draw)
        exchanges = len(traced)
        network.compile_layers()
        assert torch.equal(network(images, draw), expected)
    assert exchanges == 5  # before conv3 and fc6 to fc8, and the logits
    assert traced == [False] * 2 * exchanges
    assert counter.frame_count >= 2  # before conv3 and after
