"""A network by one of the recipes in examples/recipes: DDP, EMA, resuming inside an epoch.

    gratis shards --src imagenet --out shards --shape whole --size 400
    torchrun --standalone --nproc-per-node 8 examples/recipe_ddp.py \
        examples/recipes/resnet50_16_epochs.json --shards shards

Needs timm, for the network alone. One process per GPU; without a GPU the processes train on the CPU
over gloo. The batch is of all processes together. Give the same command again to resume.
docs/augmentations.md says what each recipe is and where it is from.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from timm import create_model
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gratis import Loader, LoaderConfig


def rate_share(step, steps_per_epoch, recipe):
    """Of the recipe's learning rate: linear over the warm-up, then by the recipe's decay to 0."""
    warmup, total = (recipe[name] * steps_per_epoch for name in ("warmup_epochs", "epochs"))
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    done = (step - warmup) / (total - warmup)
    return 1 - done if recipe["decay"] == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(network, kind):
    """torch.optim's of the recipe. No weight decay of biases and norms, whose one dimension says
    what they are."""
    options = {name: value for name, value in kind.items() if name != "type"}
    flat = [each for each in network.parameters() if each.ndim <= 1]
    others = [each for each in network.parameters() if each.ndim > 1]
    groups = [{"params": others}, {"params": flat, "weight_decay": 0.0}]
    return getattr(torch.optim, kind["type"])(groups, **options)


def evaluate(network, loader, device, mirrored_too):
    """Top-1 of the whole split and its number of images; mirrored_too: by the mean of the logits of
    each image and its mirror."""
    network.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
        for images, labels, _ in loader:
            logits = network(images)
            if mirrored_too:
                logits = logits + network(images.flip(-1))
            counts[0] += (logits.argmax(1) == labels).sum()
            counts[1] += len(labels)
    dist.all_reduce(counts)
    right, images = counts.tolist()
    return right / images, images


def save(path, parts):
    """Rank 0 writes, by rename, so that a checkpoint is whole or not there."""
    if dist.get_rank() == 0:
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)


def train(recipe, args, device):
    ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size(), "device": device}
    ranks["local_world_size"] = int(os.environ["LOCAL_WORLD_SIZE"])  # they share the cores
    training = LoaderConfig.from_dict({"seed": args.seed} | recipe["train"])
    with (
        Loader(args.shards, "train", training, **ranks) as loader,
        Loader(args.shards, "val", LoaderConfig.from_dict(recipe["validation"]), **ranks) as val,
    ):
        torch.manual_seed(args.seed)
        network = create_model(**recipe["network"], num_classes=len(loader.classes))
        network = network.to(device, memory_format=torch.channels_last)
        optimizer = make_optimizer(network, recipe["optimizer"])
        parts = {"network": network, "optimizer": optimizer, "loader": loader}
        ema = recipe.get("ema")
        if ema:
            average = get_ema_multi_avg_fn(ema["decay"])
            parts["ema"] = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        if args.checkpoint.exists():
            state = torch.load(args.checkpoint, map_location=device, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
        model = DistributedDataParallel(network)
        rates = [group["lr"] for group in make_optimizer(network, recipe["optimizer"]).param_groups]
        done = 0
        for epoch in range(loader.epoch, recipe["epochs"]):
            model.train()
            place, losses, began = loader.state_dict(), [], time.monotonic()
            for step, (images, labels, _) in enumerate(loader, epoch * len(loader) + place["step"]):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * rate_share(step, len(loader), recipe)
                with torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
                    loss = cross_entropy(
                        model(images), labels, label_smoothing=recipe["label_smoothing"]
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if ema and step % ema["every"] == 0:
                    if epoch < recipe["warmup_epochs"]:
                        parts["ema"].n_averaged.zero_()  # begins anew, from this step's weights
                    parts["ema"].update_parameters(network)
                losses.append(loss.detach())
                done += 1
                if done == args.max_steps or (step + 1) % args.save_every == 0:
                    save(args.checkpoint, parts)
                if done == args.max_steps:
                    return
            size = f"{images.shape[-1]} px"
            speed = len(losses) * training.batch_size / (time.monotonic() - began)
            judged = parts.get("ema", network)
            top1, count = evaluate(judged, val, device, recipe.get("validation_mirrored_too"))
            save(args.checkpoint, parts)
            if dist.get_rank() == 0:
                loss = torch.stack(losses).mean().item()
                result = f"{size}, loss {loss:.3f}, top-1 {top1:.1%} of {count} images"
                print(f"epoch {epoch}: {result}, {speed:.0f} images/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="a file of examples/recipes")
    parser.add_argument("--shards", default="shards", help="folder or address of the dataset")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    parser.add_argument("--save-every", type=int, default=1000, help="steps between checkpoints")
    parser.add_argument("--batch", type=int, help="instead of the recipe's; scales the rate too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="save and end after so many steps")
    args = parser.parse_args()
    recipe = json.loads(args.recipe.read_text())
    if args.batch:
        recipe["optimizer"]["lr"] *= args.batch / recipe["train"]["batch_size"]
        recipe["train"]["batch_size"] = recipe["validation"]["batch_size"] = args.batch
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        train(recipe, args, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
