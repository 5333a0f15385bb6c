"""Trains AlexNet: `python -m train --shards shards --gpus 2`, or `python -m train` alone for a drawn sample.

Checks the configuration, prepares what is missing, checks the dataset, starts the status server, runs one process per
device under torchrun's agent, and closes with a table.
Exit codes: 2 user error, 75 preempted (requeue), 130 interrupted.
Beside training: `python -m train summary`, `python -m train bench`, `python -m train scaling`.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

from preprocess.dataset import Manifest, read_manifest, require_split
from preprocess.errors import PREEMPTED, UserError, guard
from train.closing import show
from train.launch import Launch, attempts, changes, choose_run, choose_world, in_use, outcome, start_ranks
from train.layers import plan as plan_layers
from train.options import Options, parse
from train.recipes import RECIPES
from train.tensorboard import mirrored

SAMPLE = Path("sample")
FIRST_PORT, PORTS = 8000, 100
COMMANDS = {
    "summary": "train.summary",
    "bench": "train.bench",
    "scaling": "train.scaling",
}  # beside training: the module whose main(arguments) it is; imported on demand, so that --help stays quick


class _Terminated(BaseException):
    pass


def main() -> int:
    command, arguments = sys.argv[1:2], sys.argv[2:]
    if command and command[0] in COMMANDS:
        importlib.import_module(COMMANDS[command[0]]).main(arguments)
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    options = parse(sys.argv[1:])
    server = None
    try:
        import torch

        present = torch.cuda.device_count()
        world = choose_world(options.gpus, present=present, share_device=options.share_device)
        check_world(options, world)
        if options.compile == "on" and not present and not has_cpp_compiler():
            raise UserError("--compile on needs a C++ compiler on a CPU: apt install g++, or leave it off")
        shards = options.shards or prepare_sample(options.fields.image_size)
        manifest = read_manifest(shards)
        check_dataset(shards, manifest, options)
        launch = plan(options, shards, manifest)
        server = start_server(options)  # last, as all that users get wrong is known by now
        if world > 1 and not present:
            towers = ", one tower each" if world == options.tower_ranks == options.fields.towers else ""
            print(f"no GPU: {world} CPU processes over gloo{towers}", flush=True)
        with mirrored(launch.folder) if options.tensorboard else nullcontext():
            code = start_ranks(launch, world)
        if code == 0:
            show(launch)
        return code
    except subprocess.CalledProcessError as failed:
        return failed.returncode if failed.returncode > 0 else 1
    except _Terminated:
        return PREEMPTED
    finally:
        if server:
            server.terminate()
            server.wait()


def check_world(options: Options, world: int) -> None:
    batch = options.fields.batch
    if batch % world:
        raise UserError(f"--batch {batch} cannot be split over {world} processes; take a multiple of {world}")
    if world > 1 and options.tower_ranks == 2 and options.fields.lrn_across_towers:
        raise UserError("this recipe normalises across the towers: take --gpus 1 or --tower-ranks 1")


def has_cpp_compiler() -> bool:
    """As torch looks for one to compile for a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def check_dataset(shards: Path, manifest: Manifest, options: Options) -> None:
    require_split(shards, manifest, "train")
    size, recipe = manifest.image_size, options.fields
    if size != recipe.image_size:
        fitting = " or ".join(name for name, other in RECIPES.items() if other.image_size == size)
        way_out = f"take --recipe {fitting}" if fitting else f"set --image-size {size} and a --crop"
        raise UserError(
            f"{shards} holds {size}-pixel images, recipe {options.recipe} wants {recipe.image_size}: {way_out}, "
            f"or make shards with --size {recipe.image_size}"
        )
    if recipe.classes is not None and recipe.classes < len(manifest.classes):
        raise UserError(
            f"--classes {recipe.classes}: {shards} has {len(manifest.classes)} classes; take at least those"
        )
    plan_layers(recipe, recipe.classes or len(manifest.classes))
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        path = shards / shard.name  # validation comes after an epoch: too late to learn that it cannot
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UserError(f"{path} is missing or not as long as published; verify the copy, or make the shards again")
    if "val" not in manifest.splits and recipe.schedule == "plateau":
        raise UserError(f"--schedule plateau follows the validation error, and {shards} has no validation split")
    if "val" not in manifest.splits:
        print(f"{shards} has no validation split: training only, nothing can be evaluated", flush=True)


