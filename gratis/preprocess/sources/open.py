"""Which kind of source SRC is. A new kind is one function and one entry of SOURCES."""

from __future__ import annotations

from collections.abc import Callable

from gratis import addresses
from gratis.errors import GratisError
from gratis.preprocess.sources.class_tars import open_class_tars
from gratis.preprocess.sources.folders import holds_instead, open_class_folders
from gratis.preprocess.sources.foreign import refuse_foreign
from gratis.preprocess.sources.image_json import open_image_json
from gratis.preprocess.sources.imagenet import TRAIN, open_imagenet
from gratis.preprocess.sources.kaggle import open_kaggle
from gratis.preprocess.sources.metadata_folder import open_metadata_folder
from gratis.preprocess.sources.source import DEFAULT, Source, SourceOptions
from gratis.preprocess.sources.tables import TABLES, open_tables, refuse_tables
from gratis.preprocess.sources.webdataset import open_webdataset

# in the order in which they are tried; None where the address holds no source of that kind
SOURCES: tuple[Callable[[str, SourceOptions], Source | None], ...] = (
    open_kaggle,
    open_class_tars,
    open_imagenet,
    open_image_json,
    open_metadata_folder,
    open_class_folders,
    open_webdataset,
    open_tables,
)


def open_source(root: str, options: SourceOptions = DEFAULT) -> Source:
    """Lists the source at a folder or URL; nothing is extracted or copied. GratisError naming what
    is missing, unreadable, empty or contradictory."""
    try:
        return _open(root, options)
    except OSError as error:  # of a local source; servers' errors are GratisErrors already
        message = f"cannot read {error.filename or root}: {error.strerror or error}"
        raise GratisError(
            f"{message}; mend that, or its permissions, or give another SRC"
        ) from None


def _open(root: str, options: SourceOptions) -> Source:
    is_table = root.endswith(TABLES)
    if not addresses.is_url(root) and not addresses.is_folder(root) and not is_table:
        refuse_foreign(root)
        if addresses.is_file(root):
            raise GratisError(f"{root} is a file; give the folder that it lies in as SRC")
        raise GratisError(
            f"no such folder: {root}; SRC is a folder with the ILSVRC2012 archives, "
            f"train/<class>/* or WebDataset tars"
        )
    for open_kind in SOURCES:
        if source := open_kind(root, options):
            return source
    refuse_foreign(root)
    refuse_tables(root)
    train = addresses.join(root, "train")
    if addresses.is_folder(train):
        raise GratisError(
            f"{train} has no class folders{holds_instead(train)}; expected {train}/<class>/<image>"
        )
    if addresses.is_url(root):
        advice = "a web server lists no folders: there, the ILSVRC2012 archives or a dataset with "
        advice += "its manifest.json"
    else:
        advice = "class folders go into one called train, a link to them will do; --unlabelled "
        advice += "takes images in any folder; every kind: docs/sources.md"
    raise GratisError(
        f"{root} holds neither {TRAIN} nor train/<class>/ nor WebDataset tars"
        f"{holds_instead(root)}; give the folder that does ({advice})"
    )
