#!/usr/bin/env bash
# nvImageCodec 0.9.0.20 (its CPU decoders), Pillow 13.0.0, Python 3.11, 2026-12-01.
#
# Guess: a WebP file decodes to the same pixels whether or not an EXIF chunk stands behind them, and one whose pixels take
#   an odd number of bytes like one where it is even: RIFF pads each chunk to an even length.
# Seen: a lossless WebP with EXIF is refused if its pixel chunk (VP8L) has an odd length, one file in two: "Unexpected
#   end of stream" on standard error and None where the image should be, no exception. With an even length it decodes, and
#   is turned by the orientation in the EXIF. Lossy, or without EXIF, any length decodes. Pillow reads all.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 pillow==13.0.0 nvidia-nvimgcodec-cu13==0.9.0.20
"$work/venv/bin/python" - <<'EOF'
import importlib.metadata
import io
import sys

import numpy as np
from nvidia import nvimgcodec
from PIL import Image

CPU = -99999  # nvImageCodec's number for "no device"
for package in ("nvidia-nvimgcodec-cu13", "pillow"):
    print(package, importlib.metadata.version(package))

exif = Image.Exif()
exif[0x010F] = "maker"
decoder = nvimgcodec.Decoder(backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)], device_id=CPU)


def webp(height, **options):
    """A WebP of noise, and the length of the chunk of its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", **options)
    data = file.getvalue()
    Image.open(file).load()  # valid: Pillow reads it
    at = data.index(b"VP8L" if options["lossless"] else b"VP8 ")
    return data, int.from_bytes(data[at + 4 : at + 8], "little")


seen = {}
for lossless in (False, True):
    for options in ({}, {"exif": exif}):
        for height in range(40, 60):
            data, length = webp(height, lossless=lossless, **options)
            kind = "lossless" if lossless else "lossy", "EXIF" if options else "no EXIF"
            decoded = decoder.decode(data) is not None
            seen.setdefault((*kind, "odd" if length % 2 else "even"), []).append(decoded)
for kind, decoded in seen.items():
    print(f"{', '.join(kind):24} {sum(decoded)} of {len(decoded)} decoded")
refused = ("lossless", "EXIF", "odd")
if any(seen[refused]) or not all(all(seen[kind]) for kind in seen if kind != refused):
    sys.exit("changed: nvImageCodec decodes lossless WebP with EXIF otherwise")
print("as seen: lossless WebP with EXIF and an odd length is refused")
EOF
