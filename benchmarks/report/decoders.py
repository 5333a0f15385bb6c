"""Which of DALI's decoders took each image: a process of its own, in whose log they say so.

DALI hands JPEGs to nvImageCodec, which tries its decoders in turn, the hardware's and CUDA's first
and libjpeg-turbo's at last, and says nothing unless its log is asked for (DALI 2.4,
DALI_NVIMGCODEC_LOG_LEVEL)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from benchmarks.report.results import Result
from benchmarks.report.setting import Setting
from benchmarks.report.stock import jpegs

FILES = 64
TOOK = re.compile(r"(\w+_decoder) process #\d+")


def taken(setting: Setting, *, hardware_load: float) -> Result:
    """Images by decoder. RuntimeError where DALI fails, or names none."""
    device = "mixed" if setting.cuda else "cpu"
    arguments = [str(setting.jpeg), device, str(hardware_load)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.report.decoders", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"DALI_NVIMGCODEC_LOG_LEVEL": "7"},
    )
    log = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(log.strip().splitlines()[-1])
    return counted(log)


def counted(log: str) -> Result:
    took = Counter(TOOK.findall(log))
    if not took:
        raise RuntimeError("DALI's log names no decoder: which took an image cannot be known")
    return {"images by": ", ".join(f"{name} {count}" for name, count in took.most_common())}


def main(shards: Path, device: str, hardware_load: float) -> None:
    from benchmarks.report.correctness import decode
    from gratis.loader import GPU_DECODER

    GPU_DECODER["hw_decoder_load"] = hardware_load
    decode([bytes(file.numpy()) for file in jpegs(shards, FILES)], device)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