def plan(options: Options, shards: Path, manifest: Manifest) -> Launch:
    """Names the run and says so."""
    name, resumes = named(options) if options.run is not None else unnamed(options, manifest)
    folder = options.runs / name
    print(f"run: {folder}" + (" (unfinished: going on where it stopped)" if resumes else ""), flush=True)
    # a network of one tower is never spread, so its processes are all data parallel
    return Launch(
        runs=str(options.runs), run=name, shards=str(shards), recipe_name=options.recipe, recipe=options.fields,
        seed=options.seed, attempt=attempts(folder) + 1, share_device=options.share_device,
        tower_ranks=min(options.tower_ranks, options.fields.towers), wire=options.wire, compile=options.compile,
        bad_samples=options.bad_samples, save_every=options.save_every,
        save_probabilities=options.save_probabilities,
    )  # fmt: skip


def named(options: Options) -> tuple[str, bool]:
    """The run that was named, and does it resume. Settings may change, but not those that decide who comes when."""
    name = options.run or ""
    folder = options.runs / name
    if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*", name):
        raise UserError(f"--run {name!r} must be a plain name of letters, digits, '.', '_', '+' and '-'")
    if in_use(folder):
        raise UserError(f"run {folder} is in use by a living process; choose another --run, or end it")
    if outcome(folder) == "finished":
        raise UserError(f"run {folder} is finished; choose another --run")
    changed = changes(folder, options.fields, options.seed)
    if fixed := [changed[field] for field in ("seed", "batch") if field in changed]:
        raise UserError(f"run {folder} cannot go on so: {', '.join(fixed)}; give what it was, or choose another --run")
    if changed:
        print(f"run {folder} goes on with other settings: {', '.join(changed.values())}", flush=True)
    return name, attempts(folder) > 0


def unnamed(options: Options, manifest: Manifest) -> tuple[str, bool]:
    """The newest run of this recipe and dataset if it is unfinished and of these settings, else a new one."""
    stem = f"{options.recipe}-{manifest.hash[:8]}"
    name, resumes = choose_run(options.runs, stem)
    folder = options.runs / name
    if resumes and (changed := changes(folder, options.fields, options.seed)):
        told = ", ".join(changed.values())
        print(f"run {folder} is unfinished, but {told}: another begins (--run {name} goes on with it)", flush=True)
        return f"{stem}-{int(name.rsplit('-', 1)[1]) + 1}", False
    return name, resumes


def prepare_sample(size: int) -> Path:
    """Draws and shards the sample dataset; both stages know when there is nothing to do."""
    source, shards = SAMPLE / "source", SAMPLE / "shards"
    _stage("sample", "--out", str(source))
    # the whole of it, also where a batch scheduler's variables would make it one task of several
    whole = ("--task-id", "0", "--num-tasks", "1")
    _stage("shards", "--src", str(source), "--out", str(shards), "--size", str(size), *whole)
    return shards


def _stage(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "preprocess", *arguments], check=True)


def start_server(options: Options) -> subprocess.Popen[bytes] | None:
    if options.port == 0:
        return None
    port = options.port or next((p for p in range(FIRST_PORT, FIRST_PORT + PORTS) if _free(p)), None)
    if port is None or not _free(port):
        raise UserError(f"--port {port or FIRST_PORT} is taken; choose another, or 0 for no status server")
    if options.port is None and port != FIRST_PORT:
        print(f"port {FIRST_PORT} is taken, the status server uses {port}", flush=True)
    options.runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "server", "--runs", str(options.runs), "--port", str(port)]
    command += ["--parent", str(os.getpid())]
    # a session of its own: ctrl-C in the terminal must not end it before the last events are served
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    print(f"status: http://127.0.0.1:{port}", flush=True)
    return server


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _terminate(_: int, __: FrameType | None) -> None:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(guard(main))
