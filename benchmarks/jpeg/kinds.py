"""JPEGs of every kind that decoders are known to read differently, written from nothing.

A small encoder of ITU T.81 (Huffman coding; sequential frames of 8 and 12 bits), as no library
writes most of these. Progressive frames are Pillow's. Arithmetic coding is in `ARITHMETIC`, by
cjpeg of libjpeg-turbo 2.1.5."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 48, 32
STEP = 2  # of quantisation, everywhere: an error of one or two levels
ZIGZAG = sorted(
    range(64), key=lambda k: (k // 8 + k % 8, k // 8 if (k // 8 + k % 8) % 2 else k % 8)
)
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # and then the transform
JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
EXIF_ON_ITS_SIDE = (
    b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
)
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJ"
    "BwYGCAsICQoKCgoKBggLDAsKDAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoK"
    "CgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/yQARCAAgADADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIR"
    "AxEAPwDSZEka9GwUa8ExMWTocRKnmxD/ABl96p2SBNU78hajQ0lmPBBQMMjRd0ObXASWTnphoac039kx8aZajnMa"
    "m7AZ/gXeXzN6G01PfoxDA/KUQM7uMWl1kWVV/No5ORV7GBJqxxbkklUJaMO1NHO3ZGFLNW78TJX92a5noe4PXXyE"
    "jD9B9H33LTEtRcB6LZn2KVuxpPYrYj5wV4ZxEu8Ym3emzZn4X24EhBWvCdFv0kc1V7gwU0pjVjHZUlp35LsPJGpd"
    "x7XrH1JVi94v0jDfZW76Tm7kZYQ56DQxIAlGrPT3iaTMi7YNirSskAvGvthGTmACmZVHXd45f4SeGvEo6H2bIXqk"
    "EIYbhCUXD7mjgt34jWTjoYln2sFxkCqaXktu7K7t2f00Ic2E+Ev9YfrNbuZWrCCNkdIlMZR/B3c216QE/l+bfyeN"
    "hsOwSO3T2+0EborHiFlzhs1Z+MYakFOxsaE2y8E0FjTu8KxchXLmIbm+Iv78XqVCx/qIrYkF2KDeCQWwfyrIsxCY"
    "5H9uF3s5GTShdb+vo36qDC6Hd+U/ie3ZFHH/AGYYYvZ6kgLB4Z42F64uO5k1Ago9HBjwIYcf+cDdGBLb3prY/wCp"
    "k1cuWEfCxQi4tbjVb3LwL9Wmbz5Q5aGV9A1qEiJRa8K382JX20ld4uqAvtOU7cnuyHLsZBIW+e98iEb+sbsZ9lWR"
    "jSDoJzfe6sNnHWTDnXm2r9qnmC/uDOg9OC4z1KSYSfQJ+Q5txUmW7/hxiSTmgjmW8Id6tsc1Drax8iUFzRtPWSVD"
    "7LGzzxeCYTLX+n+o/OHcFO8uE6mBW124PAilyH4s+fLcmdwBNZoEZVDXeGhtJK91Ibv8v502YGksVKrEQ2xRYZLg"
    "eJZ6w/8AoRXKAyB3YBep/O46pNnlf00rGit1m//Z"
)
Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Form:
    """How planes are written. factors: sampling of each component, across and down; ids: what the
    frame calls them; markers: between SOI and the tables."""

    factors: tuple[tuple[int, int], ...] = ((2, 2), (1, 1), (1, 1))
    ids: tuple[int, ...] = (1, 2, 3)
    markers: bytes = JFIF
    apart: bool = False  # a scan for each component
    restart: int = 0  # MCUs between restart markers
    bits: int = 8


def photograph(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """uint8 [height,width,3]: slopes in every channel, and edges of colour, which chroma at half
    resolution blurs."""
    y, x = np.mgrid[0:height, 0:width]
    red = 40 + 170 * x / max(1, width - 1)
    green = 220 - 180 * y / max(1, height - 1)
    blue = np.where((x // 11 + y // 9) % 2, 200, 60)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def natural(side: int = 256) -> NDArray[np.uint8]:
    """uint8 [side,side,3]: noise with the spectrum of photographs, amplitude as 1 / frequency, and
    with correlated channels, as theirs are."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.random((3, *frequency.shape)))
    noise = np.fft.irfft2(phases / frequency, s=(side, side))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    mixed = np.array([[1, 0.25, 0.1], [1, 0, 0], [1, -0.25, 0.1]]) @ noise.reshape(3, -1)
    return (120 + 55 * mixed.T).clip(0, 255).astype(np.uint8).reshape(side, side, 3)


def as_gratis_writes() -> bytes:
    """What a shard holds: baseline, 4:2:0, JFIF, no Adobe marker, RGB in YCbCr."""
    from gratis.preprocess.codecs import encode_jpeg

    return encode_jpeg(natural(), 95)


