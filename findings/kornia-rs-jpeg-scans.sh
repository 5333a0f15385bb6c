#!/usr/bin/env bash
# kornia-rs 0.2.0, Pillow 13.0.0, Python 3.11, 2026-12-01.
#
# Guess: a baseline JPEG decodes to the same picture whether its components share one scan or have one each; the standard
#   has had both from the beginning, and libjpeg's cjpeg and jpegtran write both (-scans).
# Seen: with chroma of half the resolution (4:2:0) and a scan for each component, kornia_rs.read_image_jpeg gives another
#   picture: no error, right size, up to 244 levels off. The same blocks in one scan are within 2 levels, and its
#   read_image_jpegturbo and Pillow decode both files to the same bits.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 pillow==13.0.0 kornia-rs==0.2.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import struct
import sys

import kornia_rs
import numpy as np
import PIL
from PIL import Image

print(f"kornia-rs {kornia_rs.__version__}, Pillow {PIL.__version__}")


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def block(value, before):
    """The bits of an 8x8 block of one colour: its DC difference, then end of block."""
    difference = int(value) - int(before)
    size = abs(difference).bit_length()
    low = difference if difference >= 0 else difference + (1 << size) - 1
    return f"{size:04b}" + (f"{low:0{size}b}" if size else "") + "0"


def scan(ids, bits):
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    head = bytes([len(ids)]) + b"".join(bytes([i, 0]) for i in ids) + bytes([0, 63, 0])
    return segment(0xDA, head) + data.replace(b"\xff", b"\xff\0")


def blocks(values):
    return "".join(block(value, before) for value, before in zip(values, [0, *values]))


def jpeg(y, cb, cr, apart):
    """4:2:0 from one value for each block: in MCUs of four Y, one Cb, one Cr, or a scan for each."""
    quantization = segment(0xDB, bytes([0] + [8] * 64))
    sampling = bytes([1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0])
    frame = segment(0xC0, struct.pack(">BHHB", 8, 32, 32, 3) + sampling)
    dc = segment(0xC4, bytes([0x00, 0, 0, 0, 12, *[0] * 12, *range(12)]))  # twelve codes of 4 bits
    ac = segment(0xC4, bytes([0x10, 1, *[0] * 15, 0]))  # end of block: one code of 1 bit
    if apart:
        parts = enumerate((y, cb, cr), 1)
        scans = b"".join(scan([i], blocks(plane.flatten())) for i, plane in parts)
    else:
        mcus = y.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
        parts = [[block(v, b) for v, b in zip(p, [0, *p])] for p in (mcus.flatten(), cb.flatten(), cr.flatten())]
        bits = ("".join(parts[0][4 * i : 4 * i + 4]) + parts[1][i] + parts[2][i] for i in range(4))
        scans = scan([1, 2, 3], "".join(bits))
    return b"\xff\xd8" + quantization + frame + dc + ac + scans + b"\xff\xd9"


random = np.random.default_rng(0)
planes = random.integers(-60, 60, (4, 4)), *random.integers(-40, 40, (2, 2, 2))
seen, pillow = [], []
for name, apart in (("one scan", False), ("a scan for each", True)):
    with open("a.jpg", "wb") as file:
        file.write(jpeg(*planes, apart))
    pillow.append(np.asarray(Image.open("a.jpg").convert("RGB")).astype(int))
    own = np.abs(pillow[-1] - kornia_rs.read_image_jpeg("a.jpg", "rgb")).max()
    turbo = np.abs(pillow[-1] - kornia_rs.io.read_image_jpegturbo("a.jpg")).max()
    print(f"{name:16} largest difference from Pillow: read_image_jpeg {own}, read_image_jpegturbo {turbo}")
    seen.append((own, turbo))
assert np.array_equal(*pillow), "the two files are one picture"
if not (seen[0][0] <= 4 and seen[1][0] > 100 and seen[0][1] == seen[1][1] == 0):
    sys.exit("changed: kornia-rs decodes a scan for each component otherwise")
print("as seen: a scan for each component is another picture")
EOF
