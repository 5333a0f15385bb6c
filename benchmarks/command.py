"""`gratis bench WHAT ...`: measurements that a source checkout can run."""

from __future__ import annotations

from importlib import import_module

from gratis.errors import GratisError

BENCHMARKS = {  # what is typed -> module, what for
    "loader": ("benchmarks.loader.bench", "the loader beside its peers and bare libjpeg-turbo"),
    "shards": ("benchmarks.shards.bench", "the shard stage step by step, beside other tools"),
    "train": ("benchmarks.train.bench", "training with the loader against training on one batch"),
}


def main(arguments: list[str]) -> int | None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: gratis bench WHAT ...      (gratis bench WHAT --help says more)\n")
        print("\n".join(f"  {name:<8}  {purpose}" for name, (_, purpose) in BENCHMARKS.items()))
        return 0
    if name not in BENCHMARKS:
        raise GratisError(
            f"not understood: {name}; gratis bench WHAT, where WHAT is {', '.join(BENCHMARKS)}"
        )
    code: int | None = import_module(BENCHMARKS[name][0]).main(arguments[1:])
    return code
