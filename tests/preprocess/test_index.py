"""Tars that others wrote, taken as they are: what the loader then reads from them, and what is
refused."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd_images import arithmetic
from PIL import Image as Pillow

from gratis import dataset
from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig
from gratis.preprocess.index import IndexConfig, index_tars
from gratis.preprocess.shards import ShardsConfig, make_shards
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


def check_loaded(root: Path, split: str, numbers: Sequence[int]) -> None:
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


@pytest.mark.parametrize("bad", ["first", "png", "cmyk"])
def test_other_images_are_sent_to_the_shards_command(tmp_path: Path, bad: str) -> None:
    root = tars(tmp_path / "t")
    wrong = {
        "first": [("z.jpg", picture(1, SIZE, "PNG")), ("z.cls", b"0")],
        "png": [("z.png", picture(1, SIZE, "PNG")), ("z.cls", b"0")],
        "cmyk": [("z.jpg", picture(1, mode="CMYK")), ("z.cls", b"0")],
    }[bad]
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


def twelve_bits(data: bytes) -> bytes:
    changed, at = bytearray(data), data.index(b"\xff\xc0")
    changed[at + 1], changed[at + 4] = 0xC1, 12
    return bytes(changed)


def test_a_jpeg_of_another_coding_is_a_reject_as_the_loader_would_refuse_it(tmp_path: Path) -> None:
    image = arithmetic(picture(1))
    assert np.asarray(Pillow.open(io.BytesIO(image)).convert("RGB")).std() > 5  # Pillow takes it
    root = tars(tmp_path / "t")
    archive(root / "2.tar", [*by_img2dataset(range(20, 22)), ("x.jpg", image), ("x.cls", b"1")])
    with pytest.raises(GratisError, match=r"1 undecodable\): train/x\.jpg"):
        index_tars(IndexConfig(tars=str(root), workers=1))
    manifest = index_tars(IndexConfig(tars=str(root), workers=1, max_rejects=1))
    assert manifest.splits["train"].samples == 14
    reason = json.loads((root / dataset.REJECTS).read_text())["reason"]
    assert f"would give up on; gratis shards --src {root} writes it anew" in reason
    verify_dataset(VerifyConfig(shards=str(root)))


def test_tars_that_begin_with_such_are_sent_to_shards_which_takes_them(tmp_path: Path) -> None:
    """The whole folder of them, where tars lie by split."""
    root = tmp_path / "t"
    for split in ("train", "val"):
        archive(root / split / "0.tar", [("x.jpg", arithmetic(picture(1))), ("x.cls", b"0")])
    with pytest.raises(
        GratisError, match=r"would give up on, .*: gratis shards --src (\S+) "
    ) as no:
        index_tars(IndexConfig(tars=str(root), out=str(tmp_path / "o"), workers=1))
    src = re.search(r"--src (\S+)", str(no.value))
    assert src
    config = ShardsConfig(src=src[1], out=str(tmp_path / "shards"), size=SIZE, workers=1)
    made = make_shards(config) or dataset.read_manifest(tmp_path / "shards")
    assert {name: split.samples for name, split in made.splits.items()} == {"train": 1, "val": 1}


PLAIN = b"P6\n64 64\n255\n"  # as this project writes it


@pytest.mark.parametrize("header", [PLAIN, b"P6 64 64 255\n", b"P6\n#x\n64 64\n255\n"])
def test_pixmaps_are_taken_as_the_loader_reads_them(tmp_path: Path, header: bytes) -> None:
    root, files = tmp_path / "t", list[tuple[str, bytes]]()
    for k, begin in enumerate((PLAIN, header, PLAIN)):
        pixels = np.asarray(Pillow.open(io.BytesIO(picture(k)))).tobytes()
        files += [(f"{k}.ppm", begin + pixels), (f"{k}.cls", b"0")]
    archive(root / "0.tar", files)
    if header != PLAIN:
        with pytest.raises(
            GratisError, match=rf"'1\.ppm' is no PPM .* gratis shards --src {root} "
        ):
            index_tars(IndexConfig(tars=str(root), workers=1))
        return
    assert index_tars(IndexConfig(tars=str(root), workers=1)).codec == "raw"
    verify_dataset(VerifyConfig(shards=str(root)))
    loading = LoaderConfig(batch_size=3, crop=CROP, augment=False)
    with Loader(root, "train", loading, device=torch.device("cpu")) as loader:
        assert [ids.tolist() for *_, ids in loader] == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(lambda: twelve_bits(picture(1)), "undecodable"), (lambda: picture(1)[:-2], "truncated")],
)
def test_what_no_decoder_takes_sets_no_size(tmp_path: Path, bad: Any, kind: str) -> None:
    """It may be the first; the next decides."""
    root = tars(tmp_path / "t")
    images = by_img2dataset(range(20, 22))
    archive(root / "0.tar", [("a.jpg", bad()), ("a.cls", b"1"), *images])
    with pytest.raises(GratisError, match=rf"1 ({kind})\): train/a\.jpg"):
        index_tars(IndexConfig(tars=str(root), workers=1))


def kept(data: bytes, bit: int) -> bytes | None:
    """With a bit flipped; None where Pillow sees another size or kind of image then."""
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        with Pillow.open(io.BytesIO(flipped)) as image:
            facts = (image.format, image.size, image.mode)
    except Exception:  # index rejects it
        return bytes(flipped)
    return bytes(flipped) if facts == ("JPEG", (SIZE, SIZE), "RGB") else None


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_what_index_takes_the_loader_reads_to_the_end(tmp_path: Path, options: Any) -> None:
    """One sample for every third bit of a header: some decode, some are rejects, and training on
    the rest meets no bad one."""
    file = io.BytesIO()
    Pillow.open(io.BytesIO(picture(5))).save(file, "JPEG", **options)
    data = file.getvalue()
    images = (kept(data, bit) for bit in range(0, 8 * (data.index(b"\xff\xda") + 14), 3))
    members = [
        (f"{k:05d}.{kind}", content)
        for k, image in enumerate(images)
        if image
        for kind, content in (("cls", b"0"), ("jpg", image))
    ]
    archive(tmp_path / "t" / "0.tar", [("0.cls", b"0"), ("0.jpg", data), *members])
    count = 1 + len(members) // 2
    config = IndexConfig(tars=str(tmp_path / "t"), workers=1, max_rejects=count)
    manifest = index_tars(config)
    taken = manifest.splits["train"].samples
    assert 0.2 * count < taken < 0.95 * count
    verify_dataset(VerifyConfig(shards=str(tmp_path / "t"), sample=0))
    loading = LoaderConfig(batch_size=32, crop=CROP, augment=False)
    with Loader(tmp_path / "t", "train", loading, device=torch.device("cpu")) as loader:
        seen = [sample for *_, ids in loader for sample in ids.tolist() if sample >= 0]
    assert seen == list(range(taken))


def test_verify_finds_what_an_earlier_index_took_and_the_loader_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tars(tmp_path / "t")
    index_tars(IndexConfig(tars=str(root), workers=1))
    data = (root / "00000.tar").read_bytes()
    at = data.index(picture(3)) + len(picture(3)) - 2
    assert data[at : at + 2] == b"\xff\xd9"
    replace_shard(root, "00000.tar", data[:at] + bytes(2) + data[at + 2 :])
    with pytest.raises(GratisError, match=r"1 finding; .*remove manifest\.json and run that again"):
        verify_dataset(VerifyConfig(shards=str(root), sample=0))
    where = "00000.tar: sample 3, '000000003.jpg' at byte "
    assert where in (said := capsys.readouterr().out)
    assert "is no image that the loader decodes" in said
    with (
        pytest.raises(GratisError, match="cannot be decoded; verify the copy"),
        Loader(root, "train", LoaderConfig(crop=CROP), device=torch.device("cpu")) as loader,
    ):
        list(loader)
    index_tars(IndexConfig(tars=str(root), workers=1))
    assert "remove manifest.json to index its tars again" in capsys.readouterr().out


def replace_shard(root: Path, name: str, data: bytes) -> None:
    """Other bytes, as if an index had found them so."""
    before, text = (root / name).read_bytes(), (root / dataset.MANIFEST).read_text()
    (root / name).write_bytes(data)
    for old, new in (
        (hashlib.sha256(before).hexdigest(), hashlib.sha256(data).hexdigest()),
        (f'"bytes": {len(before)}', f'"bytes": {len(data)}'),
    ):
        assert text.count(old) >= 1
        text = text.replace(old, new, 1)
    (root / dataset.MANIFEST).write_text(text)


def lost_by_a_bit(first: bytes, more: bytes) -> bytes:
    data = bytearray(first[: used(first)] + more)
    data[used(first)] ^= 1
    return bytes(data)


def used(data: bytes) -> int:
    return -(-len(data.rstrip(b"\0")) // 512) * 512


LOST: dict[str, Any] = {
    "a header": (lost_by_a_bit, "its checksum is wrong; the last good member is "),
    "a lone block": (
        lambda first, more: first[: used(first)] + bytes(512) + more,
        "one block of zeros is there, where two should end it; the last good member is ",
    ),
    "bytes": (lambda first, more: first + b"bytes" + more, "more bytes follow the blocks of zeros"),
    "no end": (lambda first, more: first[: used(first)], "it is cut short: two blocks of zeros"),
    "joined": (
        lambda first, more: first + more,
        "train: 2 images of its tars are neither in its index nor rejected; the first is "
        "'000000020.jpg' at byte 10752 of 0.tar",
    ),
}


@pytest.mark.parametrize("what", LOST)
def test_verify_finds_what_an_earlier_index_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """A dataset as build 3b635d1 made it of a tar that it did not read to the end."""
    root, more = tmp_path / "t", tmp_path / "more.tar"
    archive(root / "0.tar", by_img2dataset(range(2)))
    archive(more, by_img2dataset(range(20, 22)))
    index_tars(IndexConfig(tars=str(root), workers=1))
    verify_dataset(VerifyConfig(shards=str(root)))
    damage, message = LOST[what]
    data = (root / "0.tar").read_bytes()
    replace_shard(root, "0.tar", damage(data, more.read_bytes()))
    with pytest.raises(
        GratisError, match=r"1 finding; .* remove manifest\.json and run that again"
    ):
        verify_dataset(VerifyConfig(shards=str(root)))
    assert message in capsys.readouterr().out
    (root / dataset.MANIFEST).unlink()
    if what == "joined":
        assert index_tars(IndexConfig(tars=str(root), workers=1)).splits["train"].samples == 4
        verify_dataset(VerifyConfig(shards=str(root)))
        check_loaded(root, "train", [0, 1, 20, 21])
    else:
        with pytest.raises(GratisError, match=r"0\.tar is damaged as a tar at byte "):
            index_tars(IndexConfig(tars=str(root), workers=1))


def test_verify_misses_no_image_that_is_not_to_be_in_the_index(tmp_path: Path) -> None:
    """One that was rejected, one whose name no listing takes, hidden ones."""
    root = tmp_path / "t"
    others = [("torn.jpg", picture(9)[:700]), ("torn.cls", b"4")]
    others += [("../up.jpg", picture(8)), ("../up.cls", b"1"), ("._x.jpg", b""), ("._x.cls", b"1")]
    archive(root / "0.tar", [*by_img2dataset(range(2)), *others, *by_img2dataset(range(2, 4))])
    config = IndexConfig(tars=str(root), workers=1, max_rejects=2)
    assert index_tars(config).splits["train"].samples == 4
    verify_dataset(VerifyConfig(shards=str(root)))


def test_links_in_a_tar_are_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of image and label, one image under two labels; verify is content."""
    root = tmp_path / "t"
    root.mkdir()
    with tarfile.open(root / "0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("a.cls", b"1"), ("a.jpg", picture(0)), ("b.cls", b"2")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind, target in (
            ("b.jpg", tarfile.LNKTYPE, "a.jpg"),
            ("c.cls", tarfile.SYMTYPE, "b.cls"),
            ("c.jpg", tarfile.SYMTYPE, "a.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    index_tars(IndexConfig(tars=str(root), workers=1))
    rows = dataset.read_index(root, "train")
    assert rows.label.tolist() == [1, 2, 2]
    assert len(set(rows.offset.tolist())) == 1
    verify_dataset(VerifyConfig(shards=str(root)))
    assert "3 samples are as they were published" in capsys.readouterr().out


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