def ycc(rgb: NDArray[np.uint8]) -> list[Plane]:
    """JFIF's Y, Cb, Cr."""
    r, g, b = np.moveaxis(rgb.astype(float), 2, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return [y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402]


def planes_of(rgb: NDArray[np.uint8]) -> list[Plane]:
    return list(np.moveaxis(rgb.astype(float), 2, 0))


def write(planes: list[Plane], form: Form) -> bytes:
    """A JPEG of full-size planes, 0 to 255, which are averaged where a component has less than the
    highest factors."""
    height, width = planes[0].shape
    most = [max(factor[k] for factor in form.factors) for k in (0, 1)]
    scale = (1 << form.bits) / 256
    mcus = (-(-width // (8 * most[0])), -(-height // (8 * most[1])))
    parts = []
    for plane, (across, down) in zip(planes, form.factors, strict=True):
        small = _averaged(plane * scale, most[0] // across, most[1] // down)
        blocks = _blocks(small, mcus[0] * across, mcus[1] * down, form.bits)
        parts.append((blocks, -(-small.shape[1] // 8), -(-small.shape[0] // 8)))
    head = [b"\xff\xd8", form.markers, _quantisation(), _frame(width, height, form), _huffman()]
    if form.restart:
        head.append(b"\xff\xdd\x00\x04" + form.restart.to_bytes(2, "big"))
    every = range(len(planes))
    if form.apart:
        scans = [_scan(form, [k], _alone(*parts[k])) for k in every]
    else:
        units = _interleaved([blocks for blocks, *_ in parts], form.factors, mcus)
        if len(planes) == 1:  # a scan of one component has no MCUs of several blocks
            units = _alone(*parts[0])
        scans = [_scan(form, list(every), units)]
    return b"".join([*head, *scans, b"\xff\xd9"])


def _averaged(plane: Plane, across: int, down: int) -> Plane:
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % down), (0, -width % across)), "edge")
    tall, wide = padded.shape[0] // down, padded.shape[1] // across
    result: Plane = padded.reshape(tall, down, wide, across).mean(axis=(1, 3))
    return result


def _blocks(plane: Plane, across: int, down: int, bits: int) -> NDArray[np.int64]:
    """Quantised coefficients in zigzag order, [down,across,64]."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, 8 * down - height), (0, 8 * across - width)), "edge")
    tiles = (padded - (1 << bits - 1)).reshape(down, 8, across, 8).swapaxes(1, 2)
    k, n = np.mgrid[0:8, 0:8]
    basis = np.cos((2 * n + 1) * k * np.pi / 16) / 2
    basis[0] /= np.sqrt(2)
    quantised = np.rint(basis @ tiles @ basis.T / STEP).astype(np.int64)
    zigzag: NDArray[np.int64] = quantised.reshape(down, across, 64)[..., ZIGZAG]
    return zigzag


def _quantisation() -> bytes:
    return b"\xff\xdb\x00\x43\x00" + bytes([STEP] * 64)


def _frame(width: int, height: int, form: Form) -> bytes:
    body = bytes([form.bits]) + height.to_bytes(2, "big") + width.to_bytes(2, "big")
    body += bytes([len(form.ids)])
    for name, (across, down) in zip(form.ids, form.factors, strict=True):
        body += bytes([name, across << 4 | down, 0])
    marker = b"\xff\xc0" if form.bits == 8 else b"\xff\xc1"
    return marker + (len(body) + 2).to_bytes(2, "big") + body


# plain tables: each DC category has 5 bits, each symbol of AC 8
DC = list(range(16))
AC = [run << 4 | size for run in range(16) for size in range(1, 15)] + [0x00, 0xF0]


def _huffman() -> bytes:
    dc = bytes([0x00, *(16 if length == 5 else 0 for length in range(1, 17)), *DC])
    ac = bytes([0x10, *(len(AC) if length == 8 else 0 for length in range(1, 17)), *AC])
    return b"\xff\xc4" + (2 + len(dc) + len(ac)).to_bytes(2, "big") + dc + ac


Unit = list[tuple[int, NDArray[np.int64]]]  # an MCU: its blocks, each with its component


def _alone(blocks: NDArray[np.int64], across: int, down: int) -> list[Unit]:
    return [[(0, block)] for row in blocks[:down, :across] for block in row]


def _interleaved(
    parts: list[NDArray[np.int64]], factors: tuple[tuple[int, int], ...], mcus: tuple[int, int]
) -> list[Unit]:
    return [
        [
            (number, blocks[y * down + j, x * across + i])
            for number, (blocks, (across, down)) in enumerate(zip(parts, factors, strict=True))
            for j in range(down)
            for i in range(across)
        ]
        for y in range(mcus[1])
        for x in range(mcus[0])
    ]


def _scan(form: Form, components: list[int], units: list[Unit]) -> bytes:
    body = bytes([len(components)])
    body += b"".join(bytes([form.ids[k], 0x00]) for k in components) + bytes([0, 63, 0])
    intervals = [units]
    if form.restart:
        intervals = [units[k : k + form.restart] for k in range(0, len(units), form.restart)]
    data = [_coded(interval) for interval in intervals]
    joined = data[0]
    for number, part in enumerate(data[1:]):
        joined += bytes([0xFF, 0xD0 + number % 8]) + part
    return b"\xff\xda" + (len(body) + 2).to_bytes(2, "big") + body + joined


def _coded(units: list[Unit]) -> bytes:
    before: dict[int, int] = {}
    bits: list[str] = []
    for unit in units:
        for number, block in unit:
            dc = int(block[0]) - before.get(number, 0)
            before[number] = int(block[0])
            bits.append(f"{DC.index(dc.bit_length() if dc else 0):05b}{_value(dc)}")
            run = 0
            last = int(np.flatnonzero(block[1:]).max()) + 1 if block[1:].any() else 0
            for value in map(int, block[1 : last + 1]):
                if value == 0:
                    run += 1
                    continue
                bits += [f"{AC.index(0xF0):08b}"] * (run // 16)
                symbol = run % 16 << 4 | value.bit_length()
                bits.append(f"{AC.index(symbol):08b}{_value(value)}")
                run = 0
            if last < 63:
                bits.append(f"{AC.index(0x00):08b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")


def _value(value: int) -> str:
    size = abs(value).bit_length()
    return f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def kinds() -> dict[str, bytes]:
    """By name, the file; all show `photograph`, but for the first, "odd size" and "one pixel"."""
    rgb = photograph()
    colour, plain = ycc(rgb), planes_of(rgb)
    inks = [255 - plane for plane in plain] + [np.zeros((HEIGHT, WIDTH))]
    full = ((1, 1), (1, 1), (1, 1))
    four = (*full, (1, 1))
    form = Form()
    adobe = {number: ADOBE + bytes([number]) for number in (0, 1, 2)}
    grey = [colour[0]]
    written: dict[str, Callable[[], bytes]] = {
        "as gratis writes them": as_gratis_writes,
        "4:2:0": lambda: write(colour, form),
        "4:4:4": lambda: write(colour, replace(form, factors=full)),
        "4:2:2": lambda: write(colour, replace(form, factors=((2, 1), (1, 1), (1, 1)))),
        "4:4:0": lambda: write(colour, replace(form, factors=((1, 2), (1, 1), (1, 1)))),
        "4:1:1": lambda: write(colour, replace(form, factors=((4, 1), (1, 1), (1, 1)))),
        "odd size, 47 x 31": lambda: write(ycc(photograph(47, 31)), form),
        "one pixel": lambda: write(ycc(photograph(1, 1)), form),
        "restart markers": lambda: write(colour, replace(form, restart=1)),
        "progressive": lambda: _pillow(rgb, progressive=True),
        "grey": lambda: write(grey, replace(form, factors=((1, 1),), ids=(1,))),
        "grey, sampling 2 x 2": lambda: write(grey, replace(form, factors=((2, 2),), ids=(1,))),
        "a scan for each component": lambda: write(colour, replace(form, apart=True)),
        "a scan for each component, 4:4:4": lambda: write(
            colour, replace(form, factors=full, apart=True)
        ),
        "Y at half the resolution of Cb, Cr": lambda: write(
            colour, replace(form, factors=((1, 1), (2, 2), (2, 2)))
        ),
        "EXIF: on its side": lambda: write(colour, replace(form, markers=JFIF + EXIF_ON_ITS_SIDE)),
        "no JFIF, no Adobe": lambda: write(colour, replace(form, markers=b"")),
        "ids 0, 1, 2, no JFIF": lambda: write(colour, replace(form, markers=b"", ids=(0, 1, 2))),
        "Adobe marker 1 (YCbCr)": lambda: write(colour, replace(form, markers=adobe[1])),
        "RGB by Adobe marker 0": lambda: write(
            plain, replace(form, factors=full, markers=adobe[0])
        ),
        "RGB by Adobe marker 0, subsampled": lambda: write(plain, replace(form, markers=adobe[0])),
        "RGB by ids R, G, B": lambda: write(
            plain, replace(form, factors=full, markers=b"", ids=(82, 71, 66))
        ),
        "RGB by ids R, G, B, subsampled": lambda: write(
            plain, replace(form, markers=b"", ids=(82, 71, 66))
        ),
        "YCbCr by JFIF, RGB by Adobe marker 0": lambda: write(
            colour, replace(form, factors=full, markers=JFIF + adobe[0])
        ),
        "YCbCr by JFIF, RGB by ids R, G, B": lambda: write(
            colour, replace(form, factors=full, ids=(82, 71, 66))
        ),
        # Adobe writes inks inverted, and a YCCK's Y, Cb, Cr are of R, G, B = 255 - C, M, Y
        "CMYK, Adobe marker 0": lambda: write(
            [255 - ink for ink in inks], Form(four, (1, 2, 3, 4), adobe[0])
        ),
        "YCCK, Adobe marker 2": lambda: write(
            [*ycc(255 - rgb), 255 - inks[3]], Form(four, (1, 2, 3, 4), adobe[2])
        ),
        "CMYK, no Adobe marker": lambda: write(inks, Form(four, (1, 2, 3, 4), b"")),
        "arithmetic coding": lambda: ARITHMETIC,
        "12 bits": lambda: write(colour, replace(form, bits=12)),
    }
    return {name: make() for name, make in written.items()}


def _pillow(rgb: NDArray[np.uint8], **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=95, subsampling="4:2:0", **options)
    return file.getvalue()
