"""Class folders as a source: SRC/train/<class>/<image> and, perhaps, SRC/val/<class>/<image>."""

from __future__ import annotations

from tqdm import tqdm

from gratis import addresses
from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources.imagenet import DEVKIT
from gratis.preprocess.sources.listing import IMAGE_NAME, QUIET_S, ListingBuilder
from gratis.preprocess.sources.source import Source


def open_class_folders(root: str) -> Source | None:
    """The folders' classes, which are train's, and listings; None where train has no class
    folders."""
    train = addresses.join(root, "train")
    wnids = tuple(_folders(train)) if addresses.is_folder(train) else ()
    if not wnids:
        return None
    for wnid in wnids:
        if wnid != wnid.encode(errors="replace").decode():  # surrogates, which no manifest can hold
            raise GratisError(f"{train} holds a class folder named {wnid!r}: no UTF-8; rename it")
    splits, skipped = {}, []
    for split in ("train", "val"):
        if addresses.is_folder(addresses.join(root, split)):
            builder = ListingBuilder(wnids, official=False)
            _list_folders(addresses.join(root, split), builder)
            splits[split] = builder.build()
            skipped += builder.skipped
    classes = tuple(ImageClass(wnid=wnid, words=wnid, ilsvrc_id=None) for wnid in wnids)
    return Source(classes=classes, splits=splits, skipped=tuple(skipped))


def holds_instead(folder: str) -> str:
    """What the folder holds where something else was expected, for an error message: " but a/,
    b.txt and 3 more"."""
    if not addresses.is_folder(folder):
        return ""
    listed = addresses.entries(folder)
    names = [f"{entry.name}/" if entry.is_folder else entry.name for entry in listed]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
    return f" but {shown}" if names else ", nor anything else"


def _list_folders(root: str, builder: ListingBuilder) -> None:
    labels = {wnid: label for label, wnid in enumerate(builder.wnids)}
    classes = _folders(root)
    if not classes:
        way_out = "sort the images into class folders as train's, or rename it to go without"
        official = f"the labels of the official images are in {DEVKIT}"
        raise GratisError(
            f"{root} has no class folders{holds_instead(root)}; {way_out} ({official}: SRC may "
            f"hold the archives themselves)"
        )
    files = [entry.name for entry in addresses.entries(root) if not entry.is_folder]
    if loose := [name for name in files if IMAGE_NAME.fullmatch(name)]:
        more = f" and {len(loose) - 1:,} more" if len(loose) > 1 else ""
        builder.skipped.append(f"skipped {root}: {loose[0]!r}{more}: in no class folder")
    for wnid in tqdm(classes, "listing", delay=QUIET_S, leave=False):
        folder = addresses.join(root, wnid)
        if wnid not in labels:
            raise GratisError(
                f"{folder} has no counterpart in train; remove it or add the class there"
            )
        builder.containers.append(folder)
        before = len(builder)
        for entry in addresses.entries(folder):
            if entry.is_folder or entry.size < 0:
                builder.skip(entry.name, "it is not a file")
            elif not entry.name.startswith("."):
                builder.add(entry.name, -1, entry.size, labels[wnid])
        if len(builder) == before:
            raise GratisError(_no_images(root, folder))


def _no_images(root: str, folder: str) -> str:
    empty = f"{folder} holds no images{holds_instead(folder)}"
    if not _folders(folder):
        return f"{empty}; fill the class folder or remove it"
    return f"{empty}; class folders lie directly in {root}, images directly in them"


def _folders(root: str) -> list[str]:
    entries = addresses.entries(root)
    return [entry.name for entry in entries if entry.is_folder and not entry.name.startswith(".")]
