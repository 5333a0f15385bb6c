#!/usr/bin/env bash
# webdataset 1.0.2, Python 3.11, 2026-12-01.
#
# Guess: what TarWriter encodes for an extension, WebDataset(...).decode() gives back; a value that it cannot encode is
#   refused when it is written, as bytes are checked for "jpg".
# Seen: for "cls" the writer takes any number, true, false and None, writes its text ("1.5", "True", "None"), and the
#   decoder, which reads whole numbers only, fails on it when the data set is read. Whole numbers come back as they were,
#   and None under "txt" is refused by the writer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 webdataset==1.0.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import sys

import webdataset

print("webdataset", importlib.metadata.version("webdataset"))


def round_trip(extension, value):
    with webdataset.TarWriter("a.tar") as writer:
        writer.write({"__key__": "a", extension: value})
    (raw,) = webdataset.WebDataset("a.tar", shardshuffle=False)
    try:
        (sample,) = webdataset.WebDataset("a.tar", shardshuffle=False).decode()
    except Exception as error:
        return raw[extension], type(error).__name__
    return raw[extension], sample[extension]


EXPECTED = {
    ("cls", 7): (b"7", 7),
    ("cls", 1.5): (b"1.5", "DecodingError"),
    ("cls", True): (b"True", "DecodingError"),
    ("cls", None): (b"None", "DecodingError"),
    ("txt", "text"): (b"text", "text"),
}
seen = {case: round_trip(*case) for case in EXPECTED}
for (extension, value), (raw, decoded) in seen.items():
    print(f"{extension} {value!r:6} written as {raw!r}, decoded: {decoded!r}")
if seen != EXPECTED:
    sys.exit("changed: webdataset writes or reads such values otherwise")
print("as seen: TarWriter writes values that the decoder cannot give back")
EOF
