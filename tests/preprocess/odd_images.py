"""Odd images of every format that is read, and some that are not, made from nothing.

Each picture of `odd_images` is FLAT, a plain colour, unless its name begins with "turned": those
show `corners`, stored so that a viewer which obeys the orientation shows it upright. TIFFs are laid
out here byte by byte, so that they need no library that writes them."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

FLAT = (200, 120, 40)
GREY = 140
CLEAR = 0x40  # alpha of translucent ones
SIDE = 24
DEPTH16 = 0x0101  # 255 in 16 bits is 65535
# made once by libwebp 1.2.4, as Pillow may be built without it
WEBP = {
    name: base64.b64decode(text)
    for name, text in {
        "webp lossy": (
            "UklGRkoAAABXRUJQVlA4ID4AAABQAwCdASoYABgAPhkKhEGhBQEABABhLKAOwB+AH6AAGYNOAAD+yL//"
            "/6bJ4q8Z/9Nm///ln7B3t3/K0AAAAA=="
        ),
        "webp lossless": ("UklGRh4AAABXRUJQVlA4TBEAAAAvF8AFAAdQvCIXpf+BiOh/AAA="),
        "webp alpha": ("UklGRh4AAABXRUJQVlA4TBEAAAAvF8AFEAdQvCIXpUCBiOh/AAA="),
        "webp animated": (
            "UklGRoQAAABXRUJQVlA4WAoAAAACAAAABwAABwAAQU5JTQYAAAAAAAAAAABBTk1GKgAAAAAAAAAAAAcA"
            "AAcAAAAAAAJWUDhMEQAAAC8HwAEAB1C8Ihel/4GI6H8AAEFOTUYmAAAAAAAAAAAABwAABwAAAAAAAFZQ"
            "OEwOAAAALwfAAQAHEBH9D0RE/wM="
        ),
    }.items()
}


def flat(mode: str = "RGB", width: int = SIDE, height: int = SIDE) -> Pillow.Image:
    colours = {
        "RGB": FLAT,
        "RGBA": (*FLAT, CLEAR),
        "L": GREY,
        "LA": (GREY, CLEAR),
        "1": 255,
        "CMYK": (55, 135, 215, 0),
    }
    return Pillow.new(mode, (width, height), colours[mode])


def palette() -> Pillow.Image:
    return flat().quantize(2)


def saved(picture: Pillow.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def corners(width: int = 3 * SIDE, height: int = SIDE) -> NDArray[np.uint8]:
    """uint8 [height,width,3]: red top left, green top right, blue bottom left, white bottom
    right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    y, x = height // 2, width // 2
    pixels[:y, :x, 0] = pixels[:y, x:, 1] = pixels[y:, :x, 2] = 255
    pixels[y:, x:] = 255
    return pixels


def stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """What lies in a file of that orientation (TIFF 6.0, tag 274: where row 0 and column 0 are)."""
    # row 0 lies at the bottom or right in four of them, column 0 at the right or bottom
    turned = upright.swapaxes(0, 1) if orientation > 4 else upright
    turned = turned[::-1] if orientation in (3, 4, 6, 7) else turned
    turned = turned[:, ::-1] if orientation in (2, 3, 7, 8) else turned
    return np.ascontiguousarray(turned)


def odd_images() -> dict[str, bytes]:
    """By name: the bytes of a file."""
    return dict([*_jpegs(), *_pngs(), *_gifs(), *_others(), *_tiffs(), *_turned(), *WEBP.items()])


