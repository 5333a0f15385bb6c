"""The update rule, the schedules and the scores against the specification's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gratis.train.mesh.mesh import Axis, GradientSum
from gratis.train.metrics import (
    average_views,
    credit,
    score_sums,
    scores,
    share_of_loss,
    valid_rows,
)
from gratis.train.optimiser import Optimiser
from gratis.train.recipes import CAFFE, PAPER, RELEASED, SAMPLE, TORCHVISION
from gratis.train.schedule import Rates, drops, noise_until, rates
from gratis.train.settings import Wire


def constant(rate: float) -> Rates:
    return {"weights": rate, "biases": 2 * rate, "conv1_weights": rate, "conv1_biases": 2 * rate}


class One(nn.Module):
    """A network of one layer with a single weight and a single bias, both 1."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.fc6 = nn.Linear(1, 1, dtype=dtype)
        nn.init.ones_(self.fc6.weight)
        nn.init.ones_(self.fc6.bias)


def follow(optimiser: Optimiser, grads: list[float], steps: list[float]) -> list[float]:
    path = []
    weight, bias = optimiser.parameters["fc6.weight"], optimiser.parameters["fc6.bias"]
    for grad, rate in zip(grads, steps, strict=True):
        weight.grad, bias.grad = torch.full_like(weight, grad), torch.full_like(bias, grad)
        optimiser.step(constant(rate))
        path.append(weight.item())
    return path


def test_velocity_survives_a_drop_of_the_rate() -> None:  # trap 12
    drop, grads = [0.01, 0.01, 0.001, 0.001], [1.0, 1.0, 0.0, 0.0]
    released = Optimiser(One(), RELEASED)
    assert follow(released, grads, drop) == pytest.approx(
        [0.989995, 0.970985550, 0.953876560, 0.938477991], abs=1e-9
    )
    torchs = Optimiser(One(), replace(TORCHVISION, weight_decay=5e-4))
    assert follow(torchs, grads, drop)[2:] == pytest.approx([0.969274214, 0.967733527], abs=1e-9)
    assert follow(Optimiser(One(), RELEASED), grads, [0.01] * 4)[2:] == pytest.approx(
        [0.953872190, 0.938465397], abs=1e-9
    )


def test_biases_do_not_decay_and_learn_twice_as_fast() -> None:  # trap 13
    network = One()
    assert follow(Optimiser(network, RELEASED), [0.0], [0.01]) == pytest.approx(
        [0.999995], abs=1e-12
    )
    assert network.fc6.bias.item() == 1
    network = One()
    assert follow(Optimiser(network, RELEASED), [1.0], [0.01]) == pytest.approx(
        [1 - 0.01 - 5e-6], abs=1e-12
    )
    assert network.fc6.bias.item() == pytest.approx(0.98, abs=1e-12)


def test_rate_zero_freezes_bitwise_under_velocity() -> None:  # trap 13
    network = One()
    optimiser = Optimiser(network, RELEASED)
    follow(optimiser, [1.0], [0.01])
    before = [p.item() for p in network.parameters()]
    follow(optimiser, [1.0, 5.0], [0.0, 0.0])
    assert [p.item() for p in network.parameters()] == before
    optimiser.freeze(constant(0.0))
    assert not any(p.requires_grad for p in network.parameters())


def test_small_rates_keep_their_precision_in_float32() -> None:
    """The rate travels as 1 - dampening; at 1e-5 in single precision that would lose three
    digits."""
    network = One(torch.float32)
    optimiser = Optimiser(network, RELEASED)
    follow(optimiser, [1.0], [1e-5])
    assert optimiser.steps["fc6.weight"].item() == pytest.approx(1e-5 * (1 + 5e-4), rel=1e-6)


def test_released_schedule() -> None:
    def at(epoch: float) -> Rates:
        return rates(RELEASED, round(epoch * 1000), 1000)

    assert [
        at(e)["weights"] for e in (0, 24.999, 25, 50.999, 51, 78.999, 79, 89.999)
    ] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert {at(e)["biases"] for e in (0, 30, 60, 85)} == {0.02}
    assert [at(e)["conv1_weights"] for e in (66.999, 67, 71.999, 72)] == pytest.approx(
        [1e-4, 1e-5, 1e-5, 0]
    )
    assert at(72)["conv1_biases"] == 0
    assert noise_until(RELEASED) == 67
    assert noise_until(replace(RELEASED, epochs=9)) == 7


def test_dexp250() -> None:
    recipe = replace(RELEASED, schedule="dexp250", conv1_slow=None, conv1_frozen=None)
    marks = [rates(recipe, step, 100)["weights"] for step in (0, 2250, 2251, 4501, 6751, 8999)]
    assert marks == pytest.approx([0.01, 0.01, 0.0015874, 0.00025198, 0.00004, 0.00004], rel=1e-4)
    assert [rates(recipe, step, 100)["biases"] for step in (4500, 4501)] == pytest.approx(
        [0.02, 0.002]
    )
    assert rates(recipe, 9300, 100)["weights"] == pytest.approx(0.00004)  # beyond the end


