"""Each kind of source again, over HTTP and S3: the same images under the same labels as from the
disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from test_remote import RangeHandler, in_s3, s3  # noqa: F401
from test_source_kinds import (
    MAPPING,
    SOLUTION,
    TIMM,
    img2dataset_files,
    jpeg,
    shards,
    write,
    write_tar,
)
from test_source_kinds import imagefolder as write_imagefolder

ROOT = Path(__file__).resolve().parent.parent.parent
# run in a process of its own, as fsspec's event loop warns at exit
LISTED = """
import hashlib, sys
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import ImageReader
source = open_source(sys.argv[1])
print([(one.wnid, one.words) for one in source.classes])
for split, listing in source.splits.items():
    with ImageReader() as reader:
        for row in range(len(listing)):
            item = listing.item(row)
            data = reader.read(item)
            print(split, item.key, item.label, hashlib.sha256(data).hexdigest())
"""


class BareHandler(RangeHandler):
    """Lists no folders, as most servers of files."""

    def list_directory(self, path: object) -> None:
        self.send_error(404)


def kaggle(root: Path) -> None:
    images = root / "ILSVRC/Data/CLS-LOC"
    for number, wnid in ((1, "n01440764"), (2, "n01443537")):
        write(images / f"train/{wnid}/{wnid}_1.JPEG", jpeg(number))
        write(images / f"val/ILSVRC2012_val_0000000{number}.JPEG", jpeg(number + 2))
    write(root / "LOC_synset_mapping.txt", MAPPING)
    write(root / "LOC_val_solution.csv", SOLUTION)


def class_tars(root: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            write_tar(root / split / f"{wnid}.tar", {f"{wnid}_{split}.JPEG": jpeg(len(split))})


def imagefolder(root: Path) -> None:
    rows = "file_name,label\na #1.png,x\nb b/\u00fc.png,y\n"  # names that addresses quote
    write_imagefolder(root, "train", {"a #1.png": 1, "b b/\u00fc.png": 2}, rows, "metadata.csv")


def listed_tars(root: Path) -> None:
    shards(root, "x-00.tar", "x-01.tar", "y-0.tar")
    write(root / "_info.json", json.dumps(TIMM))


def parquet(root: Path) -> None:
    tables = pytest.importorskip("test_source_tables")
    how = {"compression": "NONE", "use_dictionary": False}
    tables.write_parquet(root / "data/train-0.parquet", tables.table(), **how)
    few = tables.table(tables.IMAGES[:9], tables.LABELS[:9])
    tables.write_parquet(root / "data/validation-0.parquet", few, row_group_size=4)


def saved(root: Path) -> None:
    tables = pytest.importorskip("test_source_tables")
    for split in ("train", "validation"):
        tables.write_arrow(root / split / "data-0.arrow", tables.table())
        state = {"_data_files": [{"filename": "data-0.arrow"}], "_split": None}
        write(root / split / "state.json", json.dumps(state))
    write(root / "dataset_dict.json", '{"splits": ["train", "validation"]}')


def img2dataset(root: Path) -> None:
    img2dataset_files(root, {"label": 1})


def listed(root: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LISTED, str(root)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    handler = partial(request.param, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


ALL = [kaggle, class_tars, imagefolder, img2dataset, listed_tars, parquet, saved]


@pytest.mark.starts
@pytest.mark.parametrize("served", [RangeHandler], indirect=True)
@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_over_http_that_lists_folders(
    make: Callable[[Path], None], served: str, tmp_path: Path
) -> None:
    make(tmp_path / "src")
    assert listed(f"{served}/src") == listed(tmp_path / "src")


@pytest.mark.starts
@pytest.mark.parametrize("served", [BareHandler], indirect=True)
@pytest.mark.parametrize("make", [listed_tars, saved], ids=lambda make: make.__name__)
def test_over_http_that_lists_none(
    make: Callable[[Path], None], served: str, tmp_path: Path
) -> None:
    make(tmp_path / "src")
    assert listed(f"{served}/src") == listed(tmp_path / "src")


@pytest.mark.starts
@pytest.mark.parametrize("served", [BareHandler], indirect=True)
def test_one_table_over_http(served: str, tmp_path: Path) -> None:
    parquet(tmp_path)
    for name in ("train-0.parquet", "validation-0.parquet"):
        assert listed(f"{served}/data/{name}") == listed(tmp_path / "data" / name)


@pytest.mark.slow
def test_over_s3(s3: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    for make in ALL:
        make(tmp_path / make.__name__)
    in_s3(s3, f"fs.mkdir('kinds')\nfs.put('{tmp_path}/', 'kinds', recursive=True)")
    for make in ALL:
        code = f"import sys\nsys.argv[1:] = ['s3://kinds/{make.__name__}']\n{LISTED}"
        assert in_s3(s3, code) == listed(tmp_path / make.__name__), make.__name__
