"""The command `gratis VERB ...`: one table from a verb to the function that does it.

Every function takes the arguments behind the verb and returns an exit code (None: 0). Modules are
imported when their verb is given, so that `gratis --help` and the doctor need the standard library
alone. Exit codes: 0 done, 1 a finding or a defect, 2 user error, 75 preempted (requeue), 130
interrupted, 141 output unread."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from gratis.errors import GratisError, guard
from gratis.signals import interrupt_ends_at_once, interrupt_raises

DATASETS = "gratis.preprocess.commands"
ANALYSIS, PAPER = "gratis.train.analysis", "gratis.train.paper"
VERBS: dict[str, tuple[str, str]] = {  # what is typed -> module:function, what for
    "sample": (f"{DATASETS}:sample", "draw a small dataset of ten classes"),
    "shards": (f"{DATASETS}:shards", "resize images and write shards and statistics"),
    "merge": (f"{DATASETS}:merge", "complete a dataset that several machines sharded"),
    "index": (f"{DATASETS}:index", "make a dataset of tars that somebody else wrote"),
    "verify": (f"{DATASETS}:verify", "look for damage in a dataset"),
    "inspect": (f"{DATASETS}:inspect", "say what a dataset holds"),
    "preview": ("gratis.loader.inspect.preview:main", "draw a batch as the loader yields it"),
    "explain": ("gratis.loader.inspect.explain:main", "draw one image's way through the loader"),
    "train": (
        "gratis.train.launcher.command:main",
        "train AlexNet; without --shards on a sample drawn here",
    ),
    "summary": (f"{ANALYSIS}.summary:main", "what a recipe's network is, in numbers"),
    "figures": (f"{ANALYSIS}.figures:main", "kernels, guesses and curves of a run"),
    "predict": (f"{ANALYSIS}.predict:main", "the most probable classes of your own pictures"),
    "features": (f"{ANALYSIS}.features:main", "a layer's responses to every image of a split"),
    "export": (f"{ANALYSIS}.export:main", "a trained network as ONNX, TorchScript or safetensors"),
    "evaluate-published": (
        f"{ANALYSIS}.evaluate_published:main",
        "torchvision's AlexNet weights on your shards",
    ),
    "paper": (f"{PAPER}.paper:main", "all of the paper that fits into some minutes, in one report"),
    "figure1": (f"{PAPER}.figure1:main", "the paper's figure 1, ReLU against tanh"),
    "ablate": (f"{PAPER}.ablate:main", "parts of the network switched off, one at a time"),
    "ensemble": (f"{PAPER}.ensemble:main", "several runs' probabilities averaged"),
    "tables": (f"{PAPER}.tables:main", "runs beside the paper's Tables 1 and 2"),
    "status": ("gratis.server.commands:status", "serve the status of all runs over HTTP"),
    "top": ("gratis.server.commands:top", "the status of a run in a terminal"),
    "doctor": ("gratis.doctor:main", "say what this machine has, and what that means"),
    "bench": ("benchmarks.command:main", "measure the loader beside its peers (source checkout)"),
    "report": (
        "benchmarks.report.command:main",
        "prove and measure the claims on this machine (source checkout)",
    ),
}
# what a verb also gets: the maker of an object of a later room; it returns None where the room's
# libraries are not installed
HELPERS = {"verify": "gratis.loader.inspect.decoders:EngineCheck"}
DISTRIBUTIONS = {"PIL": "pillow", "nvidia": "nvidia-dali-cuda130", "pynvml": "nvidia-ml-py"}
CHECKOUT = Path(__file__).resolve().parent.parent  # of this package, if it is one


def main() -> int:
    interrupt_ends_at_once()  # importing takes a second, and `guard` is not there yet
    import_from_here()
    return guard(lambda: run(sys.argv[1:]))


def import_from_here() -> None:
    """Child processes import what this one does: `python -m` looks in the current folder first,
    where a user's own `random.py` may be (Python 3.10 cannot be told not to)."""
    os.environ["PYTHONSAFEPATH"] = "1"
    if Path(sys.path[0]).resolve() == CHECKOUT:  # `python -m gratis` in the checkout
        put_first("PYTHONPATH", str(CHECKOUT))


def put_first(variable: str, folder: str) -> None:
    folders = os.environ.get(variable, "").split(os.pathsep)
    os.environ[variable] = os.pathsep.join(
        [folder, *(one for one in folders if one not in ("", folder))]
    )


def run(arguments: list[str]) -> int | None:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print("usage: gratis VERB ...      (gratis VERB --help says more)\n")
        print("\n".join(f"  {name:<18}  {purpose}" for name, (_, purpose) in VERBS.items()))
        return 0
    if verb == "--version":
        from gratis import __version__

        print(f"gratis {__version__}")
        return 0
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise GratisError(f"not understood: {verb}; {hint}VERB may be {', '.join(VERBS)}")
    module, _, function = VERBS[verb][0].partition(":")
    if module.startswith("benchmarks."):
        import_benchmarks(verb)
    try:
        imported = import_module(module)
        interrupt_raises()
        helpers = [partial(make_if_installed, HELPERS[verb])] if verb in HELPERS else []
        code: int | None = getattr(imported, function)(arguments[1:], *helpers)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing in ("gratis", "benchmarks", "None"):
            raise
        package = DISTRIBUTIONS.get(missing, missing)
        message = f"gratis {verb} needs {package}, which is not installed: pip install {package}"
        raise GratisError(message) from None
    return code


def make_if_installed(name: str) -> Any:
    module, _, maker = name.partition(":")
    try:
        return getattr(import_module(module), maker)()
    except ImportError:
        return None


def import_benchmarks(verb: str) -> None:
    """Makes the folder `benchmarks` of a source checkout importable; GratisError where there is
    none."""
    if not (CHECKOUT / "benchmarks" / "command.py").is_file():
        needs = "needs a source checkout: the benchmarks are not in the wheel"
        raise GratisError(f"gratis {verb} {needs}")
    sys.path.insert(0, str(CHECKOUT))  # before a user's own folder of that name
    put_first("PYTHONPATH", str(CHECKOUT))  # measurements run in processes of their own
