"""Ensembles: means of probabilities, plain and tuned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gratis.errors import GratisError
from gratis.train.metrics import score_sums, scores
from gratis.train.paper.ensemble import Ensemble, compare, load, tune


@pytest.fixture
def members(tmp_path: Path) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """Three runs' probabilities over 400 images of 10 classes: two that know something, one that
    knows nothing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (400,), generator=generator)
    logits = torch.randn(3, 400, 10, generator=generator)
    logits[:2, torch.arange(400), labels] += 2
    probabilities = logits.softmax(2)
    for number, own in enumerate(probabilities):
        (tmp_path / f"r{number}").mkdir()
        save_file(
            {"labels": labels, "probabilities": own.contiguous()},
            tmp_path / f"r{number}" / "probabilities.safetensors",
        )
    return tmp_path, labels, probabilities.double()


def test_an_ensemble_beats_its_members(members: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    runs, labels, probabilities = members
    loaded = load(Ensemble(members=("r0", "r1", "r2"), runs=runs))
    assert torch.equal(loaded[1], probabilities)
    rows = compare(["r0", "r1", "r2"], *loaded)
    assert rows[3].scores == scores(score_sums(probabilities.sum(0) / 3, labels))
    assert rows[4].scores.nll < min(one.scores.nll for one in rows[:4])
    assert rows[4].scores.nll < rows[5].scores.nll < rows[3].scores.nll
    assert "tuned" in rows[4].what
    assert rows[4].coefficients is not None
    assert rows[4].coefficients[2] < 0.05
    assert sum(rows[4].coefficients) == pytest.approx(1)


def test_coefficients_are_those_of_a_fine_grid(
    members: tuple[Path, torch.Tensor, torch.Tensor],
) -> None:
    _, labels, probabilities = members
    right = probabilities[[0, 2]][:, torch.arange(400), labels]
    shares = torch.linspace(0, 1, 2001, dtype=torch.float64)
    likelihood = (shares[:, None] * right[0] + (1 - shares[:, None]) * right[1]).log().mean(1)
    assert tune(labels, probabilities[[0, 2]])[0].item() == pytest.approx(
        shares[likelihood.argmax()].item(), abs=1e-3
    )


def test_ensembles_of_different_images_are_refused(
    members: tuple[Path, torch.Tensor, torch.Tensor],
) -> None:
    runs, labels, probabilities = members
    save_file(
        {"labels": labels.flip(0), "probabilities": probabilities[0].float()},
        runs / "other.safetensors",
    )
    with pytest.raises(GratisError, match="of other images or classes"):
        load(Ensemble(members=("r0", str(runs / "other.safetensors")), runs=runs))
    with pytest.raises(
        GratisError, match=r"r9 has no probabilities\.safetensors in .*--save-probabilities"
    ):
        load(Ensemble(members=("r0", "r9"), runs=runs))
    with pytest.raises(GratisError, match="at least two runs"):
        Ensemble(members=("r0",))
    with pytest.raises(GratisError, match="r0 is given twice"):
        Ensemble(members=("r0", "r1", "r0"))
    (runs / "same").symlink_to("r0")
    for twice in (str(runs / "r0"), str(runs / "r0" / "probabilities.safetensors"), "same"):
        with pytest.raises(GratisError, match="are one run"):
            load(Ensemble(members=("r0", "r1", twice), runs=runs))