def test_cosine_warms_up_and_ends_near_zero() -> None:
    last = SAMPLE.epochs * 32 - 1
    path = [rates(SAMPLE, step, 32)["weights"] for step in range(last + 1)]
    assert path[0] == pytest.approx(SAMPLE.rate / SAMPLE.warmup_steps)
    assert max(path) == pytest.approx(SAMPLE.rate, rel=0.1)
    assert 0 < path[-1] < 1e-3 * SAMPLE.rate
    assert rates(SAMPLE, 0, 32)["biases"] == pytest.approx(2 * SAMPLE.rate / 50)
    assert [rates(SAMPLE, last + 1 + more, 32)["weights"] for more in (0, 500)] == [0, 0]


def test_each_kind_has_its_rate() -> None:
    """Of fine-tuning: the convolutions learn at a tenth, conv1 from two thirds on at a thousandth
    of the first rate at most, and from three quarters on not at all."""
    recipe = replace(
        RELEASED, conv_rate=0.1, epochs=12, drops=(0.5,), conv1_slow=2 / 3, conv1_frozen=0.75
    )
    expected = {
        0: (1e-2, 2e-2, 1e-3, 2e-3, 1e-3, 2e-3),
        6: (1e-3, 2e-2, 1e-4, 2e-3, 1e-4, 2e-3),
        8: (1e-3, 2e-2, 1e-4, 2e-3, 1e-5, 2e-3),
        9: (1e-3, 2e-2, 1e-4, 2e-3, 0, 0),
    }
    names = "weights biases conv_weights conv_biases conv1_weights conv1_biases".split()
    for epoch, values in expected.items():
        for step in (0, 6) if epoch else (0,):
            found = rates(recipe, epoch * 7 + step, 7)
            assert found == pytest.approx(dict(zip(names, values, strict=True))), epoch


def test_conv1_is_never_quicker_for_being_slow() -> None:
    """Where the schedule has fallen below a thousandth of the first rate."""
    recipe = replace(RELEASED, schedule="cosine", conv1_slow=0.5, conv1_frozen=None, epochs=10)
    found = [rates(recipe, step, 100) for step in range(500, 1000)]
    assert all(one["conv1_weights"] <= one["conv_weights"] for one in found)
    assert found[0]["conv1_weights"] == pytest.approx(1e-5)
    assert found[-1]["conv1_weights"] == found[-1]["weights"] < 1e-6


@pytest.mark.parametrize(("epochs", "mark"), [(7, 3), (11, 5), (49, 23), (90, 51)])
def test_a_drop_comes_with_the_epoch_that_it_names(epochs: int, mark: int) -> None:
    recipe = replace(RELEASED, epochs=epochs, drops=(mark / epochs,), conv1_slow=mark / epochs)
    for steps in (1, 3, 1251, 10009):
        before, after = (rates(recipe, mark * steps + k, steps)["weights"] for k in (-1, 0))
        assert (before, after) == (pytest.approx(0.01), pytest.approx(0.001))


def test_a_mark_that_was_rounded_up_is_the_epoch_it_was_rounded_from() -> None:
    """3 / 7 is 0.428571428571..., and 0.4285714286 above it."""
    recipe = replace(RELEASED, epochs=7, drops=(0.4285714286,), noise_until=0.4285714286)
    before, after = (rates(recipe, 3 * 1251 + k, 1251)["weights"] for k in (-1, 0))
    assert (before, after) == (pytest.approx(0.01), pytest.approx(0.001))
    assert noise_until(recipe) == 3


def test_plateau_divides_three_times_when_the_error_stands_still() -> None:
    assert [drops(errors, 2) for errors in ([], [0.9, 0.8, 0.7], [0.9, 0.9], [0.9, 0.9, 0.9])] == [
        0,
        0,
        0,
        1,
    ]
    # a better one starts the count anew
    assert drops([0.9, 0.95, 0.8, 0.85, 0.85, 0.79, 0.8, 0.8], 2) == 2
    assert drops([0.9] * 50, 2) == 3
    # and so does a drop
    assert [drops([0.9] * count, 3) for count in (3, 4, 6, 7)] == [0, 1, 1, 2]
    recipe = replace(PAPER, patience=2)
    assert recipe.schedule == "plateau"
    for errors, rate in (([0.9, 0.8], 0.01), ([0.9] * 3, 0.001), ([0.9] * 50, 1e-5)):
        found = rates(recipe, 5000, 100, errors)
        # equal for all layers, as the paper says
        assert found["weights"] == found["biases"] == pytest.approx(rate)


def test_larger_batches_scale_the_rates() -> None:
    def weights(**fields: Any) -> float:
        return rates(replace(RELEASED, batch=1024, **fields), 0, 100)["weights"]

    assert weights() == 0.01
    assert weights(scale_rate="linear") == pytest.approx(0.08)
    assert weights(scale_rate="sqrt") == pytest.approx(0.01 * 8**0.5)
    assert weights(scale_rate="linear", warmup_steps=400) == pytest.approx(0.08 / 400)
    # meant for its own batch
    assert rates(replace(CAFFE, scale_rate="linear"), 0, 100)["weights"] == 0.01


