"""Trains torchvision's ResNet-18 on one dataset with torchvision's ImageFolder and torch's
DataLoader, and with gratis.torch's, in turn: what differs is in the two functions that make them.

    python benchmarks/resnet_proof.py SHARDS --images FOLDER --seeds 2
    python benchmarks/resnet_proof.py SHARDS --images FOLDER --augment

--augment: TrivialAugmentWide, and each batch mixed by MixUp or CutMix, by torchvision's second
transforms (v2) on tensors, or by the loader.

Needs torchvision. FOLDER is made of the shards' own JPEGs, in class folders, if it is not there.
Prints a line of JSON for each run, then the comparison. CPU seconds are of the process and of its
workers; waiting is the time in the loader's `next`; both of training alone, without the start.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

AREA = (0.35, 1.0)  # as much of an image as a short training bears
KINDS = ("torchvision", "gratis")
MIXUP, CUTMIX = 0.2, 1.0  # alphas, as torchvision's newer recipe


def torchvision_loaders(args: argparse.Namespace) -> tuple[Any, Any]:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    if args.augment:
        return augmented_loaders(args)
    after = [transforms.ToTensor()]
    after += [transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    crop = [transforms.RandomResizedCrop(args.crop, AREA), transforms.RandomHorizontalFlip()]
    train = datasets.ImageFolder(args.images / "train", transforms.Compose(crop + after))
    middle = transforms.Compose([transforms.CenterCrop(args.crop), *after])
    val = datasets.ImageFolder(args.images / "val", middle)
    options = {"batch_size": args.batch, "num_workers": args.workers}
    return DataLoader(train, shuffle=True, drop_last=True, **options), DataLoader(val, **options)


def augmented_loaders(args: argparse.Namespace) -> tuple[Any, Any]:
    """torchvision's, mixing the batches of the training where they are collated."""
    from torch.utils.data import DataLoader, default_collate
    from torchvision import datasets
    from torchvision.transforms import v2

    after = [v2.ToDtype(torch.float32, scale=True)]
    after += [v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    crop = [v2.RandomResizedCrop(args.crop, AREA), v2.RandomHorizontalFlip()]
    steps = [v2.PILToTensor(), *crop, v2.TrivialAugmentWide(), *after]
    train = datasets.ImageFolder(args.images / "train", v2.Compose(steps))
    middle = v2.Compose([v2.PILToTensor(), v2.CenterCrop(args.crop), *after])
    val = datasets.ImageFolder(args.images / "val", middle)
    classes = len(train.classes)
    ways = v2.MixUp(alpha=MIXUP, num_classes=classes), v2.CutMix(alpha=CUTMIX, num_classes=classes)
    mix, options = v2.RandomChoice(ways), {"batch_size": args.batch, "num_workers": args.workers}

    def collate(samples: list[Any]) -> Any:
        return mix(*default_collate(samples))

    first = DataLoader(train, shuffle=True, drop_last=True, collate_fn=collate, **options)
    return first, DataLoader(val, **options)


def gratis_loaders(args: argparse.Namespace) -> tuple[Any, Any]:
    from gratis import CutMix, LoaderConfig, MixUp, TrivialAugmentWide
    from gratis.torch import DataLoader, ShardDataset

    training = LoaderConfig.imagenet(crop=args.crop, area=AREA, seed=args.seed)
    if args.augment:
        mix = (MixUp(MIXUP), CutMix(CUTMIX))
        training = replace(training, operations=(TrivialAugmentWide(),), mix=mix)
    train = ShardDataset(args.shards, "train", training)
    val = ShardDataset(args.shards, "val", LoaderConfig.evaluation(crop=args.crop))
    options = {"batch_size": args.batch, "num_workers": args.workers}
    return DataLoader(train, shuffle=True, drop_last=True, **options), DataLoader(val, **options)


class Waiting:
    """Iterates over a loader, and counts the seconds in its `next`, the first of an epoch apart."""

    def __init__(self) -> None:
        self.first_s = self.later_s = 0.0

    def __call__(self, loader: Any) -> Iterator[Any]:
        began = time.perf_counter()
        batches = iter(loader)
        pair, passed = next(batches, None), time.perf_counter() - began
        self.first_s += passed
        while pair is not None:
            yield pair
            began = time.perf_counter()
            pair = next(batches, None)
            self.later_s += time.perf_counter() - began


def cpu_s() -> float:
    """Of this process and of the workers that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def accuracy(model: nn.Module, loader: Any) -> float:
    model.eval()
    right = images_seen = 0
    with torch.no_grad():
        for images, labels in loader:
            right += int((model(images).argmax(1) == labels).sum())
            images_seen += len(labels)
    assert images_seen == len(loader.dataset)
    return right / images_seen


def train(args: argparse.Namespace) -> dict[str, Any]:
    from torchvision.models import resnet18

    loaders = gratis_loaders if args.loader == "gratis" else torchvision_loaders
    train_loader, val_loader = loaders(args)
    torch.manual_seed(args.seed)
    model = resnet18(num_classes=len(train_loader.dataset.classes))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    steps = args.epochs * len(train_loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    waiting, wall, cpu, top1 = Waiting(), 0.0, 0.0, []
    for epoch in range(args.epochs):
        began, began_cpu = time.perf_counter(), cpu_s()
        model.train()
        for images, labels in waiting(train_loader):
            logits = model(images.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        wall += time.perf_counter() - began
        cpu += cpu_s() - began_cpu
        top1.append(accuracy(model, val_loader))
        print(f"{args.loader} {args.seed} {epoch}: {top1[-1]:.1%}", file=sys.stderr, flush=True)
    return {
        "loader": args.loader,
        "seed": args.seed,
        "top1": top1,
        "images_per_s": steps * args.batch / (wall - waiting.first_s),
        "waiting": waiting.later_s / (wall - waiting.first_s),
        "first_batch_s": waiting.first_s / args.epochs,
        "cpu_s_per_1000": 1000 * cpu / (steps * args.batch),
    }


def unpack(shards: Path, images: Path) -> None:
    """The shards' JPEGs, byte for byte, as images/<split>/<class>/<name>."""
    classes = json.loads((shards / "manifest.json").read_text())["classes"]
    for path in sorted(shards.glob("*.tar")):
        split = path.name.rsplit("-", 1)[0]
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member) for member in tar}
            data = {name: file.read() for name, file in files.items() if file}
        for name, jpeg in data.items():
            if name.endswith(".jpg"):
                label = int(data[name.replace(".jpg", ".cls")])
                folder = images / split / classes[label]["wnid"]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(jpeg)


