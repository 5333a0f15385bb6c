"""Tars that others wrote, taken as they are: what the loader then reads from them, and what is
refused."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from gratis import dataset
from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig
from gratis.preprocess.index import IndexConfig, index_tars
from gratis.preprocess.statistics import Accumulator, finish
from gratis.preprocess.verify import VerifyConfig, verify_dataset

pytestmark = pytest.mark.starts

SIZE, CROP = 64, 56
ROOT = Path(__file__).resolve().parent.parent.parent


def picture(number: int, size: int = SIZE, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    small = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(small).resize((size, size), Pillow.Resampling.BICUBIC).convert(mode).save(
        file, kind
    )
    return file.getvalue()


def archive(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def by_img2dataset(numbers: range, **more: object) -> list[tuple[str, bytes]]:
    """As its writer lays a sample out: image, JSON, caption."""
    files = []
    for number in numbers:
        facts = json.dumps(
            {"key": f"{number:09d}", "status": "success", "label": number % 5}
        ).encode()
        files += [(f"{number:09d}.jpg", picture(number, **more)), (f"{number:09d}.json", facts)]  # type: ignore[arg-type]
        files += [(f"{number:09d}.txt", b"a caption")]
    return files


def by_webdataset(numbers: range, **more: object) -> list[tuple[str, bytes]]:
    """As webdataset's TarWriter does: members sorted by name, so that labels come first. Greyscale
    here."""
    files = []
    for k in numbers:
        files += [(f"a b {k}.cls", b"%d" % (k % 5)), (f"a b {k}.jpg", picture(k, mode="L", **more))]  # type: ignore[arg-type]
    return files


def tars(root: Path) -> Path:
    archive(root / "00000.tar", by_img2dataset(range(7)))
    archive(root / "00001.tar", by_webdataset(range(7, 12)))
    archive(root / "val-000.tar", by_img2dataset(range(12, 15)))
    return root


def digests(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.glob("*.tar")}


def check_loaded(root: Path, split: str, numbers: range) -> None:
    """The loader gives every picture, under its label: the central crop less the mean, in the order
    of the tars."""
    mean = dataset.read_stats(root).mean
    low = (SIZE - CROP) // 2
    config = LoaderConfig.alexnet(batch_size=4, crop=CROP, augment=False)
    seen = []
    with Loader(root, split, config, device=torch.device("cpu")) as loader:
        for images, labels, ids in loader:
            for image, label, sample in zip(
                images.numpy(), labels.tolist(), ids.tolist(), strict=True
            ):
                if sample < 0:
                    continue
                number = numbers[sample]
                data = picture(number, mode="L" if 7 <= number < 12 else "RGB")
                decoded = (
                    np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB")).astype(np.float32)
                    - mean
                )
                expected = decoded[low : low + CROP, low : low + CROP].transpose(2, 0, 1)
                np.testing.assert_allclose(image, expected, atol=1e-3)
                assert label == number % 5
                seen.append(number)
    assert seen == list(numbers)


def test_the_loader_reads_tars_of_others_in_place(tmp_path: Path) -> None:
    root = tars(tmp_path / "t")
    before = digests(root)
    manifest = index_tars(IndexConfig(tars=str(root), workers=2))
    assert digests(root) == before
    assert [shard.name for shard in manifest.splits["train"].shards] == ["00000.tar", "00001.tar"]
    check_loaded(root, "train", range(12))
    check_loaded(root, "val", range(12, 15))
    verify_dataset(VerifyConfig(shards=str(root)))
    assert not (root / ".work").exists()


def test_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    root = tars(tmp_path / "t")
    index_tars(IndexConfig(tars=str(root), workers=1))
    accumulator = Accumulator(SIZE)
    for number in range(12):
        data = picture(number, mode="L" if number >= 7 else "RGB")
        accumulator.add(np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB")))
    for one, other in zip(finish(accumulator.sums()), dataset.read_stats(root), strict=True):
        assert (np.asarray(one) == np.asarray(other)).all()


def test_links_in_another_folder(tmp_path: Path) -> None:
    """Tars in folders by split stay where they are; links to them move with both."""
    root = tmp_path / "both" / "t"
    archive(root / "train" / "x 0.tar", by_img2dataset(range(12)))
    archive(root / "val" / "0.tar", by_img2dataset(range(12, 15)))
    with pytest.raises(GratisError, match="give --out"):
        index_tars(IndexConfig(tars=str(root)))
    before = sorted(path.name for path in root.rglob("*"))
    index_tars(IndexConfig(tars=str(root), out=str(tmp_path / "both" / "o"), workers=1))
    assert sorted(path.name for path in root.rglob("*")) == before
    moved = (tmp_path / "both").rename(tmp_path / "moved")
    check_loaded(moved / "o", "val", range(12, 15))
    verify_dataset(VerifyConfig(shards=str(moved / "o")))


def test_idx_is_what_dali_s_own_tool_writes(tmp_path: Path) -> None:
    tool = pytest.importorskip("wds2idx")
    root = tmp_path / "t"
    archive(root / "00000.tar", by_img2dataset(range(7)))
    index_tars(IndexConfig(tars=str(root), workers=1))
    with tool.IndexCreator(
        str(root / "00000.tar"), str(tmp_path / "idx"), verbose=False
    ) as creator:
        creator.create_index()
    assert (root / "00000.idx").read_text() == (tmp_path / "idx").read_text()


@pytest.mark.parametrize("bad", ["first", "size", "png", "cmyk"])
def test_other_images_are_sent_to_the_shards_command(tmp_path: Path, bad: str) -> None:
    root = tars(tmp_path / "t")
    wrong = {
        "first": by_img2dataset(range(20, 21)),
        "size": [("z.jpg", picture(1, SIZE - 1)), ("z.cls", b"0")],
        "png": [("z.png", picture(1, SIZE, "PNG")), ("z.cls", b"0")],
        "cmyk": [("z.jpg", picture(1, mode="CMYK")), ("z.cls", b"0")],
    }[bad]
    if bad == "first":
        file = io.BytesIO()
        Pillow.new("RGB", (SIZE, SIZE + 9)).save(file, "JPEG")
        wrong[0] = (wrong[0][0], file.getvalue())
    archive(root / ("0.tar" if bad == "first" else "2.tar"), wrong)
    before = sorted(path.name for path in root.iterdir())
    with pytest.raises(GratisError, match=rf"gratis shards --src {root}") as caught:
        index_tars(IndexConfig(tars=str(root), workers=1))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in root.iterdir()) == before


def test_what_cannot_be_decoded_is_left_out_on_request(tmp_path: Path) -> None:
    root = tars(tmp_path / "t")
    torn = picture(99)[:700]
    # other tars have the same keys, which is nothing to an index
    archive(
        root / "00002.tar", [*by_webdataset(range(7, 9)), ("torn.jpg", torn), ("torn.cls", b"4")]
    )
    with pytest.raises(GratisError, match=r"1 truncated.*--max-rejects 1"):
        index_tars(IndexConfig(tars=str(root), workers=1))
    assert not (root / dataset.MANIFEST).exists()
    manifest = index_tars(IndexConfig(tars=str(root), workers=1, max_rejects=1))
    assert manifest.splits["train"].samples == 14
    assert manifest.splits["train"].rejects == {"truncated": 1}
    verify_dataset(VerifyConfig(shards=str(root)))


def test_a_tar_of_which_nothing_can_be_used_is_not_touched(tmp_path: Path) -> None:
    root = tars(tmp_path / "t")
    archive(root / "00002.tar", [("torn.jpg", picture(99)[:700]), ("torn.cls", b"4")])
    before = digests(root)
    with pytest.raises(GratisError, match=r"00002\.tar holds no image that can be used"):
        index_tars(IndexConfig(tars=str(root), workers=1, max_rejects=9))
    assert digests(root) == before


def test_verify_finds_a_swapped_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tars(tmp_path / "t")
    manifest = index_tars(IndexConfig(tars=str(root), workers=1))
    rows = dataset.read_index(root, "train")
    changed = dataset.write_index(root, "train", rows._replace(label=np.roll(rows.label, 1)))
    text = (
        (root / dataset.MANIFEST)
        .read_text()
        .replace(manifest.splits["train"].index_sha256, changed)
    )
    (root / dataset.MANIFEST).write_text(text)
    with pytest.raises(GratisError, match="12 findings"):
        verify_dataset(VerifyConfig(shards=str(root)))
    assert "00000.tar: 000000000.jpg has another size or label" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["00000.idx", "stats.npz", "train.index.npz", "rejects.jsonl"])
def test_files_of_others_beside_the_tars_stay_as_they_are(tmp_path: Path, name: str) -> None:
    root = tars(tmp_path / "t")
    (root / name).write_text("somebody else's")
    for _ in range(2):
        with pytest.raises(
            GratisError, match=rf"t holds {name}: .*; choose another OUT, or move them away"
        ):
            index_tars(IndexConfig(tars=str(root), workers=1))
        assert sorted(path.name for path in root.iterdir()) == sorted(
            ["00000.tar", "00001.tar", "val-000.tar", name]
        )
    index_tars(IndexConfig(tars=str(root), out=str(tmp_path / "o"), workers=1))
    assert (root / name).read_text() == "somebody else's"
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "val-00000.tar").write_text("too")
    with pytest.raises(GratisError, match=r"p holds val-00000\.tar: "):
        index_tars(IndexConfig(tars=str(root), out=str(tmp_path / "p"), workers=1))


def check_published(out: Path, *, alone: bool) -> None:
    """A sound dataset, and alone in its folder; not where the tars lie, as an .idx there may be
    somebody else's."""
    verify_dataset(VerifyConfig(shards=str(out)))
    assert not (out / ".work").exists()
    splits = dataset.read_manifest(out).splits
    made = {"manifest.json", "rejects.jsonl", "stats.npz"} | {
        f"{split}.index.npz" for split in splits
    }
    made |= {
        shard.name[:-4] + kind
        for split in splits.values()
        for shard in split.shards
        for kind in (".tar", ".idx")
    }
    assert {path.name for path in out.iterdir()} == made or not alone


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_an_index_left_is_no_obstacle_to_the_next(tmp_path: Path, elsewhere: bool) -> None:
    """Broken off, or published and its manifest removed: both also where the tars are others by
    now."""
    root, out = tars(tmp_path / "t"), tmp_path / ("o" if elsewhere else "t")
    archive(
        root / "00002.tar",
        [*by_img2dataset(range(15, 17)), ("torn.jpg", picture(99)[:700]), ("torn.cls", b"4")],
    )
    config = IndexConfig(tars=str(root), out=str(out), workers=1)
    with pytest.raises(GratisError, match="1 truncated"):
        index_tars(config)
    assert (out / dataset.REJECTS).exists()
    (root / "00000.tar").rename(root / "00003.tar")
    (root / "00002.tar").unlink()
    assert index_tars(config).splits["train"].samples == 12
    check_published(out, alone=elsewhere)
    (out / dataset.MANIFEST).unlink()
    archive(root / "000.tar", by_img2dataset(range(17, 21)))
    (root / "val-000.tar").unlink()
    assert index_tars(config).splits["train"].samples == 16
    check_published(out, alone=elsewhere)