def test_views_average_probabilities_not_logits() -> None:  # trap 15
    first = torch.tensor([0.01, 0.7, 0.7, 0.7], dtype=torch.float64)
    logits = torch.stack([first.log(), (1 - first).log()], 1)
    assert average_views(logits, 4)[0, 0].item() == pytest.approx(0.5275)
    assert logits.mean(0).argmax() == 1


def test_ties_share_credit() -> None:
    tied = torch.tensor([[3.0, 3, 1, 3], [0, 0, 0, 0], [4, 3, 2, 1]])
    assert credit(tied, torch.tensor([0, 1, 3]), 1).tolist() == pytest.approx([1 / 3, 1 / 4, 0])
    assert credit(tied, torch.tensor([0, 1, 3]), 2).tolist() == pytest.approx([2 / 3, 2 / 4, 0])
    many = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 50
    top5 = (many.topk(5, 1).indices == labels[:, None]).any(1)
    assert torch.equal(credit(many, labels, 5), top5.double())


def test_what_is_not_a_number_earns_nothing() -> None:
    for logits in (torch.full((2, 10), torch.nan), torch.full((2, 10), torch.inf)):
        probabilities = average_views(logits, 1)
        assert credit(probabilities, torch.tensor([0, 3]), 5).tolist() == [0, 0]
        assert math.isnan(scores(score_sums(probabilities, torch.tensor([0, 3]))).nll)
    half = torch.tensor([[0.5, torch.nan, 0.1]])
    assert credit(half, torch.tensor([0]), 1).item() == 0
    assert credit(half, torch.tensor([0]), 2).item() == 1


def test_scores_count_samples_only() -> None:
    probabilities = torch.tensor(
        [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64
    )
    found = scores(score_sums(probabilities, torch.tensor([0, 2, -100])))
    assert (found.images, found.top1, found.top5) == (2, 0.5, 1.0)
    assert found.nll == pytest.approx(
        -(torch.tensor(0.7).log() + torch.tensor(0.1).log()).item() / 2
    )


def test_shares_of_loss_add_up_to_the_mean_over_samples() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 4, -100, -100, -100])
    parts = [
        share_of_loss(logits[rows], labels[rows], 5)
        for rows in (slice(0, 4), slice(4, 6), slice(6, 8))
    ]
    assert sum(parts).item() == pytest.approx(
        nn.functional.cross_entropy(logits[:5], labels[:5]).item(), rel=1e-6
    )
    assert [valid_rows(step, 8, 21) for step in range(3)] == [8, 8, 5]


def test_losses_and_scores_are_as_exact_as_their_logits() -> None:
    logits = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    label = torch.tensor([1])
    assert share_of_loss(logits, label, 1).dtype == torch.float64
    assert share_of_loss(logits.bfloat16(), label, 1).dtype == torch.float32
    averaged = average_views(logits.float(), 1)
    assert averaged.dtype == score_sums(averaged, label).dtype == torch.float64
    assert average_views(logits, 1)[0, 1] > 0.5


def test_an_impossible_label_costs_a_finite_loss() -> None:
    """A probability that underflows is no divergence: 300 ln 10 at most."""
    sums = score_sums(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([1]))
    assert scores(sums).nll == pytest.approx(690.8, abs=0.1)


def test_top_5_is_five() -> None:
    probabilities = torch.tensor([[0.3, 0.2, 0.15, 0.14, 0.12, 0.09]], dtype=torch.float64)
    found = [scores(score_sums(probabilities, torch.tensor([label]))) for label in (0, 1, 4, 5)]
    assert [(one.top1, one.top5) for one in found] == [(1, 1), (0, 1), (0, 1), (0, 0)]


@pytest.fixture
def axis_of_one() -> Iterator[Axis]:
    """An axis that sends, in a world of this process alone: a sum is the term itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Axis(size=2, group=dist.group.WORLD)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("wire", "carried"),
    [("float32", 1.00390625 + 2**-20), ("bfloat16", 1.0078125), ("float16", 1.00390625)],
)
def test_what_was_summed_is_what_is_learned_from(
    axis_of_one: Axis, wire: Wire, carried: float
) -> None:
    """1 + 2^-8 + 2^-20, of which bfloat16 keeps 7 bits, rounded up, and float16 10: each gradient
    is then what came back, on the first step and on the next."""
    weight = nn.Parameter(torch.zeros(3))
    gradients = GradientSum([weight], axis_of_one, wire)
    for _ in range(2):
        (weight * (1 + 2**-8 + 2**-20)).sum().backward()  # type: ignore[no-untyped-call]
        gradients.wait()
        assert weight.grad is not None
        assert weight.grad.tolist() == [carried] * 3
        assert weight.grad.dtype == torch.float32
        weight.grad = None
