"""The benchmark of the shard stage runs, and its judge tells good pictures from bad ones."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from benchmarks.shards.bench import ShardBenchConfig, bench
from benchmarks.shards.psnr import ceiling, conventions, psnr
from gratis import image
from gratis.errors import GratisError


def photographs(root: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    (root / "train" / "a").mkdir(parents=True)
    for k in range(count):
        small = Pillow.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((500 + k, 375), Pillow.Resampling.BICUBIC).save(
            root / "train" / "a" / f"{k}.jpg", quality=95
        )
    return root


@pytest.mark.slow
@pytest.mark.starts
def test_bench_measures_this_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(ShardBenchConfig(src=photographs(tmp_path, 8), rounds=1))
    shown = capsys.readouterr().out
    steps = dict(re.findall(r"^  (\S.*?) +([0-9.]+)$", shown.partition("codec")[0], re.MULTILINE))
    assert float(steps["all"]) == pytest.approx(
        sum(map(float, steps.values())) - float(steps["all"]), abs=0.01
    )
    assert "q95 4:2:0 fitted" in shown
    row = re.search(r"^  this +(\d+) +([0-9.]+) +(-?[0-9.]+) +([0-9.]+)$", shown, re.MULTILINE)
    assert row
    limit = re.search(r"through quality 95: ([0-9.]+) dB", shown)
    assert limit
    assert float(row[4]) == pytest.approx(float(limit[1]), abs=0.1)


def test_the_nearest_convention_is_taken(tmp_path: Path) -> None:
    """Whatever window a tool cuts, nothing is lost by it; a filter of lesser quality shows."""
    path = photographs(tmp_path, 1) / "train/a/0.jpg"
    whole = Pillow.open(io.BytesIO(path.read_bytes()))
    squares = conventions(path.read_bytes())
    floored = whole.resize((341, 256), Pillow.Resampling.LANCZOS).crop((42, 0, 298, 256))
    assert max(psnr(np.asarray(floored), square) for square in squares) > 90
    assert max(psnr(image.to_image(path.read_bytes()).pixels, square) for square in squares) > 90
    coarse = whole.resize((341, 256), Pillow.Resampling.NEAREST).crop((42, 0, 298, 256))
    assert max(psnr(np.asarray(coarse), square) for square in squares) < 60
    assert 30 < ceiling([path]) < 60


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GratisError, match="no photographs"):
        bench(ShardBenchConfig(src=tmp_path))
