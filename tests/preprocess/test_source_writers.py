"""Files as other people's libraries write them, in pinned versions, come out right. Each library
is installed into an environment of its own, from the package index: minutes."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from gratis.errors import GratisError
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import ImageReader
from gratis.preprocess.sources.source import SourceOptions

pytestmark = pytest.mark.prove
COUNT = 250  # more than a row group of `datasets` 2 has
NEW = ("datasets==5.2.0", "img2dataset==1.47.0", "pillow==13.0.0")
OLD = ("datasets==2.19.2", "pyarrow==16.1.0", "numpy<2", "pandas<3", "pillow<12")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Pillow.fromarray(pixels).save(file, "JPEG", quality=95)
        (folder / f"n0144_{number:03d}.JPEG").write_bytes(file.getvalue())
    return folder


def environment(folder: Path, packages: tuple[str, ...]) -> str:
    """The Python of a new environment with these packages."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    pip = "-m pip --disable-pip-version-check install -q".split()
    subprocess.run([python, *pip, *packages], env=clean(), check=True, timeout=1800)
    return python


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> str:
    return environment(tmp_path_factory.mktemp("new") / "venv", NEW)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> str:
    return environment(tmp_path_factory.mktemp("old") / "venv", OLD)


def clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}


def write(python: str, code: str, folder: Path, images: Path) -> None:
    """Runs code in `folder`, with the images' paths and the bytes in them."""
    begin = f"""
import glob, os
paths = sorted(glob.glob({str(images)!r} + "/*"))
rows = [{{"bytes": open(path, "rb").read(), "path": os.path.basename(path)}} for path in paths]
labels = [number % 10 for number in range(len(paths))]
names = [f"class {{number}}" for number in range(10)]
"""
    home = {"HF_HOME": str(folder / ".hf"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([python, "-c", begin + code], cwd=folder, env=clean() | home, check=True)


DATASETS = """
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
features = Features({"image": Image(), "label": ClassLabel(names=names)})
whole = Dataset.from_dict({"image": rows, "label": labels}, features=features)
"""


def check(root: Path, images: Path, splits: dict[str, int]) -> None:
    """Each split has the first so many images, in order, with their labels and the names."""
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    source = open_source(str(root))
    assert [c.words for c in source.classes] == [f"class {number}" for number in range(10)]
    assert {k: len(v) for k, v in source.splits.items()} == splits
    files = sorted(images.iterdir())
    with ImageReader() as reader:
        for listing in source.splits.values():
            for row in range(len(listing)):
                assert reader.read(listing.item(row)) == files[row].read_bytes()
                assert listing.item(row).key == files[row].stem
                assert listing.label[row] == row % 10


@pytest.mark.parametrize("writer", ["old", "new"])
def test_parquet_of_datasets(
    writer: str, request: pytest.FixtureRequest, images: Path, tmp_path: Path
) -> None:
    """In the layout of its hub."""
    code = f"""{DATASETS}
os.mkdir("data")
whole.to_parquet("data/train-00000-of-00001.parquet")
whole.select(range(30)).to_parquet("data/validation-00000-of-00001.parquet")
hidden = Features({{"image": Image(), "label": ClassLabel(names=names)}})
test = Dataset.from_dict({{"image": rows[:9], "label": [-1] * 9}}, features=hidden)
test.to_parquet("data/test-00000-of-00001.parquet")
"""
    write(request.getfixturevalue(writer), code, tmp_path, images)
    check(tmp_path, images, {"train": COUNT, "val": 30})
    offsets = open_source(str(tmp_path)).splits["train"].offset
    assert (offsets >= 0).all() if writer == "new" else (offsets < -1).all()
    with pytest.raises(GratisError, match=r"row 0: it has no label \(-1\)"):
        open_source(str(tmp_path), SourceOptions(val_from="test"))


@pytest.mark.parametrize("writer", ["old", "new"])
def test_arrow_of_datasets(
    writer: str, request: pytest.FixtureRequest, images: Path, tmp_path: Path
) -> None:
    code = f"""{DATASETS}
both = DatasetDict({{"train": whole, "validation": whole.select(range(30))}})
both.save_to_disk("saved", num_shards={{"train": 3, "validation": 1}})
files = Dataset.from_dict({{"image": paths, "label": labels}}, features=features)
files.save_to_disk("of_files")
"""
    write(request.getfixturevalue(writer), code, tmp_path, images)
    check(tmp_path / "saved", images, {"train": COUNT, "val": 30})
    check(tmp_path / "of_files", images, {"train": COUNT})


@pytest.mark.parametrize("writer", ["old", "new"])
def test_parquet_of_image_files(
    writer: str, request: pytest.FixtureRequest, images: Path, tmp_path: Path
) -> None:
    """`to_parquet` writes their paths and no bytes: read in SRC, refused elsewhere."""
    code = f"""{DATASETS}
files = Dataset.from_dict({{"image": paths, "label": labels}}, features=features)
files.to_parquet(paths[0].rpartition("/")[0] + "/../a.parquet")
os.mkdir("alone")
files.to_parquet("alone/a.parquet")
"""
    write(request.getfixturevalue(writer), code, tmp_path, images)
    check(images.parent / "a.parquet", images, {"train": COUNT})
    with pytest.raises(GratisError, match="row 0 has no bytes of an image but the path '/"):
        open_source(str(tmp_path / "alone"))


@pytest.fixture
def downloaded(new: str, images: Path, tmp_path: Path) -> Iterator[Path]:
    """What img2dataset makes of the images on a server, in each of its forms."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(images))
    handler.log_message = lambda *words: None  # type: ignore[attr-defined]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = f"""
import pandas
from img2dataset import download
urls = [f"http://127.0.0.1:{server.server_port}/" + os.path.basename(path) for path in paths[:40]]
urls[7] += "missing"
pandas.DataFrame({{"url": urls, "caption": urls, "label": labels[:40]}}).to_parquet("urls.parquet")
for form in ("webdataset", "files", "parquet"):
    for columns in (["label"], None):
        download(url_list="urls.parquet", input_format="parquet", url_col="url", retries=0,
                 caption_col="caption", output_format=form, processes_count=1, thread_count=1,
                 output_folder=f"{{form}}-{{'label' if columns else 'none'}}", image_size=24,
                 number_sample_per_shard=20, save_additional_columns=columns)
"""
    script = tmp_path / "script.py"
    script.write_text("if __name__ == '__main__':\n" + code.replace("\n", "\n    "))
    write(new, f"exec(open({str(script)!r}).read())", tmp_path, images)
    yield tmp_path
    server.shutdown()
    server.server_close()


def test_img2dataset(downloaded: Path) -> None:
    for form in ("webdataset", "files", "parquet"):
        source = open_source(str(downloaded / f"{form}-label"))
        train = source.splits["train"]
        expected = sorted(number % 10 for number in range(40) if number != 7)
        assert sorted(train.label.tolist()) == expected, form
        with ImageReader() as reader:
            for row in range(len(train)):
                with Pillow.open(io.BytesIO(reader.read(train.item(row)))) as picture:
                    assert picture.size == (24, 24)
        with pytest.raises(GratisError, match="label") as caught:
            open_source(str(downloaded / f"{form}-none"))
        assert "caption" in str(caught.value)
        options = SourceOptions(unlabelled=True)
        assert len(open_source(str(downloaded / f"{form}-none"), options).splits["train"]) == 39


def test_webdataset(images: Path, tmp_path: Path) -> None:
    """Its ShardWriter, and its index of tars."""
    webdataset = pytest.importorskip("webdataset")
    files = sorted(images.iterdir())
    for split, count in (("train", 50), ("val", 9)):
        pattern = f"{tmp_path}/imagenet-{split}-%06d.tar"
        with webdataset.ShardWriter(pattern, maxcount=20, verbose=0) as writer:
            for number, path in enumerate(files[:count]):
                sample = {"__key__": path.stem, "jpg": path.read_bytes(), "cls": number % 10}
                writer.write(sample)
    for _ in range(2):
        source = open_source(str(tmp_path))
        assert {k: len(v) for k, v in source.splits.items()} == {"train": 50, "val": 9}
        train = source.splits["train"]
        assert ImageReader().read(train.item(33)) == files[33].read_bytes()
        assert train.label.tolist() == [number % 10 for number in range(50)]
        tars = sorted(path.name for path in tmp_path.glob("*.tar"))
        counts = [20, 20, 10, 9]
        told = [{"url": tar, "nsamples": n} for tar, n in zip(tars, counts, strict=True)]
        index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": told}
        (tmp_path / "dataset.json").write_text(json.dumps(index))
