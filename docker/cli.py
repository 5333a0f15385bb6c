"""`gratis COMMAND ...`: the console script of an installed gratis. In the wheel this folder is the package `gratis`.

gratis shards --src /data/ilsvrc2012 --out shards     is `python -m preprocess shards --src ...`, and so on for the rest
"""

from __future__ import annotations

import runpy
import sys

COMMANDS = {  # what is typed -> module to run, its first arguments, what for
    "sample": ("preprocess", ["sample"], "draw a small dataset of ten classes"),
    "shards": ("preprocess", ["shards"], "resize images and write shards and statistics"),
    "merge": ("preprocess", ["merge"], "complete a dataset that several machines sharded"),
    "index": ("preprocess", ["index"], "make a dataset of tars that somebody else wrote"),
    "verify": ("preprocess", ["verify"], "look for damage in a dataset"),
    "inspect": ("preprocess", ["inspect"], "say what a dataset holds"),
    "preprocess": ("preprocess", [], "any other command of that stage"),
    "bench": ("loader", [], "measure the loader on a dataset, or draw what it yields"),
    "train": ("train", [], "train AlexNet; figures, predictions, the paper: see its --help"),
    "status": ("server", [], "serve the status of all runs"),
    "top": ("server", ["top"], "the same in a terminal"),
    "doctor": ("gratis.doctor", [], "say what this machine has, and what that means"),
}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: gratis COMMAND ...      (each command has --help)\n")
        print("\n".join(f"  {command:<10}  {what}" for command, (_, _, what) in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(f"error: gratis {name} is none of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, first, _ = COMMANDS[name]
    sys.argv[1:2] = first
    # in this process, not `python -m`: that would look in the current folder first, where a user's own train.py may be
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
