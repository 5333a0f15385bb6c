"""Ensembles: means of probabilities, plain and tuned."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gratis.errors import GratisError
from gratis.train.metrics import score_sums, scores
from gratis.train.paper.ensemble import Ensemble, compare, cross_validate, load, main, tune


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


def test_errors_are_printed_of_each_and_of_the_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four images of six classes. The first network errs on the last two, the second on the second;
    their mean gives the right classes 0.75, 0.45, 0.4 and 0.525, and errs on two."""
    labels = torch.arange(4)
    for name, right in (("a", (0.9, 0.8, 0.1, 0.1)), ("b", (0.6, 0.1, 0.7, 0.95))):
        probabilities = torch.zeros(4, 6)
        probabilities[labels, labels] = torch.tensor(right)
        probabilities[labels, labels + 1] = 1 - torch.tensor(right)
        stored = {"labels": labels, "probabilities": probabilities}
        save_file(stored, tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    (tmp_path / "wide").write_text("")
    main([*files, "--runs", str(tmp_path), "--out", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "errors in %, 4 validation images" in printed
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["what"] for row in rows[:3]] == [*files, "mean of 2"]
    assert [1 - row["scores"]["top1"] for row in rows[:3]] == pytest.approx([0.5, 0.25, 0.5])
    assert [row["scores"]["top5"] for row in rows[:3]] == [1, 1, 1]
    nll = -sum(math.log(right) for right in (0.75, 0.45, 0.4, 0.525)) / 4
    assert rows[2]["scores"]["nll"] == pytest.approx(nll)
    cells = [[cell.strip() for cell in line.split("│")[2:-1]] for line in printed.splitlines()]
    assert ["50.00", "0.00", f"{nll:.4f}"] in cells
    assert [row[0] for row in cells if row and row[0].endswith(".00")][:3] == [
        "50.00",
        "25.00",
        "50.00",
    ]
    shares = rows[3]["coefficients"]
    line = f"coefficients: {files[0]} {shares[0]:.3f}, {files[1]} {shares[1]:.3f}"
    assert printed.splitlines()[-1] == line


def test_half_the_images_are_scored_with_the_other_half_s_coefficients() -> None:
    """Of even images the first network knows all and the second nothing; of odd ones the other way
    about: each half is scored with the coefficients that are wrong for it."""
    right = torch.tensor([[0.9, 0.1] * 4, [0.1, 0.9] * 4], dtype=torch.float64)
    probabilities = torch.stack([right, 1 - right], 2)
    scores = cross_validate(torch.zeros(8, dtype=torch.int64), probabilities)
    assert scores.top1 == 0
    assert scores.nll == pytest.approx(-math.log(0.1), rel=1e-3)


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
