"""Ablations: the switches, and the table of differences seed by seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gratis.errors import GratisError
from gratis.history import outcome, records
from gratis.train.network.layers import plan
from gratis.train.options import parse
from gratis.train.paper.ablate import WHOLE, Ablate, ablate, digest, row
from gratis.train.paper.arguments import flags, recipe_flags
from gratis.train.paper.switches import SWITCHES
from gratis.train.recipes import RECIPES, RELEASED, SAMPLE


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", ["released", "tiny", "paper"])
def test_a_switched_recipe_is_what_its_options_say(name: str, switch: str) -> None:
    switched = SWITCHES[switch].off(replace(RECIPES[name], epochs=7, exchange=()))
    arguments = ["--shards", "x", "--recipe", name, *recipe_flags(switched, RECIPES[name])]
    assert parse(arguments).fields == switched
    assert digest(switched) != digest(RECIPES[name])


def test_a_command_is_put_together() -> None:
    options = flags(gpus=None, save_probabilities=True, lrn=False, only=("a", "b"), port=0)
    assert options == ["--save-probabilities", "--no-lrn", "--only", "a", "b", "--port", "0"]


def test_the_one_column_network_is_the_authors_own() -> None:
    one = SWITCHES["towers"].off(RELEASED)
    # specification, section 3
    assert sum(own.parameters for own in plan(one, 1000).values()) == 59_798_312
    lrn = SWITCHES["lrn"].off(RELEASED)
    assert (lrn.lrn, lrn.map_norm) == (False, False)


def test_what_is_known_of_a_small_network_is_computed_from_its_settings() -> None:
    small = replace(RECIPES["tiny"], image_size=64, crop=56)
    # conv1 13 pixels a side, pooled to 6, conv2 6, pooled to 3; the paper's 13
    assert SWITCHES["conv4"].why(small).startswith("it works on 3x3 pixels here, on 13x13")
    # squares of inputs / 64 count 4096 times less beside k = 2: 2 ** -0.75
    assert "multiply by about 0.59 and do no more" in SWITCHES["lrn"].why(small)
    assert SWITCHES["lrn"].why(replace(small, lrn_alpha=1e-4 * 64**2)) == ""
    assert [name for name, switch in SWITCHES.items() if switch.why(RELEASED)] == []


def test_differences_are_taken_seed_by_seed() -> None:
    table = {
        WHOLE: {0: (50.0, 20.0), 1: (40.0, 10.0)},
        "lrn": {0: (52.0, 20.5), 1: (41.0, 11.5), 2: (90.0, 90.0)},
    }
    own = row("lrn", table)
    assert own["top1_delta"] == [2, 1]
    assert own["top5_delta"] == [0.5, 1.5]
    assert own["seeds"] == [0, 1, 2]


@pytest.mark.slow
def test_ablation_trains_once_and_tabulates(
    ablated: Path,
    sample_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = ablated
    folders = sorted(runs.glob("ablate-*"))
    assert [outcome(folder) for folder in folders] == ["finished"] * 2
    recipes = [records(folder)[0]["config"]["recipe"] for folder in folders]
    assert [recipe["pool"] for recipe in recipes] == ["separate", "overlapping"]
    assert recipes[0] | {"pool": "overlapping"} == recipes[1]
    sizes = [(folder / "rank-0.jsonl").stat().st_size for folder in folders]
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs / "cache"))
    quick = replace(SAMPLE, width=0.0625, epochs=1, batch=100)  # what the command says
    options = Ablate(
        shards=str(sample_shards),
        runs=runs,
        fields="overlap",
        seeds="0",
        recipe="sample",
        whole=quick,
    )
    # the same dataset at an address: nothing is trained again
    table = ablate(replace(options, shards=f"file://{sample_shards}"))
    assert sorted(runs.glob("ablate-*")) == folders
    assert [(folder / "rank-0.jsonl").stat().st_size for folder in folders] == sizes
    assert "| pooling 2x2 every 2 | 1 |" in table.read_text()
    rows = json.loads((table.parent / "ablation.json").read_text())["rows"]
    last = [
        next(r for r in reversed(records(folder)) if r["kind"] == "eval" and r["views"] == 10)
        for folder in folders
    ]
    assert rows[1]["top1"] == pytest.approx([100 - 100 * last[0]["top1"]])
    assert rows[1]["top1_delta"] == pytest.approx([100 * (last[1]["top1"] - last[0]["top1"])])
    ablate(replace(options, whole=replace(quick, batch=50), minutes=1e-9))
    assert capsys.readouterr().out.count("skipped, it would end after --minutes") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fields": "lrn,nose"}, "'nose' is none of"),
        ({"seeds": "0,x"}, "0,x must be whole numbers"),
    ],
)
def test_wrong_ablations_stop_with_an_error(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(GratisError, match=message):
        Ablate(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("switch", ["lrn", "towers"])
def test_what_is_off_already_is_not_switched(
    sample_shards: Path, tmp_path: Path, switch: str
) -> None:
    whole = replace(RECIPES["owt"], image_size=128, crop=112)
    with pytest.raises(
        GratisError, match=f"--fields {switch}: these settings have that off already"
    ):
        ablate(
            Ablate(
                shards=str(sample_shards), runs=tmp_path, recipe="owt", whole=whole, fields=switch
            )
        )
    assert not list(tmp_path.iterdir())