def _jpegs() -> Iterator[tuple[str, bytes]]:
    rgb = flat()
    yield "jpeg 4:2:0", saved(rgb, "JPEG", quality=95)
    yield "jpeg 4:4:4", saved(rgb, "JPEG", quality=95, subsampling="4:4:4")
    yield "jpeg restart markers", saved(rgb, "JPEG", quality=95, restart_marker_rows=1)
    yield "jpeg progressive", saved(rgb, "JPEG", quality=95, progressive=True)
    yield "jpeg grey", saved(flat("L"), "JPEG", quality=95)
    # Pillow writes inks as they are, with an Adobe marker, as Photoshop does
    yield "jpeg cmyk", saved(flat("CMYK"), "JPEG", quality=95)
    yield (
        "jpeg with a comment and a profile",
        saved(rgb, "JPEG", comment=b"x", icc_profile=b"x" * 9),
    )
    yield "jpeg with bytes behind its end", saved(rgb, "JPEG", quality=95) + bytes(100)
    yield "jpeg in gzip", gzip.compress(saved(rgb, "JPEG", quality=95))
    yield "jpeg one pixel", saved(flat(width=1, height=1), "JPEG", quality=95)
    yield "jpeg one column", saved(flat(width=1, height=40), "JPEG", quality=95)
    yield "jpeg preview behind it", saved(rgb, "MPO", save_all=True, append_images=[flat("RGB", 8)])


def _pngs() -> Iterator[tuple[str, bytes]]:
    for mode in ("RGB", "RGBA", "L", "LA", "1"):
        yield f"png {mode}", saved(flat(mode), "PNG")
    yield "png palette", saved(palette(), "PNG")
    yield ("png palette transparent", saved(palette(), "PNG", transparency=bytes([CLEAR] * 256)))
    yield "png transparent colour", saved(flat(), "PNG", transparency=FLAT)
    for name, colours in {
        "L": (GREY,),
        "LA": (GREY, CLEAR),
        "RGB": FLAT,
        "RGBA": (*FLAT, CLEAR),
    }.items():
        yield f"png 16 bits {name}", _png16(colours)
    frames = [flat(), Pillow.new("RGB", (SIDE, SIDE))]
    yield "png animated", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])


def _gifs() -> Iterator[tuple[str, bytes]]:
    yield "gif", saved(flat(), "GIF")
    clear = palette()
    yield "gif transparent", saved(clear, "GIF", transparency=clear.getpixel((0, 0)))
    frames = [flat(), Pillow.new("RGB", (SIDE, SIDE))]
    yield "gif animated", saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def _others() -> Iterator[tuple[str, bytes]]:
    yield "bmp", saved(flat(), "BMP")
    yield "bmp grey", saved(flat("L"), "BMP")
    yield "bmp palette", saved(palette(), "BMP")
    yield "bmp 1 bit", saved(flat("1"), "BMP")
    size = f"{SIDE} {SIDE}".encode()
    count = SIDE * SIDE
    yield "ppm", saved(flat(), "PPM")
    yield "ppm as text", b"P3 " + size + b" 255\n" + b"%d %d %d\n" % FLAT * count
    yield "ppm 16 bits", b"P6 " + size + b" 65535\n" + _big_endian(FLAT) * count
    yield "pgm", saved(flat("L"), "PPM")
    yield "pgm 16 bits", b"P5 " + size + b" 65535\n" + _big_endian((GREY,)) * count
    yield "pbm", saved(flat("1"), "PPM")


def _tiffs() -> Iterator[tuple[str, bytes]]:
    rgb = np.full((SIDE, SIDE, 3), FLAT, np.uint8)
    grey = np.full((SIDE, SIDE, 1), GREY, np.uint8)
    packed = rgb.tobytes()
    for name, compression, strip in (
        ("none", 1, packed),
        ("lzw", 5, _lzw(packed)),
        ("deflate", 8, zlib.compress(packed)),
        ("old deflate", 32946, zlib.compress(packed)),
        ("packbits", 32773, _packbits(packed)),
        ("jpeg", 7, saved(flat(), "JPEG", quality=95, subsampling="4:4:4", keep_rgb=True)),
    ):
        yield f"tiff {name}", tiff(rgb, compression=compression, strip=strip)
    for order in "<>":
        end = {"<": "little", ">": "big"}[order]
        for name, pixels in (("grey", grey), ("rgb", rgb)):
            yield f"tiff 16 bits {name} {end}", tiff(pixels.astype(np.uint16) * DEPTH16, order)
    yield "tiff grey", tiff(grey)
    yield "tiff white is zero", tiff(255 - grey, tags={262: 0})
    yield (
        "tiff 16 bits deflate",
        tiff(
            (deep := rgb.astype(np.uint16) * DEPTH16),
            compression=8,
            strip=zlib.compress(deep.tobytes()),
        ),
    )
    yield "tiff 32 bits", tiff(grey.astype(np.uint32) << 8)
    yield "tiff float", tiff(grey.astype(np.float32), tags={339: 3})
    alpha = np.concatenate([rgb, np.full((SIDE, SIDE, 1), CLEAR, np.uint8)], axis=2)
    yield "tiff alpha", tiff(alpha, tags={338: 2})
    yield "tiff cmyk", tiff(np.asarray(flat("CMYK")), tags={262: 5})
    yield "tiff pages", tiff(rgb, pages=2)
    yield "tiff reduced", tiff(rgb, tags={254: 1})


