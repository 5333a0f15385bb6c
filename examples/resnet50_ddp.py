"""ResNet-50 on ImageNet in plain PyTorch: DDP, validation, checkpoints, resuming inside an epoch.

    torchrun --standalone --nproc-per-node 8 examples/resnet50_ddp.py --shards shards

Needs torchvision, for the network alone. One process per GPU; without a GPU the processes train on
the CPU over gloo. Give the same command again to resume: the checkpoint may be read by any number
of processes that divides the batch.
"""

import argparse
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet50

from gratis import Loader, LoaderConfig


def learning_rate(step, args, steps_per_epoch):
    """Linear over the first epochs, then half a cosine to 0."""
    warmup, total = args.warmup_epochs * steps_per_epoch, args.epochs * steps_per_epoch
    if step < warmup:
        return args.lr * (step + 1) / warmup
    return args.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def evaluate(model, loader, device):
    """Top-1 and number of images of the whole split, each of which comes once."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
        for images, labels, _ in loader:
            counts[0] += (model(images).argmax(1) == labels).sum()
            counts[1] += len(labels)
    dist.all_reduce(counts)
    right, images = counts.tolist()
    return right / images, images


def save(path, network, optimizer, loader):
    """Rank 0 writes; the loader's state is the same on every rank. By rename, so that a checkpoint
    is whole or not there."""
    if dist.get_rank() == 0:
        parts = {"network": network, "optimizer": optimizer, "loader": loader}
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)


def train(args, device):
    rank, world = dist.get_rank(), dist.get_world_size()
    ranks = {"rank": rank, "world_size": world, "device": device}
    ranks["local_world_size"] = int(os.environ["LOCAL_WORLD_SIZE"])  # they share the cores
    common = {"batch_size": args.batch, "crop": args.crop, "layout": "channels_last"}
    # every step of the same size: a short one would count its few images as much as others theirs
    training = LoaderConfig.imagenet(remainder="drop", seed=args.seed, **common)
    with (
        Loader(args.shards, "train", training, **ranks) as loader,
        Loader(args.shards, "val", LoaderConfig.evaluation(**common), **ranks) as val,
    ):
        torch.manual_seed(args.seed)
        network = resnet50(num_classes=len(loader.classes)).to(memory_format=torch.channels_last)
        network = network.to(device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0, momentum=0.9, weight_decay=1e-4)
        if args.checkpoint.exists():
            state = torch.load(args.checkpoint, map_location=device, weights_only=True)
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            loader.load_state_dict(state["loader"])
        model = DistributedDataParallel(network)
        done = 0
        for epoch in range(loader.epoch, args.epochs):
            model.train()
            place, losses, began = loader.state_dict(), [], time.monotonic()
            for step, (images, labels, _) in enumerate(loader, epoch * len(loader) + place["step"]):
                optimizer.param_groups[0]["lr"] = learning_rate(step, args, len(loader))
                with torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
                    loss = cross_entropy(model(images), labels, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
                done += 1
                if done == args.max_steps or (step + 1) % args.save_every == 0:
                    save(args.checkpoint, network, optimizer, loader)
                if done == args.max_steps:
                    return
            speed = len(losses) * args.batch / (time.monotonic() - began)
            top1, images = evaluate(model, val, device)
            save(args.checkpoint, network, optimizer, loader)
            if rank == 0:
                loss = torch.stack(losses).mean().item()
                result = f"loss {loss:.3f}, top-1 {top1:.1%} of {images} images"
                print(f"epoch {epoch}: {result}, {speed:.0f} images/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", default="shards", help="folder or address of the dataset")
    parser.add_argument("--checkpoint", type=Path, default=Path("resnet50.pt"))
    parser.add_argument("--save-every", type=int, default=1000, help="steps between checkpoints")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--warmup-epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1024, help="images a step, all ranks together")
    parser.add_argument(
        "--lr", type=float, default=0.4, help="0.1 for each 256 images of the batch"
    )
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="save and end after so many steps")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        train(args, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
