"""Files that the engine refuses: those that another decoder has to decode, and damaged ones. And
that none of them reaches beyond its memory, or costs another sample a pixel."""

from __future__ import annotations

import io
import os
import pkgutil
import platform
import runpy
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from engine_cases import ABLE, LIBRARY, decoded, jpeg, needs_library, photo, views
from PIL import Image
from test_engine_pixels import FORMS

from gratis.errors import GratisError
from gratis.loader.engine import library
from gratis.loader.engine.decoder import NativeDecoder, ViewBatch
from gratis.loader.engine.library import (
    ISA_VARIABLE,
    ISAS,
    Filter,
    Status,
    chosen_isa,
    load_from,
    probe,
)

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "gratis" / "loader" / "engine"
SOI, APP0, APP14, DQT, SOF, DHT, DRI, SOS, EOI = (
    0xD8,
    0xE0,
    0xEE,
    0xDB,
    0xC0,
    0xC4,
    0xDD,
    0xDA,
    0xD9,
)
GOOD = jpeg(photo(48, 64), subsampling="4:2:0", restart_marker_rows=1, optimize=True)


@pytest.fixture
def decoder() -> Iterator[NativeDecoder]:
    with NativeDecoder() as decoder:
        yield decoder


def at(marker: int, data: bytes = GOOD, which: int = 0) -> int:
    """Where a marker is in the file, SOI being at 0."""
    place = -1
    for _ in range(which + 1):
        place = data.index(bytes([0xFF, marker]), place + 1)
    return place


def patched(place: int, value: int, data: bytes = GOOD) -> bytes:
    return data[:place] + bytes([value]) + data[place + 1 :]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def inserted(marker: int, body: bytes) -> bytes:
    """Behind the first segment."""
    return GOOD[: at(DQT)] + segment(marker, body) + GOOD[at(DQT) :]


def crowded() -> bytes:
    """All codes of the first table are said to have one bit."""
    counts = slice(at(DHT) + 5, at(DHT) + 21)
    return GOOD[: counts.start] + bytes([sum(GOOD[counts]), *[0] * 15]) + GOOD[counts.stop :]


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(48, 64)).save(file, "PNG")
    return file.getvalue()


def cmyk() -> bytes:
    return jpeg(photo(48, 64), mode="CMYK")


def without(marker: int, which: int = 0) -> bytes:
    place = at(marker, which=which)
    length = int.from_bytes(GOOD[place + 2 : place + 4], "big")
    return GOOD[:place] + GOOD[place + 2 + length :]


SCAN = at(SOS) + 2 + int.from_bytes(GOOD[at(SOS) + 2 : at(SOS) + 4], "big")
FIRST_RESTART, SECOND_RESTART = (GOOD.index(bytes([0xFF, 0xD0 + n]), SCAN) for n in range(2))