def _turned() -> Iterator[tuple[str, bytes]]:
    for orientation in range(1, 9):
        pixels = stored(corners(), orientation)
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        picture = Pillow.fromarray(pixels)
        plain = {"quality": 95, "subsampling": "4:4:4"}
        yield f"turned jpeg {orientation}", saved(picture, "JPEG", exif=exif, **plain)
        yield f"turned png {orientation}", saved(picture, "PNG", exif=exif)
        yield f"turned tiff {orientation}", tiff(pixels, tags={274: orientation})


def _big_endian(colours: tuple[int, ...]) -> bytes:
    return b"".join(struct.pack(">H", colour * DEPTH16) for colour in colours)


def _png16(colours: tuple[int, ...]) -> bytes:
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[len(colours)]
    rows = (b"\0" + _big_endian(colours) * SIDE) * SIDE
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        data += (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )
    return data


def tiff(
    pixels: NDArray[np.generic],
    order: str = "<",
    *,
    compression: int = 1,
    strip: bytes | None = None,
    tags: dict[int, int] | None = None,
    pages: int = 1,
) -> bytes:
    """A TIFF of one strip a page. pixels: [height,width,samples]; strip: as compressed."""
    height, width, samples = pixels.shape
    body = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() if strip is None else strip
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    for page in range(pages):
        values = {
            256: [width],
            257: [height],
            258: [8 * pixels.dtype.itemsize] * samples,
            259: [compression],
            262: [2 if samples > 2 else 1],
            273: [0],
            277: [samples],
            278: [height],
            279: [len(body)],
        } | {tag: [value] for tag, value in (tags or {}).items()}
        begin = len(data)
        long = 8 * (len(values) * 12 + 6 + begin + 7 >> 3)  # where bits a sample lie
        values[273] = [long + 2 * samples]
        entries = b""
        for tag, numbers in sorted(values.items()):
            wide = tag in (273, 279)
            field = b"".join(struct.pack(order + "HI"[wide], number) for number in numbers)
            if len(field) > 4:
                field = struct.pack(order + "I", long)
            entries += struct.pack(order + "HHI", tag, 3 + wide, len(numbers)) + field.ljust(
                4, b"\0"
            )
        after = long + 2 * samples + len(body)
        after += after % 2  # directories begin at even places
        follows = after if page + 1 < pages else 0
        data += struct.pack(order + "H", len(values)) + entries + struct.pack(order + "I", follows)
        bits = struct.pack(f"{order}{samples}H", *values[258])
        data = (data.ljust(long, b"\0") + bits + body).ljust(after, b"\0")
    return data


def _packbits(data: bytes) -> bytes:
    """All of it as it is, in runs of up to 128."""
    runs = [data[k : k + 128] for k in range(0, len(data), 128)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


def _lzw(data: bytes) -> bytes:
    """TIFF's LZW without compressing: a clear code before codes would get longer than 9 bits."""
    codes = []
    for k in range(0, len(data), 200):
        codes += [256, *data[k : k + 200]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def arithmetic(data: bytes) -> bytes:
    """A JPEG that says it is coded arithmetically: any bytes decode to something then."""
    parts, at = [data[:2]], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xC0:
            parts.append(b"\xff\xc9" + data[at + 2 : end])
        elif data[at + 1] != 0xC4:
            parts.append(data[at:end])
        at = end
    return b"".join(parts) + data[at : at + 14] + bytes(range(200)) * 8 + b"\xff\xd9"