def test_a_dataset_of_real_tars_is_not_written_over(tmp_path: Path) -> None:
    """Its index is readable, as one of `index` would be, but of tars an index leaves links
    alone."""
    root, out = tars(tmp_path / "t"), tmp_path / "o"
    archive(out / "train-00000.tar", by_img2dataset(range(30, 33)))
    index_tars(IndexConfig(tars=str(out), workers=1))
    (out / dataset.MANIFEST).unlink()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for _ in range(2):
        with pytest.raises(
            GratisError,
            match=r"o holds train-00000\.tar: .*; choose another OUT, or move them away",
        ):
            index_tars(IndexConfig(tars=str(root), out=str(out), workers=1))
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_links_of_somebody_else_stay(tmp_path: Path) -> None:
    root, out = tars(tmp_path / "t"), tmp_path / "o"
    out.mkdir()
    (out / "train-00007.tar").symlink_to(root / "00000.tar")
    (out / "train-00007.idx").write_text("theirs")
    index_tars(IndexConfig(tars=str(root), out=str(out), workers=1))
    assert (out / "train-00007.tar").is_symlink()
    assert (out / "train-00007.idx").read_text() == "theirs"


def test_a_dataset_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tars(tmp_path / "t")
    first = index_tars(IndexConfig(tars=str(root), workers=1))
    assert index_tars(IndexConfig(tars=str(root))) == first
    assert "is a dataset already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("/nowhere/at/all",), "no such folder: /nowhere/at/all"),
        (("s3://bucket/tars",), "s3://bucket/tars"),
        (("{empty}",), "holds no tars"),
        (("{empty}", "--workers", "0"), "--workers 0"),
    ],
)
def test_user_errors_are_one_line(tmp_path: Path, arguments: tuple[str, ...], wanted: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gratis", "index", *(a.format(empty=tmp_path) for a in arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert wanted in done.stderr
    assert done.stderr.count("\n") == 1
