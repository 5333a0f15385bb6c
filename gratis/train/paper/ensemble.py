"""Several networks' probabilities averaged: `gratis ensemble RUN RUN ... --runs runs`.

Each run, trained with --save-probabilities, has left its ten views' mean probabilities of every
validation image in `probabilities.safetensors`. Printed are the errors of each, of their plain mean
(what the paper's 5 and 7 networks do), and of a mean with coefficients.

The coefficients are **tuned on validation images**: non-negative, of sum 1, of least mean negative
log-likelihood. Their error on the images they were tuned on flatters them, so it is also given on
images that they were not tuned on: the validation split's odd rows with the coefficients of the
even ones and the other way about."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from gratis.atomic import atomic_output
from gratis.command_line import parse
from gratis.errors import GratisError

if TYPE_CHECKING:
    from torch import Tensor

    from gratis.train.metrics import Scores

FILE = "probabilities.safetensors"
ROUNDS = 500  # of expectation maximisation; each raises the likelihood, and few are needed
ENOUGH = 1e-9  # change of a coefficient after which nothing will follow


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Errors of several networks, of the mean of their probabilities, and of a mean tuned on
    validation."""

    members: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Runs by name or folder, or files of probabilities."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    out: Path | None = None
    """JSON file to write the numbers to."""

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise GratisError(
                "ensemble needs at least two runs that were trained with --save-probabilities"
            )
        if twice := [name for name in self.members if self.members.count(name) > 1]:
            raise GratisError(f"{twice[0]} is given twice; an ensemble is of different runs")


@dataclass(frozen=True, kw_only=True)
class EnsembleRow:
    """What is scored, by which coefficients, and how."""

    what: str
    scores: Scores
    coefficients: list[float] | None = None


def main(arguments: list[str]) -> None:
    options = parse(Ensemble, arguments, "gratis ensemble")
    labels, probabilities = load(options)
    rows = compare(list(options.members), labels, probabilities)
    table = Table(title=f"errors in %, {len(labels):,} validation images")
    for heading in ("", "top-1", "top-5", "nll"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for row in rows:
        errors = (f"{100 - 100 * share:.2f}" for share in (row.scores.top1, row.scores.top5))
        table.add_row(row.what, *errors, f"{row.scores.nll:.4f}")
    Console().print(table)
    tuned = next(row.coefficients for row in rows if row.coefficients)
    pairs = zip(options.members, tuned, strict=True)
    print("coefficients: " + ", ".join(f"{member} {share:.3f}" for member, share in pairs))
    if options.out:
        with atomic_output(options.out, "choose another --out") as draft:
            draft.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


def load(options: Ensemble) -> tuple[Tensor, Tensor]:
    """Labels [N] and probabilities [members, N, classes] float64. GratisError where they are not of
    the same images."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files, members = [], dict[Path, str]()
    for member in options.members:
        path = file_of(member, options.runs)
        if (same := members.setdefault(path.resolve(), member)) != member:
            raise GratisError(f"{same} and {member} are one run; an ensemble is of different ones")
        try:
            stored = load_file(path)
            files.append((path, stored["labels"], stored["probabilities"].double()))
        except (OSError, SafetensorError, KeyError) as error:
            raise GratisError(
                f"{path} cannot be read ({error}); train that run again with --save-probabilities"
            ) from None
    first, labels, probabilities = files[0]
    for path, other, own in files[1:]:
        if own.shape != probabilities.shape or not torch.equal(other, labels):
            raise GratisError(
                f"{path} is of other images or classes than {first}: an ensemble needs one dataset"
            )
    return labels, torch.stack([own for _, _, own in files])


def file_of(member: str, runs: Path) -> Path:
    for path in (runs / member / FILE, Path(member) / FILE, Path(member)):
        if path.is_file():
            return path
    raise GratisError(
        f"run {member} has no {FILE} in {runs}; train it with --save-probabilities, or name its "
        f"--runs"
    )


def compare(names: list[str], labels: Tensor, probabilities: Tensor) -> list[EnsembleRow]:
    """One row for each member, the plain mean, and the tuned means."""
    scores = {name: score(own, labels) for name, own in zip(names, probabilities, strict=True)}
    scores[f"mean of {len(names)}"] = score(probabilities.mean(0), labels)
    rows = [EnsembleRow(what=name, scores=own) for name, own in scores.items()]
    tuned = tune(labels, probabilities)
    own, what = score(mix(tuned, probabilities), labels), "mean tuned on these very images"
    rows.append(EnsembleRow(what=what, scores=own, coefficients=tuned.tolist()))
    if len(labels) > 1:
        own = cross_validate(labels, probabilities)
        rows.append(EnsembleRow(what="mean tuned on the other half of them", scores=own))
    return rows


def cross_validate(labels: Tensor, probabilities: Tensor) -> Scores:
    """Each half of the images scored with the coefficients of the other half."""
    import torch

    mixes = torch.empty_like(probabilities[0])
    for own in (0, 1):
        tuned = tune(labels[1 - own :: 2], probabilities[:, 1 - own :: 2])
        mixes[own::2] = mix(tuned, probabilities[:, own::2])
    return score(mixes, labels)


def tune(labels: Tensor, probabilities: Tensor) -> Tensor:
    """[members] >= 0 of sum 1 that maximise the likelihood of the labels: a convex problem, by
    expectation maximisation from equal shares."""
    import torch

    right = probabilities[:, torch.arange(len(labels)), labels].clamp_min(1e-300)
    shares = torch.full((len(right),), 1 / len(right), dtype=torch.float64)
    for _ in range(ROUNDS):
        before, owned = shares, shares[:, None] * right
        shares = (owned / owned.sum(0)).mean(1)
        if (shares - before).abs().max() < ENOUGH:
            break
    return shares


def mix(coefficients: Tensor, probabilities: Tensor) -> Tensor:
    import torch

    return torch.einsum("m,mnc->nc", coefficients, probabilities)


def score(probabilities: Tensor, labels: Tensor) -> Scores:
    from gratis.train.metrics import score_sums, scores

    return scores(score_sums(probabilities, labels))