REFUSED: dict[str, tuple[Callable[[], bytes], Status]] = {
    "nothing": (lambda: b"", Status.NOT_JPEG),
    "a PNG": (png, Status.NOT_JPEG),
    "progressive": (lambda: jpeg(photo(48, 64), progressive=True), Status.NOT_BASELINE),
    "extended": (lambda: patched(at(SOF) + 1, 0xC1), Status.NOT_BASELINE),
    "arithmetic": (lambda: patched(at(SOF) + 1, 0xC9), Status.NOT_BASELINE),
    "12 bits": (lambda: patched(at(SOF) + 4, 12), Status.NOT_BASELINE),
    "4:2:2": (lambda: jpeg(photo(48, 64), subsampling="4:2:2"), Status.SAMPLING),
    "CMYK": (cmyk, Status.ADOBE),
    "RGB components": (lambda: jpeg(photo(48, 64), keep_rgb=True), Status.ADOBE),
    "an Adobe segment": (lambda: inserted(APP14, b"Adobe\0d\0\0\0\0\1"), Status.ADOBE),
    "EXIF": (lambda: jpeg(photo(48, 64), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"), Status.EXIF),
    "components 0 to 2": (lambda: patched(at(SOF) + 10, 0), Status.COMPONENTS),
    "one scan for each": (lambda: patched(at(SOS) + 4, 1), Status.COMPONENTS),
    "16-bit quantisation": (lambda: patched(at(DQT) + 4, 0x10), Status.TABLES),
    "no quantisation": (lambda: without(DQT), Status.TABLES),
    "no Huffman table": (lambda: without(DHT, 1), Status.TABLES),
    "no height": (lambda: patched(at(SOF) + 6, 0, patched(at(SOF) + 5, 0)), Status.SIZE),
    "enormous": (lambda: patched(at(SOF) + 7, 255, patched(at(SOF) + 5, 255)), Status.SIZE),
    "an unknown segment": (lambda: inserted(0xF0, b"??"), Status.SEGMENT),
    "two frames": (lambda: inserted(SOF, GOOD[at(SOF) + 4 : at(SOF) + 19]), Status.SEGMENT),
    "half a band": (lambda: patched(SCAN - 2, 31), Status.SEGMENT),
    "too many codes": (crowded, Status.TABLES),
    "header cut": (lambda: GOOD[: at(SOS) + 5], Status.TRUNCATED),
    "no EOI": (lambda: GOOD[:-2], Status.TRUNCATED),
    "cut": (lambda: GOOD[: len(GOOD) // 2], Status.TRUNCATED),
    "EOI too early": (lambda: GOOD[:SECOND_RESTART] + b"\xff\xd9", Status.MARKER),
    "restart left out": (lambda: GOOD[:FIRST_RESTART] + GOOD[FIRST_RESTART + 2 :], Status.MARKER),
    "restart out of order": (lambda: patched(FIRST_RESTART + 1, 0xD3), Status.MARKER),
    "a row missing": (lambda: GOOD[:FIRST_RESTART] + GOOD[SECOND_RESTART:], Status.MARKER),
    "a row twice": (
        lambda: GOOD[:FIRST_RESTART] + GOOD[SCAN:FIRST_RESTART] + GOOD[FIRST_RESTART:],
        Status.LENGTH,
    ),
    "bytes left over": (
        lambda: GOOD[:FIRST_RESTART] + b"\0\0" + GOOD[FIRST_RESTART:],
        Status.LENGTH,
    ),
    "bytes missing": (lambda: GOOD[: FIRST_RESTART - 9] + GOOD[FIRST_RESTART:], Status.LENGTH),
    "no restarts announced": (lambda: without(DRI), Status.MARKER),
    "ones": (lambda: GOOD[:SCAN] + b"\xff\0" * 90 + GOOD[FIRST_RESTART:], Status.CODE),
}


@needs_library
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_why(decoder: NativeDecoder, name: str) -> None:
    """Beside good files, which it costs nothing."""
    make, expected = REFUSED[name]
    plain = jpeg(photo(48, 64, 1), subsampling="4:2:0")
    files = [GOOD, make(), plain, GOOD, make()]
    status, made = views(decoder, files, [[(0, 0, 48, 64)]] * 5)
    assert status == [Status.OK, expected, Status.OK, Status.OK, expected]
    for number in (0, 2, 3):
        np.testing.assert_array_equal(made[number][0], decoded(files[number]))
    assert expected.damaged == (expected >= Status.TRUNCATED)


@needs_library
def test_what_is_accepted_beside_the_plain_form(decoder: NativeDecoder) -> None:
    """Comments and profiles, no JFIF, bytes behind the end."""
    start = at(DQT)
    forms = [
        inserted(0xFE, b"a comment"),
        inserted(0xE2, b"ICC_PROFILE\0\1\1..."),
        GOOD[:2] + GOOD[start:],
        GOOD + b"\0" * 7,
    ]
    status, made = views(decoder, forms, [[(0, 0, 48, 64)]] * 4)
    assert status == [Status.OK] * 4
    for form, [view] in zip(forms, made, strict=True):
        np.testing.assert_array_equal(view, decoded(form))


@needs_library
@pytest.mark.parametrize(
    "box",
    [
        (-1, 0, 9, 9),
        (0, -1, 9, 9),
        (40, 0, 9, 9),
        (0, 56, 9, 9),
        (0, 0, 0, 9),
        (2**31 - 1, 0, 9, 9),
    ],
)
def test_rectangles_outside_the_image_are_refused(decoder: NativeDecoder, box: Any) -> None:
    status, _ = views(decoder, [GOOD, GOOD], [[box], [(1, 1, 9, 9)]], size=(9, 9))
    assert status == [Status.RECTANGLE, Status.OK]
    big = {"size": (9, 9), "filter": Filter.TRIANGLE}
    assert views(decoder, [GOOD, GOOD], [[box], [(1, 1, 9, 9)]], **big)[0] == status


@needs_library
def test_a_crop_of_another_size_than_the_output_is_refused(decoder: NativeDecoder) -> None:
    status, _ = views(decoder, [GOOD, GOOD], [[(0, 0, 9, 8)], [(0, 0, 8, 9)]], size=(9, 8))
    assert status == [Status.OK, Status.RECTANGLE]


@needs_library
def test_damage_below_the_view_is_not_looked_at(decoder: NativeDecoder) -> None:
    """But markers are, of the whole file."""
    bent = GOOD[: SECOND_RESTART + 6] + b"\x55" * 40 + GOOD[SECOND_RESTART + 46 :]
    status, made = views(decoder, [bent, bent], [[(0, 0, 14, 64)], [(0, 0, 48, 64)]])
    assert status[0] == Status.OK
    assert status[1].damaged
    np.testing.assert_array_equal(made[0][0], decoded(GOOD)[:14])


@needs_library
def test_every_single_bit_of_a_scan(decoder: NativeDecoder) -> None:
    """Flipped, it is noticed, or the pixels are those of libjpeg-turbo. (Most belong to values.)"""
    file = jpeg(photo(32, 48), subsampling="4:2:0", restart_marker_rows=1, optimize=True)
    begin = file.index(b"\xff\xda") + 14
    flipped = [
        patched(place, file[place] ^ 1 << bit, file)
        for place in range(begin, len(file))
        for bit in range(8)
    ]
    status, made = views(decoder, flipped, [[(0, 0, 32, 48)]] * len(flipped))
    taken = [n for n, one in enumerate(status) if one == Status.OK]
    assert len(taken) < 0.8 * len(flipped)
    for n in taken[::7]:
        np.testing.assert_array_equal(made[n][0], decoded(flipped[n]))


@needs_library
def test_the_header_of_a_file() -> None:
    assert LIBRARY is not None
    for data, expected in ((GOOD, (64, 48, 3, 4)), (jpeg(photo(5, 9), mode="L"), (9, 5, 1, 0))):
        status, header = probe(LIBRARY, np.frombuffer(data, np.uint8))
        assert (status, tuple(header)) == (Status.OK, expected)
    assert probe(LIBRARY, np.frombuffer(png(), np.uint8))[0] == Status.NOT_JPEG


@needs_library
def test_the_environment_names_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ABLE:
        monkeypatch.setenv(ISA_VARIABLE, name)
        with NativeDecoder() as decoder:
            assert decoder.isa == name
            assert views(decoder, [GOOD], [[(0, 0, 48, 64)]])[0] == [Status.OK]
    for name in ("sse9", *(set(ISAS) - set(ABLE))):
        monkeypatch.setenv(ISA_VARIABLE, name)
        with pytest.raises(
            GratisError, match=f"{ISA_VARIABLE} is '{name}'; here it may be portable"
        ):
            NativeDecoder()


@needs_library
def test_a_machine_s_best_instruction_set_is_the_most_that_may_be_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also on one that has all of them: of machines with fewer."""
    assert LIBRARY is not None
    for best in range(len(ISAS)):
        machine = LIBRARY._replace(best_isa=best)
        for number, name in enumerate(ISAS):
            monkeypatch.setenv(ISA_VARIABLE, name)
            if number <= best:
                assert chosen_isa(machine) == number
                continue
            with pytest.raises(GratisError) as caught:
                chosen_isa(machine)
            able = " or ".join(ISAS[: best + 1])
            assert str(caught.value) == f"{ISA_VARIABLE} is {name!r}; here it may be {able}"
        monkeypatch.setenv(ISA_VARIABLE, "")
        assert chosen_isa(machine) == best


def test_what_is_compiled_here_is_loaded() -> None:
    """Else its tests would be left out without a word. `make install` compiles it."""
    assert (load_from(library.FILE) is not None) == library.FILE.exists()


def test_the_library_is_no_module_of_the_package() -> None:
    """Whoever walks through packages imports all modules."""
    folder = pkgutil.iter_modules([str(ENGINE)])
    assert {module.name for module in folder} == {"batch_passes", "decoder", "library"}


def test_without_a_library_there_is_none(tmp_path: Path) -> None:
    assert load_from(tmp_path / "missing.so") is None
    (tmp_path / "text.so").write_text("no library")
    assert load_from(tmp_path / "text.so") is None


def test_wrong_arrays_are_refused() -> None:
    good: dict[str, Any] = {
        "data": np.zeros(2, np.uint64),
        "size": np.zeros(2, np.int64),
        "rectangles": np.zeros((2, 1, 4), np.int32),
        "out": np.zeros((2, 1), np.uint64),
        "height": 3,
        "width": 4,
    }
    ViewBatch(**good)
    wrong: dict[str, Any] = {
        "data": np.zeros(2, np.int64),
        "size": np.zeros(3, np.int64),
        "rectangles": np.zeros((2, 4), np.int32),
        "flip": np.zeros((2, 1), bool),
        "plus": np.zeros((2, 1, 3), np.float64),
        "minus": np.zeros((2, 2), np.uint64)[:, ::2],
        "height": 0,
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"^({name} is|views of)"):
            ViewBatch(**{**good, name: value})


SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all".split()


FUZZER = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-DFUZZ"]


def build_with_sanitizers(folder: Path, compiler: str | None, own: list[str]) -> Path:
    """The engine and engine_damage.c as a program. Skips where the compiler has none."""
    (folder / "empty.c").write_text("int main(void) { return 0; }")
    trial = [str(compiler), *SANITIZERS, str(folder / "empty.c"), "-o", str(folder / "empty")]
    if compiler is None or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("needs a C compiler with its sanitizers")
    with mock.patch("setuptools.setup"):
        setup = runpy.run_path(str(ROOT / "setup.py"))
    common = ["-g", "-O1", "-std=gnu11", "-ffp-contract=off", f"-I{ENGINE}", *own]
    common += ["-DGRATIS_X86"] if setup["X86"] else []
    sources = [ROOT / name for name in setup["SOURCES"]]
    sources += [ENGINE / name for name in setup["FLAGS"] if setup["X86"]]
    objects = []
    for source in [*sources, Path(__file__).with_name("engine_damage.c")]:
        # sums of vectors may wrap; those of everything else may not
        vectors = ["-fwrapv", *setup["FLAGS"].get(source.name, [])]
        flags = vectors if source.name in ("portable.c", *setup["FLAGS"]) else []
        objects.append(folder / f"{source.stem}.o")
        command = [compiler, *common, *flags, "-c", str(source), "-o", str(objects[-1])]
        subprocess.run(command, check=True, timeout=300)
    program = folder / "engine_damage"
    link = [compiler, *common, *map(str, objects), "-o", str(program), "-lm"]
    subprocess.run(link, check=True, timeout=300)
    return program


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    with (folder / "files").open("wb") as file:
        for number, options in enumerate(FORMS.values()):
            for size in ((64, 48), (33, 70), (5, 7)):
                data = jpeg(photo(*size, number), **options)
                file.write(struct.pack("<q", len(data)) + data)
    build_with_sanitizers(folder, shutil.which("gcc") or shutil.which("cc"), SANITIZERS)
    return folder


def survive(folder: Path, seed: int, count: int) -> dict[Status, int]:
    command = [str(folder / "engine_damage"), str(folder / "files"), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (line.split() for line in done.stdout.splitlines())
    counts = {Status(int(status)): int(times) for status, times in lines}
    assert sum(counts.values()) == count
    assert {Status.OK, Status.MARKER, Status.CODE, Status.LENGTH, Status.TABLES} <= counts.keys()
    return counts


@pytest.mark.slow
@pytest.mark.starts
@pytest.mark.skipif(platform.system() != "Linux", reason="the sanitizers of gcc")
def test_damaged_files_under_sanitizers(hostile: Path) -> None:
    survive(hostile, 1, 2_000)


@pytest.mark.prove
@pytest.mark.starts
def test_many_damaged_files_under_sanitizers(hostile: Path) -> None:
    survive(hostile, 2, 50_000)


@pytest.mark.prove
@pytest.mark.starts
@pytest.mark.skipif(shutil.which("clang") is None, reason="libFuzzer is clang's: apt install clang")
def test_a_fuzzer_finds_nothing(tmp_path: Path) -> None:
    """libFuzzer, for GRATIS_FUZZ_SECONDS. What it finds stays in the test's folder."""
    program = build_with_sanitizers(tmp_path, shutil.which("clang"), FUZZER)
    (tmp_path / "files").mkdir()
    for number, options in enumerate(FORMS.values()):
        for size in ((64, 48), (33, 70), (5, 7)):
            data = jpeg(photo(*size, number), quality=50, **options)
            (tmp_path / f"files/{number}-{size[0]}.jpg").write_bytes(data)
    seconds = int(os.environ.get("GRATIS_FUZZ_SECONDS", "60"))
    command = [program, f"-max_total_time={seconds}", "-max_len=8192", "-print_final_stats=1"]
    command += [f"-artifact_prefix={tmp_path}/", tmp_path / "files"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300)
    print(done.stderr[-2000:])
    assert done.returncode == 0
    assert "stat::number_of_executed_units" in done.stderr