def compare(runs: list[dict[str, Any]]) -> None:
    print(f"{'':<16}" + "".join(f"{kind:>36}" for kind in KINDS))
    for name in ("top1", "images_per_s", "waiting", "first_batch_s", "cpu_s_per_1000"):
        cells = []
        for kind in KINDS:
            values = [run[name] for run in runs if run["loader"] == kind]
            values = [value[-1] if name == "top1" else value for value in values]
            cells.append("  ".join(f"{value:.4g}" for value in values))
        print(f"{name:<16}" + "".join(f"{cell:>36}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="class folders; made if missing")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--crop", type=int, default=56)
    parser.add_argument("--workers", type=int, default=2, help="of torch's DataLoader")
    parser.add_argument("--augment", action="store_true", help="TrivialAugment, MixUp, CutMix")
    parser.add_argument("--loader", choices=KINDS, help="one run alone, with --seed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.images.exists():
        unpack(args.shards, args.images)
    if args.loader:
        print(json.dumps(train(args)), flush=True)
        return
    runs = []
    for seed in range(args.seeds):
        for kind in KINDS[:: 1 if seed % 2 == 0 else -1]:
            one = [*sys.argv, "--loader", kind, "--seed", str(seed)]
            done = subprocess.run([sys.executable, *one], stdout=subprocess.PIPE, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(runs[-1]), flush=True)
    compare(runs)


if __name__ == "__main__":
    main()
