"""A Ray cluster of two nodes on this machine; the shard stage on it; one node killed while it
works.

    python ray_cluster.py SRC OUT

Prints "killed with N receipts" and "exit CODE". In a process of its own, as Ray leaves threads and
sockets behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parent.parent.parent


def main(src: str, out: str) -> int:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20}
    )
    other = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    run = subprocess.Popen(
        [
            sys.executable,
            *"-m gratis shards --src".split(),
            src,
            "--out",
            out,
            *"--size 64 --samples-per-shard 100 --engine ray".split(),
        ],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": cluster.address},
    )
    while run.poll() is None and len(list(Path(out).glob(".work/*.receipt.npz"))) < 4:
        time.sleep(0.05)
    finished = len(list(Path(out).glob(".work/*.receipt.npz")))
    cluster.remove_node(other, allow_graceful=False)
    print(f"killed with {finished} receipts", flush=True)
    code = run.wait(timeout=100)
    print(f"exit {code}", flush=True)
    cluster.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
