"""One measurement of an older checkout's loader, by its own code, for `benchmarks.loader.bench`:

python benchmarks/loader/older.py CHECKOUT crop DATASET 224 2 26     # side, threads, batches

Versions before 0.2 have the loader at the top of the checkout, and no dtype uint8."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

CHECKOUT, WORK, ROOT = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
CROP, THREADS, BATCHES = map(int, sys.argv[4:7])
sys.path[0] = str(Path(__file__).resolve().parents[2])  # this checkout, for `window` alone
sys.path.insert(0, str(CHECKOUT))

import torch  # noqa: E402

from benchmarks.loader import window  # noqa: E402

BATCH, VIEWS_BATCH = 256, 32  # as in peers.common, which imports gratis


def stream() -> Iterator[torch.Tensor]:
    room = "gratis.loader" if (CHECKOUT / "gratis").is_dir() else "loader"
    library: Any = import_module(room)
    made: Any = library.LoaderConfig
    config = getattr(made, "alexnet", made)  # its only recipe, before there were names for them
    common: dict[str, Any] = {"crop": CROP, "threads": THREADS, "remainder": "drop"}
    settings = {
        "crop": lambda: config(batch_size=BATCH, **common),
        "bfloat16": lambda: config(batch_size=BATCH, dtype=torch.bfloat16, **common),
        "resized": lambda: config(batch_size=BATCH, area=(0.08, 1.0), noise="off", **common),
        "views": lambda: config(batch_size=VIEWS_BATCH, augment=False, views=10, **common),
    }[WORK]()
    loader = library.Loader(ROOT, "train", settings)
    while True:
        yield from (batch.images for batch in loader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    began = time.perf_counter()
    dtype = torch.bfloat16 if WORK == "bfloat16" else torch.float32
    images = VIEWS_BATCH if WORK == "views" else BATCH
    views = (10,) if WORK == "views" else ()
    window.measure(stream(), BATCHES, images, began, (dtype, (images, *views, 3, CROP, CROP)))
